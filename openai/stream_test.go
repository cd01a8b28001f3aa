// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// testReply is an answer whose JSON is known.
func testReply(kind Kind) Reply {
	return Reply{Kind: kind, ID: "id-1", Created: 1700000000, Model: "m", PeerID: "12D3", TaskID: "task_1"}
}

// heads of the events of testReply.
const (
	chatHead = `data: {"id":"id-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[`
	textHead = `data: {"id":"id-1","object":"text_completion","created":1700000000,"model":"m","choices":[`
	tail     = `,"agentfm_peer_id":"12D3","agentfm_task_id":"task_1"}` + "\n\n"
	nullTail = `,"usage":null` + tail
)

// failure is the error of the tests.
var failure = &Error{Message: "agent failed: exit status 3", Type: TypeServer, Code: "worker_stream_failed"}

func TestStreamGolden(t *testing.T) {
	const failed = `data: {"error":{"message":"agent failed: exit status 3","type":"server_error","code":"worker_stream_failed","param":null}}` + "\n\n"
	const usage = `,"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}` + tail
	for _, g := range []struct {
		name   string
		kind   Kind
		usage  bool
		writes []string
		fail   bool
		want   string
	}{
		{name: "chat", kind: KindChat, writes: []string{"Hel", "lo\n"}, want: chatHead + `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]` + tail +
			chatHead + `{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]` + tail +
			chatHead + `{"index":0,"delta":{"content":"lo\n"},"finish_reason":null}]` + tail +
			chatHead + `{"index":0,"delta":{},"finish_reason":"stop"}]` + tail +
			"data: [DONE]\n\n"},
		{name: "chat with usage", kind: KindChat, usage: true, writes: []string{"Hello"}, want: chatHead + `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]` + nullTail +
			chatHead + `{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]` + nullTail +
			chatHead + `{"index":0,"delta":{},"finish_reason":"stop"}]` + nullTail +
			chatHead + `]` + usage +
			"data: [DONE]\n\n"},
		{name: "chat without output", kind: KindChat, want: chatHead + `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]` + tail +
			chatHead + `{"index":0,"delta":{},"finish_reason":"stop"}]` + tail +
			"data: [DONE]\n\n"},
		{name: "chat that fails", kind: KindChat, writes: []string{"Hel"}, fail: true, want: chatHead + `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]` + tail +
			chatHead + `{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]` + tail +
			failed},
		{name: "completion", kind: KindText, writes: []string{"Hel", "lo"}, want: textHead + `{"text":"Hel","index":0,"logprobs":null,"finish_reason":null}]` + tail +
			textHead + `{"text":"lo","index":0,"logprobs":null,"finish_reason":null}]` + tail +
			textHead + `{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]` + tail +
			"data: [DONE]\n\n"},
		{name: "completion with usage", kind: KindText, usage: true, writes: []string{"Hello"}, want: textHead + `{"text":"Hello","index":0,"logprobs":null,"finish_reason":null}]` + nullTail +
			textHead + `{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]` + nullTail +
			textHead + `]` + usage +
			"data: [DONE]\n\n"},
		{name: "completion that fails", kind: KindText, writes: []string{"Hel"}, fail: true, want: textHead + `{"text":"Hel","index":0,"logprobs":null,"finish_reason":null}]` + tail +
			failed},
		{name: "a character in two writes, and half a one", kind: KindText, writes: []string{"\xc3", "\xa9\xe2"}, want: textHead + `{"text":"é","index":0,"logprobs":null,"finish_reason":null}]` + tail +
			textHead + `{"text":"�","index":0,"logprobs":null,"finish_reason":null}]` + tail +
			textHead + `{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]` + tail +
			"data: [DONE]\n\n"},
		{name: "text that looks like framing", kind: KindText, writes: []string{"data: [DONE]\r\n\r\n\u0085\u2028[AGENTFM: NO_FILES]\x00"}, want: textHead + `{"text":"data: [DONE]\r\n\r\n\u0085\u2028[AGENTFM: NO_FILES]\u0000","index":0,"logprobs":null,"finish_reason":null}]` + tail +
			textHead + `{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]` + tail +
			"data: [DONE]\n\n"},
	} {
		t.Run(g.name, func(t *testing.T) {
			var out bytes.Buffer
			s := NewStream(&out, testReply(g.kind), g.usage)
			err := s.Start()
			for _, w := range g.writes {
				_, werr := s.Write([]byte(w))
				err = errors.Join(err, werr)
			}
			if g.fail {
				err = errors.Join(err, s.Fail(failure))
			} else {
				err = errors.Join(err, s.Finish(9))
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != g.want {
				t.Errorf("got\n%s\nwant\n%s", got, g.want)
			}
		})
	}
}

func TestWholeGolden(t *testing.T) {
	u := EstimateUsage(9, 5)
	want := `{"id":"id-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"Hel\"lo","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`
	if got := string(testReply(KindChat).Whole(`Hel"lo`, u)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	want = `{"id":"id-1","object":"text_completion","created":1700000000,"model":"m","choices":[` +
		`{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`
	if got := string(testReply(KindText).Whole("", u)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestNewReply(t *testing.T) {
	chat, text := NewReply(KindChat, "m"), NewReply(KindText, "m")
	if !strings.HasPrefix(chat.ID, "chatcmpl-") || !strings.HasPrefix(text.ID, "cmpl-") || len(text.ID) != 5+32 {
		t.Errorf("ids %q and %q", chat.ID, text.ID)
	}
	if chat.ID[9:] == text.ID[5:] || chat.Created == 0 {
		t.Errorf("got %+v and %+v", chat, text)
	}
}

// Lines must stay short whatever the text is made of, and no character be lost.
func TestStreamSplitsLines(t *testing.T) {
	for _, unit := range []string{"x", "\n", "\x00", "\"", "é", "\u0085", "\u2028", "😀", "\xff", "a\x01€"} {
		text := strings.Repeat(unit, 200<<10/len(unit))
		for _, kind := range []Kind{KindChat, KindText} {
			var out bytes.Buffer
			s := NewStream(&out, testReply(kind), true)
			_ = s.Start()
			if _, err := s.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := s.Finish(1); err != nil {
				t.Fatal(err)
			}
			if got := joined(t, out.Bytes(), kind); got != ValidText([]byte(text)) {
				t.Errorf("%q: the text came back with %d bytes", unit, len(got))
			}
		}
	}
}

func TestStreamKeepsItsError(t *testing.T) {
	broken := errors.New("broken")
	w := &failingWriter{left: 1, err: broken}
	s := NewStream(w, testReply(KindChat), true)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Write([]byte("x")); n != 0 || !errors.Is(err, broken) {
		t.Errorf("got %d, %v", n, err)
	}
	if err := s.Finish(1); !errors.Is(err, broken) {
		t.Errorf("finish: %v", err)
	}
	if err := s.Fail(failure); !errors.Is(err, broken) {
		t.Errorf("fail: %v", err)
	}
	if w.calls != 2 {
		t.Errorf("%d writes after the first", w.calls)
	}
	long := testReply(KindChat)
	long.Model = strings.Repeat("m", MaxLine)
	if err := NewStream(&bytes.Buffer{}, long, false).Start(); !errors.Is(err, errLine) {
		t.Errorf("a line that is too long: %v", err)
	}
}

// failingWriter fails when left writes are done.
type failingWriter struct {
	left, calls int
	err         error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	w.calls++
	if w.left--; w.left < 0 {
		return 0, w.err
	}
	return len(p), nil
}

// joined checks the framing of a stream that ended well and returns its text.
func joined(t *testing.T, stream []byte, kind Kind) string {
	t.Helper()
	body, ok := strings.CutSuffix(string(stream), "data: [DONE]\n\n")
	if !ok {
		t.Fatalf("the stream does not end with the end mark")
	}
	var text strings.Builder
	events := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n")
	for i, event := range events {
		data, ok := strings.CutPrefix(event, "data: ")
		if !ok || strings.ContainsAny(data, "\r\n\u0085\u2028\u2029") || len(event) >= MaxLine {
			t.Fatalf("event %d of %d bytes: %.60q", i, len(event), event)
		}
		if kind == KindText {
			var c Completion
			if err := json.Unmarshal([]byte(data), &c, json.RejectUnknownMembers(true)); err != nil {
				t.Fatal(err)
			}
			for _, choice := range c.Choices {
				text.WriteString(choice.Text)
			}
			continue
		}
		var c ChatChunk
		if err := json.Unmarshal([]byte(data), &c, json.RejectUnknownMembers(true)); err != nil {
			t.Fatal(err)
		}
		for _, choice := range c.Choices {
			if choice.Delta.Content != nil {
				text.WriteString(*choice.Delta.Content)
			}
		}
	}
	return text.String()
}

func FuzzSSE(f *testing.F) {
	f.Add([]byte("Hello"), 2, true, true)
	f.Add([]byte("data: [DONE]\n\n\xff\xc2\x85\xe2\x80\xa8\x00\""), 3, false, false)
	f.Fuzz(func(t *testing.T, output []byte, n int, chat, usage bool) {
		kind := KindText
		if chat {
			kind = KindChat
		}
		var out bytes.Buffer
		s := NewStream(&out, testReply(kind), usage)
		_ = s.Start()
		for rest := output; len(rest) > 0; {
			k := min(max(n, 1, len(output)/256), len(rest)) // a long input in few steps
			_, _ = s.Write(rest[:k])
			rest = rest[k:]
		}
		if err := s.Finish(1); err != nil {
			t.Fatal(err)
		}
		if got := joined(t, out.Bytes(), kind); got != ValidText(output) {
			t.Errorf("%q came back as %q", output, got)
		}
	})
}
