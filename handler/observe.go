// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

// operations are what requests to models ask for, by their paths.
var operations = map[string]metrics.Operation{
	"/v1/chat/completions":     metrics.Chat,
	"/v1/completions":          metrics.TextCompletion,
	"/v1/responses":            metrics.Responses,
	"/v1/embeddings":           metrics.Embeddings,
	"/v1/audio/speech":         metrics.Audio,
	"/v1/audio/transcriptions": metrics.Audio,
	"/v1/audio/translations":   metrics.Audio,
	"/v1/images/generations":   metrics.Images,
	"/v1/images/edits":         metrics.Images,
	"/v1/images/variations":    metrics.Images,
	"/v1/moderations":          metrics.Moderations,
	"/v1/rerank":               metrics.Rerank,
}

// observation is what the metrics learn of a request to a model. Several tasks may
// serve one.
type observation struct {
	mu            sync.Mutex
	operation     metrics.Operation // empty for none
	stream        bool
	first         time.Time // when the first output came
	broken        bool      // the answer ended with an error
	input, output int       // tokens, where they were counted
}

// asks notes what the request asks for.
func (o *observation) asks(path string, stream bool) {
	o.operation, o.stream = operations[path], stream
}

// begins notes that output came.
func (o *observation) begins() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first.IsZero() {
		o.first = time.Now()
	}
}

// counted notes how many tokens there are.
func (o *observation) counted(input, output int) { o.input, o.output = input, output }

// observe counts the request, which has ended.
func (x *exchange) observe() {
	o := &x.seen
	if o.operation == "" {
		return
	}
	now := time.Now()
	failure := metrics.Failure("")
	switch {
	case x.r.Context().Err() != nil:
		failure = metrics.Cancelled
	case x.status >= 500 || o.broken:
		failure = metrics.ServerError
	case x.status >= 400:
		failure = metrics.ClientError
	}
	metrics.Request(o.operation, failure, now.Sub(x.begun))
	if o.input > 0 || o.output > 0 {
		metrics.Tokens(o.operation, o.input, o.output)
	}
	if o.stream && failure == "" && !o.first.IsZero() {
		metrics.Stream(o.operation, o.first.Sub(x.begun), now.Sub(o.first), o.output)
	}
}

// usageKey begins a server's count of tokens.
var usageKey = []byte(`"usage"`)

// noteUsage notes the tokens that a server has counted, in what it says last of them.
func (o *observation) noteUsage(answer []byte) {
	found := false
	for { // forwards, which bytes does many times faster than backwards
		_, rest, more := bytes.Cut(answer, usageKey)
		if !more {
			break
		}
		answer, found = rest, true
	}
	if !found {
		return
	}
	_, value, ok := bytes.Cut(answer, []byte(":"))
	if !ok {
		return
	}
	r := usageReaders.Get().(*usageReader)
	defer usageReaders.Put(r)
	if input, output, ok := r.read(value); ok {
		o.counted(input, output)
	}
}

// usageReader reads a server's count of tokens.
type usageReader struct {
	from  bytes.Reader
	dec   jsontext.Decoder
	usage struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Input      int `json:"input_tokens"`
		Output     int `json:"output_tokens"`
	}
}

var usageReaders = sync.Pool{New: func() any { return new(usageReader) }}

// maxTokens is how many tokens an answer can have: what a worker says is added up, and no
// sum is to end at one that says too much.
const maxTokens = 1 << 30

// read reads the count that b begins with, if it is one.
func (r *usageReader) read(b []byte) (input, output int, ok bool) {
	u := &r.usage
	*u = usageReader{}.usage
	r.from.Reset(b)
	defer r.from.Reset(nil)
	r.dec.Reset(&r.from)
	if r.dec.PeekKind() != '{' || json.UnmarshalDecode(&r.dec, u) != nil {
		return 0, 0, false
	}
	input, output = max(u.Prompt, u.Input), max(u.Completion, u.Output)
	return input, output, min(input, output) >= 0 && max(input, output) <= maxTokens
}
