// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// responseBody asks for a response.
const responseBody = `{"model":"llama3.2","input":"hi","instructions":"Be brief.","metadata":{"a":"b"}}`

// fixedResponse replaces what differs between two responses.
func fixedResponse(s string) string {
	s = regexp.MustCompile(`(resp|msg)_[0-9a-f]{32}`).ReplaceAllString(s, "${1}_0")
	return regexp.MustCompile(`"created_at":1[0-9]{9}`).ReplaceAllString(s, `"created_at":0`)
}

// events reads the events of a response that is streamed.
func events(t *testing.T, body string) (kinds []string, text string, last openai.Response) {
	t.Helper()
	for i, event := range strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		name, data, _ := strings.Cut(strings.ReplaceAll(event, ": ping\n", ""), "\n")
		var v struct {
			Type     string           `json:"type"`
			Sequence int              `json:"sequence_number"`
			Delta    string           `json:"delta"`
			Response *openai.Response `json:"response"`
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(data, "data: ")), &v); err != nil || name != "event: "+v.Type || v.Sequence != i {
			t.Fatalf("%.300s: %v", event, err)
		}
		kinds, text = append(kinds, strings.TrimPrefix(v.Type, "response.")), text+v.Delta
		if v.Response != nil {
			last = *v.Response
		}
	}
	return kinds, text, last
}

func TestResponseWhole(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"Hel", "lo"}})}
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/responses", responseBody)
	want := `{"id":"resp_0","object":"response","created_at":0,"status":"completed","background":false,"error":null,"incomplete_details":null,"model":"llama3.2",` +
		`"output":[{"id":"msg_0","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}]}],` +
		`"previous_response_id":null,"store":false,"tools":[],"usage":{"input_tokens":11,"input_tokens_details":{"cache_write_tokens":0,"cached_tokens":0},` +
		`"output_tokens":1,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":12,"agentfm_estimated":true},"instructions":"Be brief.","max_output_tokens":null,` +
		`"metadata":{"a":"b"},"parallel_tool_calls":true,"temperature":null,"text":{"format":{"type":"text"}},"tool_choice":"auto","top_p":null,"truncation":"disabled"}`
	if got := fixedResponse(a.body); a.status != 200 || got != want {
		t.Errorf("got %d\n%s\nwant\n%s", a.status, got, want)
	}
	checkServed(t, g, a, "application/json")
	if call := f.seen()[0]; call.Prompt != "system: Be brief.\n\nuser: hi\n\nassistant:" || call.Target.Model != "llama3.2" || call.Again {
		t.Errorf("got %+v", call)
	}
	a = g.do(t, "POST", "/v1/responses", with(responseBody, `"max_output_tokens":1`))
	if a.status != 200 || !strings.Contains(a.body, `"status":"completed"`) { // it has as many as it may
		t.Errorf("got %d %s", a.status, a.body)
	}
	f.dispatch = answers(script{output: []string{"one two three"}})
	if a = g.do(t, "POST", "/v1/responses", with(responseBody, `"max_output_tokens":2`)); !strings.Contains(a.body, `"incomplete_details":{"reason":"max_output_tokens"}`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	g.do(t, "POST", "/v1/responses", with(responseBody, `"previous_response_id":"resp_1"`)).failed(t, 400, "unsupported_parameter")
	f.dispatch = answers(script{output: []string{"half"}, end: fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed)})
	g.do(t, "POST", "/v1/responses", responseBody).failed(t, 502, "worker_stream_failed")
	f.dispatch = fails(fmt.Errorf("%w", wire.ErrFrameTooLarge))
	a = g.do(t, "POST", "/v1/responses", responseBody)
	if a.failed(t, 400, "context_length_exceeded"); !strings.Contains(a.body, `"param":"input"`) {
		t.Errorf("got %s", a.body)
	}
}

func TestResponseStream(t *testing.T) {
	before := held.total()
	f := &fakeMesh{dispatch: answers(script{output: []string{"Hel", "lo"}})}
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/responses", with(responseBody, `"stream":true`))
	kinds, text, last := events(t, a.body)
	const want = "created in_progress output_item.added content_part.added output_text.delta output_text.delta " +
		"output_text.done content_part.done output_item.done completed"
	if strings.Join(kinds, " ") != want || text != "Hello" {
		t.Errorf("%q in %q", text, kinds)
	}
	if last.Output[0].Content[0].Text != "Hello" || last.PeerID != peerA || last.TaskID == "" || last.Usage.TotalTokens != 12 || last.Metadata["a"] != "b" {
		t.Errorf("got %+v", last)
	}
	checkServed(t, g, a, "text/event-stream; charset=utf-8")
	f.dispatch = answers(script{output: []string{"one two three"}})
	kinds, text, last = events(t, g.do(t, "POST", "/v1/responses", with(responseBody, `"stream":true,"max_output_tokens":2`)).body)
	if kinds[len(kinds)-1] != "incomplete" || text != "one two" || last.Status != "incomplete" {
		t.Errorf("got %q, %+v", kinds, last)
	}
	f.dispatch = answers(script{end: fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed)})
	g.do(t, "POST", "/v1/responses", with(responseBody, `"stream":true`)).failed(t, 502, "worker_stream_failed")
	if held.total() != before {
		t.Errorf("%d bytes are held", held.total()-before)
	}
}

// TestResponseStreamFailure wants a failure to be one for every client: for those
// that look at the response, and for those that wait for an error.
func TestResponseStreamFailure(t *testing.T) {
	before := held.total()
	f := new(fakeMesh)
	g := serve(t, f)
	for name, output := range map[string][]string{"after text": {"half an ans"}, "too long": {strings.Repeat("x", maxAnswer), "x"}} {
		f.dispatch = answers(script{output: output, end: fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed)})
		a := g.do(t, "POST", "/v1/responses", with(responseBody, `"stream":true`))
		kinds, text, last := events(t, a.body)
		if a.status != 200 || !strings.HasSuffix(strings.Join(kinds, " "), "output_text.delta failed error") || !strings.HasPrefix(strings.Join(output, ""), text) {
			t.Errorf("%s: got %d, %q", name, a.status, kinds[len(kinds)-3:])
		}
		if last.Status != "failed" || last.Error == nil || last.Error.Code != "server_error" || len(last.Output) != 0 ||
			!strings.Contains(a.body, `"error":{"message":"`+last.Error.Message[:9]) || !strings.Contains(a.body, `"code":"worker_stream_failed"`) {
			t.Errorf("%s: got %+v", name, last)
		}
	}
	if held.total() != before {
		t.Errorf("%d bytes are held", held.total()-before)
	}
}

// TestResponseAfterHeartbeat wants a failure before any output to be one, too, when
// the status is out.
func TestResponseAfterHeartbeat(t *testing.T) {
	f := &fakeMesh{dispatch: func(context.Context, mesh.Call) (run, error) {
		time.Sleep(50 * time.Millisecond)
		return nil, fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed)
	}}
	g := serve(t, f, heartbeat(5*time.Millisecond))
	a := g.do(t, "POST", "/v1/responses", with(responseBody, `"stream":true`))
	kinds, _, last := events(t, a.body)
	if !strings.HasPrefix(a.body, ": ping\n") || strings.Join(kinds, " ") != "created in_progress failed error" || last.Status != "failed" {
		t.Errorf("got %s", a.body)
	}
}

// TestNoResponsesAreKept wants whoever asks for a response of an agent to learn why
// there is none.
func TestNoResponsesAreKept(t *testing.T) {
	g := serve(t, &fakeMesh{})
	for _, r := range []struct{ method, path string }{
		{"GET", "/v1/responses/resp_1"},
		{"GET", "/v1/responses/resp_1?stream=true"},
		{"DELETE", "/v1/responses/resp_1"},
		{"POST", "/v1/responses/resp_1/cancel"},
		{"GET", "/v1/responses/resp_1/input_items"},
	} {
		a := g.do(t, r.method, r.path, "")
		if a.failed(t, 404, "not_found"); !strings.Contains(a.body, "an agent's answer is not kept") {
			t.Errorf("%s %s: got %s", r.method, r.path, a.body)
		}
	}
	g.do(t, "GET", "/v1/responses/", "").failed(t, 404, "not_found")
	g.do(t, "GET", "/v1/responses/resp_1/x", "").failed(t, 404, "not_found")
	for _, path := range []string{"/v1/responses/compact", "/v1/responses/resp_1"} {
		a := g.do(t, "POST", path, "")
		if a.failed(t, 405, "method_not_allowed"); a.header.Get("Allow") != "GET, HEAD, DELETE, OPTIONS" {
			t.Errorf("%s: Allow: %s", path, a.header.Get("Allow"))
		}
	}
	g.do(t, "GET", "/v1/responses", "").failed(t, 405, "method_not_allowed")
}
