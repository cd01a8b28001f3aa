// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// streaming asks for the answer of a task route as a stream.
func streaming(body string, usage bool) string {
	return strings.Replace(body, "{", fmt.Sprintf(`{"stream":true,"stream_options":{"include_usage":%t},`, usage), 1)
}

// changing is what differs between two answers.
var changing = regexp.MustCompile(`"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"|"created":1[0-9]{9}`)

// fixed replaces what differs between two answers.
func fixed(s string) string {
	return changing.ReplaceAllStringFunc(s, func(m string) string {
		if strings.HasPrefix(m, `"c`) {
			return `"created":0`
		}
		return m[:strings.LastIndex(m, "-")+1] + `0"`
	})
}

func TestChatWhole(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"Hel", "lo\r\n"}})}
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/chat/completions", `{"model":" LLAMA3.2 ","messages":[{"role":"system","content":"s"},{"role":"user","content":"hi"}]}`)
	want := `{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"LLAMA3.2","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"Hello\r\n","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,"agentfm_estimated":true}}`
	if got := fixed(a.body); a.status != 200 || got != want {
		t.Errorf("got %d\n%s\nwant\n%s", a.status, got, want)
	}
	checkServed(t, g, a, "application/json")
	call := f.seen()[0]
	if call.Prompt != "system: s\n\nuser: hi\n\nassistant:" || call.Target.Model != "LLAMA3.2" || call.Target.Peer != "" ||
		call.Retries != 2 || call.EagerNewline || call.TaskID != "" || call.Selector == nil {
		t.Errorf("got %+v", call)
	}
}

func TestCompletionWhole(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"Hello"}})}
	g := serve(t, f, func(g *gate, _ *serverSettings) { zero := 0; g.h.Retries = &zero })
	a := g.do(t, "POST", "/v1/completions", `{"model":"m","prompt":["say hi"]}`)
	want := `{"id":"cmpl-0","object":"text_completion","created":0,"model":"m","choices":[` +
		`{"text":"Hello","index":0,"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,"agentfm_estimated":true}}`
	if got := fixed(a.body); a.status != 200 || got != want {
		t.Errorf("got %d\n%s\nwant\n%s", a.status, got, want)
	}
	checkServed(t, g, a, "application/json")
	if call := f.seen()[0]; call.Prompt != "say hi" || call.Retries != 0 || string(call.Original) != `{"model":"m","prompt":["say hi"]}` {
		t.Errorf("got %+v", call)
	}
}

// checkServed asserts what says who served a task.
func checkServed(t *testing.T, g *gate, a answer, contentType string) {
	t.Helper()
	a.hasRequestID(t)
	for name, want := range map[string]string{
		"Content-Type":           contentType,
		"X-Content-Type-Options": "nosniff",
		"X-AgentFM-Peer":         peerA,
		"X-AgentFM-Agent":        "HR %C3%84ssistant%0A",
		"X-AgentFM-Task":         "task_0123456789abcdef01234567",
		"X-AgentFM-Attempts":     "2",
		"X-AgentFM-Tier":         "agent",
		"X-AgentFM-Queue-Ms":     "7",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	repl := <-g.repl
	for name, want := range map[string]any{
		"peer": peerA, "agent": "HR Ässistant\n", "model": "llama3.2", "task": "task_0123456789abcdef01234567", "attempts": 2,
		"tier": "agent", "queue_ms": int64(7),
	} {
		if got, _ := repl.Get("http.agentfm." + name); got != want {
			t.Errorf("{http.agentfm.%s}: got %v, want %v", name, got, want)
		}
	}
}

func TestChatStreamGolden(t *testing.T) {
	const head = `data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"llama3.2","choices":[`
	const end = `,"agentfm_peer_id":"` + peerA + `","agentfm_task_id":"task_0123456789abcdef01234567"}` + "\n\n"
	for _, usage := range []bool{false, true} {
		null, last := "", ""
		if usage {
			null = `,"usage":null`
			last = head + `],"usage":{"prompt_tokens":6,"completion_tokens":1,"total_tokens":7,"agentfm_estimated":true}` + end
		}
		want := head + `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]` + null + end +
			head + `{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]` + null + end +
			head + `{"index":0,"delta":{"content":"lo"},"finish_reason":null}]` + null + end +
			head + `{"index":0,"delta":{},"finish_reason":"stop"}]` + null + end +
			last + "data: [DONE]\n\n"
		g := serve(t, &fakeMesh{dispatch: answers(script{output: []string{"Hel", "lo"}})})
		a := g.do(t, "POST", "/v1/chat/completions", streaming(chatBody, usage))
		if got := fixed(a.body); a.status != 200 || got != want {
			t.Errorf("got %d\n%s\nwant\n%s", a.status, got, want)
		}
		checkServed(t, g, a, "text/event-stream; charset=utf-8")
		if a.header.Get("Cache-Control") != "no-cache" || a.header.Get("X-Accel-Buffering") != "no" || a.header.Get("Content-Length") != "" {
			t.Errorf("headers %v", a.header)
		}
	}
}

func TestCompletionStreamGolden(t *testing.T) {
	const head = `data: {"id":"cmpl-0","object":"text_completion","created":0,"model":"llama3.2","choices":[`
	const end = `,"agentfm_peer_id":"` + peerA + `","agentfm_task_id":"task_0123456789abcdef01234567"}` + "\n\n"
	for _, usage := range []bool{false, true} {
		null, last := "", ""
		if usage {
			null = `,"usage":null`
			last = head + `],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2,"agentfm_estimated":true}` + end
		}
		want := head + `{"text":"Hi","index":0,"logprobs":null,"finish_reason":null}]` + null + end +
			head + `{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]` + null + end +
			last + "data: [DONE]\n\n"
		g := serve(t, &fakeMesh{dispatch: answers(script{output: []string{"Hi"}})})
		a := g.do(t, "POST", "/v1/completions", streaming(textBody, usage))
		if got := fixed(a.body); a.status != 200 || got != want {
			t.Errorf("got %d\n%s\nwant\n%s", a.status, got, want)
		}
	}
}

// After output began, the status is out. The stream then ends with the error and
// without the mark of its end.
func TestStreamFailure(t *testing.T) {
	failure := fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed)
	for route, body := range map[string]string{"/v1/chat/completions": chatBody, "/v1/completions": textBody} {
		g := serve(t, &fakeMesh{dispatch: answers(script{output: []string{"half an ans"}, end: failure})})
		a := g.do(t, "POST", route, streaming(body, true))
		const want = `data: {"error":{"message":"agent failed: exit status 3","type":"server_error","code":"worker_stream_failed","param":null}}` + "\n\n"
		if a.status != 200 || !strings.HasSuffix(a.body, "\n\n"+want) || strings.Count(a.body, `"error"`) != 1 ||
			strings.Contains(a.body, "[DONE]") || strings.Contains(a.body, `"stop"`) {
			t.Errorf("%s: got %d\n%s", route, a.status, a.body)
		}
		g.do(t, "POST", route, body).failed(t, 502, "worker_stream_failed")
	}
}

// TestCause wants clients to learn why an agent failed, where its worker says.
func TestCause(t *testing.T) {
	failure := fmt.Errorf("attempt 1: %w", &wire.AgentError{Cause: wire.CauseOOMKilled, Reason: "killed: out of memory"})
	const want = `{"error":{"message":"agent failed: killed: out of memory","type":"server_error","code":"worker_stream_failed","param":null,"cause":"oom_killed"}}`
	g := serve(t, &fakeMesh{dispatch: answers(script{output: []string{"half an ans"}, end: failure})})
	if a := g.do(t, "POST", "/v1/chat/completions", chatBody); a.status != 502 || a.body != want {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if a := g.do(t, "POST", "/v1/chat/completions", streaming(chatBody, true)); !strings.HasSuffix(a.body, "\n\ndata: "+want+"\n\n") {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

// TestHeldCost wants what an answer costs to be counted as it is: its text, and the
// JSON that it becomes. An agent can make that sixfold.
func TestHeldCost(t *testing.T) {
	a := heldAnswer{client: "TestHeldCost"}
	if err := a.hold("ab\x00"); err != nil || held.of(a.client) != 3+8 {
		t.Errorf("%d bytes are held, %v", held.of(a.client), err)
	}
	a.release()
	if held.of(a.client) != 0 {
		t.Errorf("%d bytes are held", held.of(a.client))
	}
}

// of returns how many bytes of a client are held.
func (h *heldBytes) of(client string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.by[client]
}

// total returns how many bytes are held.
func (h *heldBytes) total() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all
}

// TestHeldByOne wants a client that does not read its answers to leave room for
// others, and all of them together to have a bound.
func TestHeldByOne(t *testing.T) {
	h := heldBytes{by: make(map[string]int64)}
	refused := func(err error, status int) {
		t.Helper()
		if p, ok := err.(*problem); !ok || p.status != status || !p.final {
			t.Errorf("got %v", err)
		}
	}
	for _, client := range []string{"a", "b", "c", "d"} {
		if err := h.take(client, maxHeldByOne); err != nil {
			t.Fatal(err)
		}
		refused(h.take(client, 1), 429)
	}
	refused(h.take("e", 1), 503)
	h.give("a", maxHeldByOne)
	if err := h.take("e", 1); err != nil {
		t.Error(err)
	}
	h.give("e", 1)
	for _, client := range []string{"b", "c", "d"} {
		h.give(client, maxHeldByOne)
	}
	if h.all != 0 || len(h.by) != 0 {
		t.Errorf("%d bytes are held, of %v", h.all, h.by)
	}
}

// TestEnough cuts answers where the request wants it: the worker has done well. One that is
// read to its end needs nobody to say so.
func TestEnough(t *testing.T) {
	for body, want := range map[string]bool{
		`{"model":"llama3.2","prompt":"x","stop":"b"}`:               true,
		`{"model":"llama3.2","prompt":"x","stop":"b","stream":true}`: true,
		`{"model":"llama3.2","prompt":"x"}`:                          false,
		`{"model":"llama3.2","prompt":"x","stream":true}`:            false,
	} {
		var enough atomic.Bool
		g := serve(t, &fakeMesh{dispatch: answers(script{output: []string{"a b c"}, enough: &enough})})
		if a := g.do(t, "POST", "/v1/completions", body); a.status != 200 || enough.Load() != want {
			t.Errorf("%s: %d %s, enough: %t", body, a.status, a.body, enough.Load())
		}
	}
}
