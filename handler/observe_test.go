// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/trace"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// histograms returns the counts and sums of the histograms whose names begin so.
func histograms(t *testing.T, prefix string) map[string][2]float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := metrics.Register(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][2]float64)
	for _, f := range families {
		name, ok := strings.CutPrefix(f.GetName(), prefix)
		if !ok {
			continue
		}
		for _, m := range f.GetMetric() {
			out[name+labels(m)] = [2]float64{float64(m.GetHistogram().GetSampleCount()), m.GetHistogram().GetSampleSum()}
		}
	}
	return out
}

func labels(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		b.WriteString(" " + l.GetValue())
	}
	return b.String()
}

// TestObserved wants each request to a model to be counted once, as what it was.
func TestObserved(t *testing.T) {
	own := func(contentType string, status int, output ...string) *fakeMesh {
		return natively("/v1/chat/completions", contentType, status, script{output: output})
	}
	for name, c := range map[string]struct {
		f          *fakeMesh
		path, body string
		label      string
		first      bool
		tokens     float64
	}{
		"whole, of a server": {own(jsonType, 200, `{"choices":[{"text":"\"usage\": 1"}],"usage":{"prompt_tokens":7,"completion_tokens":5}}`), "/v1/chat/completions", chatBody, "chat ", false, 12},
		"events": {own(eventsType, 200, "data: {\"usage\":null}\n\n", "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", "data: [DONE]\n\n"),
			"/v1/chat/completions", with(chatBody, `"stream":true`), "chat ", true, 7},
		"nothing counted":  {own(jsonType, 200, `{"usage":"none"}`), "/v1/chat/completions", chatBody, "chat ", false, 0},
		"a wrong request":  {own(jsonType, 400, `{}`), "/v1/chat/completions", chatBody, "chat 4xx", false, 0},
		"a failure":        {&fakeMesh{dispatch: fails(fmt.Errorf("%w: x", mesh.ErrUnreachable))}, "/v1/completions", `{"model":"m","prompt":"x"}`, "text_completion 5xx", false, 0},
		"a text":           {&fakeMesh{dispatch: answers(script{output: []string{"Hello there"}})}, "/v1/chat/completions", chatBody, "chat ", false, 8},
		"a text in events": {&fakeMesh{dispatch: answers(script{output: []string{"Hello"}})}, "/v1/responses", `{"model":"m","input":"x","stream":true}`, "responses ", true, 0},
		"nobody":           {&fakeMesh{dispatch: fails(router.ErrNoRoute)}, "/v1/rerank", chatBody, "rerank 4xx", false, 0},
		"half": {natively("/v1/chat/completions", eventsType, 200, script{output: []string{"data: 1\n\n"}, end: mesh.ErrStream}),
			"/v1/chat/completions", with(chatBody, `"stream":true`), "chat 5xx", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := histograms(t, "gen_ai_")
			g := serve(t, c.f)
			g.do(t, "POST", c.path, c.body)
			<-g.repl // the request has ended
			after := histograms(t, "gen_ai_")
			operation, _, _ := strings.Cut(c.label, " ")
			var requests, tokens float64
			for key, v := range after {
				switch {
				case strings.HasPrefix(key, "server_request_duration_seconds"):
					requests += v[0] - before[key][0]
				case strings.HasPrefix(key, "client_token_usage"):
					tokens += v[1] - before[key][1]
				}
			}
			if key := "server_request_duration_seconds " + strings.Join(reversed(c.label), " "); requests != 1 || after[key][0] != before[key][0]+1 {
				t.Errorf("%v requests were counted; want one of %q", requests, key)
			}
			if tokens != c.tokens {
				t.Errorf("%v tokens were counted, want %v", tokens, c.tokens)
			}
			key := "server_time_to_first_token_seconds " + operation
			if got := after[key][0] - before[key][0]; (got == 1) != c.first {
				t.Errorf("%v first tokens", got)
			}
		})
	}
}

// reversed returns the parts of a label as a registry has them: by their names.
func reversed(label string) []string {
	operation, failure, _ := strings.Cut(label, " ")
	return []string{failure, operation}
}

// TestTraced wants the worker to get the span that Caddy traces the request with.
func TestTraced(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil)
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	x := &exchange{r: r}
	if got := x.forwarded(jsonType).Get("Traceparent"); got != r.Header.Get("Traceparent") {
		t.Errorf("without tracing: %q", got)
	}
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	x.r = r.WithContext(trace.ContextWithSpanContext(r.Context(), span))
	if got, want := x.forwarded(jsonType).Get("Traceparent"), "00-01000000000000000000000000000000-0200000000000000-01"; got != want {
		t.Errorf("with tracing: %q, want %q", got, want)
	}
}
