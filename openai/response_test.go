// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// testResponse is a response of which only the begin of its JSON and the part of
// it is not known that differs.
func testResponse(status, err, incomplete, output, usage string) string {
	return `{"id":"resp_1","object":"response","created_at":1700000000,"status":"` + status + `","background":false,"error":` + err +
		`,"incomplete_details":` + incomplete + `,"model":"m","output":[` + output + `],"previous_response_id":null,"store":false,"tools":[],"usage":` + usage +
		`,"instructions":null,"max_output_tokens":null,"metadata":{},"parallel_tool_calls":true,"temperature":null,"text":{"format":{"type":"text"}},` +
		`"tool_choice":"auto","top_p":null,"truncation":"disabled"`
}

// testMessage is the message of testResponse.
func testMessage(status, content string) string {
	return `{"id":"msg_1","type":"message","status":"` + status + `","role":"assistant","content":[` + content + `]}`
}

// testPart is the text of testMessage.
func testPart(text string) string {
	return `{"type":"output_text","text":"` + text + `","annotations":[],"logprobs":[]}`
}

// testUsage is the usage of a response.
func testUsage(output int) string {
	return fmt.Sprintf(`{"input_tokens":3,"input_tokens_details":{"cache_write_tokens":0,"cached_tokens":0},"output_tokens":%d,`+
		`"output_tokens_details":{"reasoning_tokens":0},"total_tokens":%d,"agentfm_estimated":true}`, output, output+3)
}

func responseReply() Reply {
	return Reply{Kind: KindResponses, ID: "resp_1", Created: 1700000000, Model: "m"}
}

func TestResponseWhole(t *testing.T) {
	r := responseReply()
	want := testResponse("completed", "null", "null", testMessage("completed", testPart(`Hel\"lo`)), testUsage(2)) + "}"
	if got := string(r.Whole([]Choice{{`Hel"lo`, FinishStop}}, EstimateUsage(3, 2))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	want = testResponse("incomplete", "null", `{"reason":"max_output_tokens"}`, testMessage("incomplete", testPart("")), testUsage(0)) + "}"
	if got := string(r.Whole([]Choice{{"", FinishLength}}, EstimateUsage(3, 0))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestEcho wants a response to say what was asked for.
func TestEcho(t *testing.T) {
	req, err := DecodeResponses(responsesWith(`"instructions":"i","metadata":{"a":"b"},"temperature":0.5,"top_p":1,"max_output_tokens":9,"tool_choice":"none","tools":[{}],` +
		`"parallel_tool_calls":false,"truncation":"auto","user":"u","safety_identifier":"s","prompt_cache_key":"k","text":{"verbosity":"low"},"store":true`))
	if err != nil {
		t.Fatal(err)
	}
	r := responseReply()
	r.Echo = req.Echo
	got := string(r.Whole([]Choice{{}}, Usage{}))
	for _, want := range []string{`"instructions":"i"`, `"metadata":{"a":"b"}`, `"temperature":0.5`, `"top_p":1`, `"max_output_tokens":9`, `"tool_choice":"none"`, `"tools":[]`,
		`"parallel_tool_calls":false`, `"truncation":"auto"`, `"user":"u"`, `"safety_identifier":"s"`, `"prompt_cache_key":"k"`,
		`"text":{"format":{"type":"text"},"verbosity":"low"}`, `"store":false`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

func TestResponseStreamGolden(t *testing.T) {
	var n int
	event := func(kind, fields string) string {
		if kind == "response.created" {
			n = 0
		}
		n++
		return fmt.Sprintf("event: %s\ndata: {\"type\":\"%[1]s\"%s,\"sequence_number\":%d}\n\n", kind, fields, n-1)
	}
	const served = `,"agentfm_peer_id":"12D3","agentfm_task_id":"task_1"}`
	const of = `,"output_index":0,"item_id":"msg_1","content_index":0`
	whole := func(kind, response string) string { return event(kind, `,"response":`+response) }
	begin := func(end string) string {
		created := testResponse("in_progress", "null", "null", "", "null") + end
		return whole("response.created", created) + whole("response.in_progress", created)
	}
	start := func() string {
		return begin(served) + event("response.output_item.added", `,"output_index":0,"item":`+testMessage("in_progress", "")) +
			event("response.content_part.added", of+`,"part":`+testPart(""))
	}
	delta := func(text string) string {
		return event("response.output_text.delta", of+`,"delta":"`+text+`","logprobs":[]`)
	}
	end := func(status, text string) string {
		return event("response.output_text.done", of+`,"text":"`+text+`","logprobs":[]`) + event("response.content_part.done", of+`,"part":`+testPart(text)) +
			event("response.output_item.done", `,"output_index":0,"item":`+testMessage(status, testPart(text)))
	}
	fail := func(end string) string {
		return whole("response.failed", testResponse("failed", `{"code":"server_error","message":"agent failed: exit status 3"}`, "null", "", "null")+end) +
			event("error", `,"code":"worker_stream_failed","message":"agent failed: exit status 3","param":null,`+
				`"error":{"message":"agent failed: exit status 3","type":"server_error","code":"worker_stream_failed","param":null}`)
	}
	for _, g := range []struct {
		name   string
		writes []string
		limit  int
		fail   bool
		want   string
	}{
		{"completed", []string{"Hel", "lo\n\u2028"}, 0, false, start() + delta("Hel") + delta(`lo\n\u2028`) + end("completed", `Hello\n\u2028`) +
			whole("response.completed", testResponse("completed", "null", "null", testMessage("completed", testPart(`Hello\n\u2028`)), testUsage(3))+served)},
		{"incomplete", []string{"one two"}, 1, false, start() + delta("one") + end("incomplete", "one") +
			whole("response.incomplete", testResponse("incomplete", "null", `{"reason":"max_output_tokens"}`, testMessage("incomplete", testPart("one")), testUsage(1))+served)},
		{"no output", nil, 0, false, start() + end("completed", "") +
			whole("response.completed", testResponse("completed", "null", "null", testMessage("completed", testPart("")), testUsage(0))+served)},
		{"failed", []string{"Hel"}, 0, true, start() + delta("Hel") + fail(served)},
		{"failed at once", nil, -1, true, begin("}") + fail("}")},
	} {
		t.Run(g.name, func(t *testing.T) {
			var out bytes.Buffer
			s := NewStream(&out, responseReply(), StreamConfig{Limits: Limits{MaxTokens: max(0, g.limit)}, PromptTokens: func() int { return 3 }})
			var err error
			if g.limit >= 0 {
				err = s.Choice(0).Start("12D3", "task_1")
			}
			for _, w := range g.writes {
				if _, werr := s.Choice(0).Write([]byte(w)); werr != ErrLimit {
					err = errors.Join(err, werr)
				}
			}
			if g.fail {
				err = errors.Join(err, s.Fail(failure))
			} else {
				err = errors.Join(err, s.Choice(0).End(), s.Finish())
			}
			if got := out.String(); got != g.want || err != nil {
				t.Errorf("got %v\n%s\nwant\n%s", err, got, g.want)
			}
			if s.Finish() != ErrEnded || s.Fail(failure) != ErrEnded || s.Ping() != ErrEnded {
				t.Error("the stream goes on after its end")
			}
		})
	}
}

// sizes counts the writes that are too large.
type sizes struct {
	bytes.Buffer
	large int
}

func (s *sizes) Write(p []byte) (int, error) {
	if len(p) > MaxLine {
		s.large++
	}
	return s.Buffer.Write(p)
}

// TestResponseLong wants pieces to be on short lines, and the last events to have
// all of the text on one.
func TestResponseLong(t *testing.T) {
	for _, unit := range []string{"x", "\x00", "é", "\u2028", "\xff"} {
		long := strings.Repeat(unit, 200<<10/len(unit))
		var out sizes
		s := NewStream(&out, responseReply(), StreamConfig{})
		if _, err := s.Choice(0).Write([]byte(long)); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(); err != nil || out.large > 0 {
			t.Fatalf("%v, %d large writes", err, out.large)
		}
		pieces, wholes := "", 0
		for i, event := range strings.Split(strings.TrimSuffix(out.String(), "\n\n"), "\n\n") {
			name, data, ok := strings.Cut(event, "\ndata: ")
			var v struct {
				Type     string   `json:"type"`
				Sequence int      `json:"sequence_number"`
				Delta    string   `json:"delta"`
				Text     string   `json:"text"`
				Response Response `json:"response"`
			}
			if err := json.Unmarshal([]byte(data), &v); err != nil || !ok || name != "event: "+v.Type || v.Sequence != i {
				t.Fatalf("event %d, %s: %+v, %v", i, name, v.Type, err)
			}
			if v.Delta != "" && len(data) > MaxLine {
				t.Errorf("a piece on a line of %d bytes", len(data))
			}
			pieces += v.Delta
			if v.Text == text([]byte(long)) || len(v.Response.Output) == 1 && v.Response.Output[0].Content[0].Text == text([]byte(long)) {
				wholes++
			}
		}
		if pieces != text([]byte(long)) || wholes != 2 {
			t.Errorf("%q: %d bytes in pieces, %d times whole", unit, len(pieces), wholes)
		}
	}
}

// little keeps no more than some bytes.
type little struct{ strings.Builder }

func (l *little) WriteString(s string) (int, error) {
	if l.Len()+len(s) > 4 {
		return 0, errors.New("no room")
	}
	return l.Builder.WriteString(s)
}

// TestResponseNotKept wants a response whose text has no room to fail, never to
// end as if it were whole.
func TestResponseNotKept(t *testing.T) {
	var out bytes.Buffer
	s := NewStream(&out, responseReply(), StreamConfig{Kept: new(little)})
	if _, err := s.Choice(0).Write([]byte("123\xe2")); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(); err == nil || err.Error() != "no room" {
		t.Errorf("got %v", err)
	}
	if err := s.Fail(failure); err != nil || !strings.Contains(out.String(), "event: error\n") || strings.Contains(out.String(), "response.completed") {
		t.Errorf("got %v\n%s", err, out.String())
	}
}

func TestResponseStreamBreaks(t *testing.T) {
	broken := errors.New("broken")
	for n := range 12 {
		w := &failingWriter{left: n, err: broken}
		s := NewStream(w, responseReply(), StreamConfig{})
		_, _ = s.Choice(0).Write([]byte("x"))
		if err := s.Finish(); (n < 9) != (err == broken) {
			t.Errorf("after %d writes: %v", n, err)
		}
		if n < 9 && (s.Fail(failure) != broken || w.calls != n+1) {
			t.Errorf("after %d writes: %d calls", n, w.calls)
		}
	}
}
