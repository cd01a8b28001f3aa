// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics of requests to models have the names, the units and the buckets of
// OpenTelemetry's conventions for generative AI, as Prometheus writes them.

// Operation is what a request asks a model for.
type Operation string

// Operations. Those that the conventions have are named as there.
const (
	Chat           Operation = "chat"
	TextCompletion Operation = "text_completion"
	Embeddings     Operation = "embeddings"
	Responses      Operation = "responses"
	Audio          Operation = "audio"
	Images         Operation = "images"
	Moderations    Operation = "moderations"
	Rerank         Operation = "rerank"
)

// operations are all of them.
var operations = []Operation{Chat, TextCompletion, Embeddings, Responses, Audio, Images, Moderations, Rerank}

// Failure is how a request to a model failed; empty for not at all.
type Failure string

// Failures.
const (
	// ClientError says that the status was 4xx.
	ClientError Failure = "4xx"
	// ServerError says that the status was 5xx, or that the answer broke off.
	ServerError Failure = "5xx"
	// Cancelled says that the client went away.
	Cancelled Failure = "cancelled"
)

// TokenType is which tokens are counted.
type TokenType string

// Tokens of a request and of its answer.
const (
	InputTokens  TokenType = "input"
	OutputTokens TokenType = "output"
)

var (
	requestDuration = newOperations("gen_ai_server_request_duration_seconds", "Time of a request to a model, from its arrival to the end of its answer.",
		prometheus.ExponentialBuckets(0.01, 2, 14), "error_type", "", string(ClientError), string(ServerError), string(Cancelled))
	firstToken = newOperations("gen_ai_server_time_to_first_token_seconds", "Time from a request's arrival to the first output of its streamed answer.",
		[]float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}, "")
	outputToken = newOperations("gen_ai_server_time_per_output_token_seconds", "Time for each token of a streamed answer after the first, where tokens were counted.",
		[]float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5}, "")
	tokenUsage = newOperations("gen_ai_client_token_usage", "Tokens of a request and of its answer, where they were counted.",
		prometheus.ExponentialBuckets(1, 4, 14), "gen_ai_token_type", string(InputTokens), string(OutputTokens))
)

// newOperations returns a histogram by operation, and by another label where that
// has a name, with every pair at zero.
func newOperations(name, help string, buckets []float64, label string, values ...string) *prometheus.HistogramVec {
	labels := []string{"gen_ai_operation_name"}
	if label != "" {
		labels = append(labels, label)
	}
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	for _, o := range operations {
		if label == "" {
			vec.WithLabelValues(string(o))
		}
		for _, v := range values {
			vec.WithLabelValues(string(o), v)
		}
	}
	return vec
}

// Request counts a request to a model that ended.
func Request(o Operation, f Failure, d time.Duration) {
	requestDuration.WithLabelValues(string(o), string(f)).Observe(d.Seconds())
}

// Stream counts a streamed answer: when its first output came, and, where its tokens
// were counted, how long each of the others took.
func Stream(o Operation, first, rest time.Duration, tokens int) {
	firstToken.WithLabelValues(string(o)).Observe(first.Seconds())
	if tokens > 1 {
		outputToken.WithLabelValues(string(o)).Observe(rest.Seconds() / float64(tokens-1))
	}
}

// Tokens counts the tokens of a request and of its answer.
func Tokens(o Operation, input, output int) {
	tokenUsage.WithLabelValues(string(o), string(InputTokens)).Observe(float64(input))
	if output > 0 {
		tokenUsage.WithLabelValues(string(o), string(OutputTokens)).Observe(float64(output))
	}
}
