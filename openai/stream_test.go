// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
)

// testReply is an answer whose JSON is known.
func testReply(kind Kind) Reply {
	return Reply{Kind: kind, ID: "id-1", Created: 1700000000, Model: "m"}
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
	const usage = `,"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"agentfm_estimated":true}` + tail
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
			s := NewStream(&out, testReply(g.kind), StreamConfig{IncludeUsage: g.usage, PromptTokens: func() int { return 3 }})
			c := s.Choice(0)
			err := c.Start("12D3", "task_1")
			for _, w := range g.writes {
				_, werr := c.Write([]byte(w))
				err = errors.Join(err, werr)
			}
			if g.fail {
				err = errors.Join(err, s.Fail(failure))
			} else {
				err = errors.Join(err, s.Finish())
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
	choices := []Choice{{`Hel"lo`, FinishStop}, {"", FinishLength}}
	const usage = `],"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14,"agentfm_estimated":true}}`
	want := `{"id":"id-1","object":"chat.completion","created":1700000000,"model":"m","choices":[` +
		`{"index":0,"message":{"role":"assistant","content":"Hel\"lo","refusal":null},"logprobs":null,"finish_reason":"stop"},` +
		`{"index":1,"message":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":"length"}` + usage
	if got := string(testReply(KindChat).Whole(choices, EstimateUsage(9, 5))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	want = `{"id":"id-1","object":"text_completion","created":1700000000,"model":"m","choices":[` +
		`{"text":"Hel\"lo","index":0,"logprobs":null,"finish_reason":"stop"},` +
		`{"text":"","index":1,"logprobs":null,"finish_reason":"length"}` + usage
	if got := string(testReply(KindText).Whole(choices, EstimateUsage(9, 5))); got != want {
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
			s := NewStream(&out, testReply(kind), StreamConfig{IncludeUsage: true})
			if _, err := s.Choice(0).Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := s.Finish(); err != nil {
				t.Fatal(err)
			}
			if got := joined(t, out.Bytes(), kind)[0]; got != validText([]byte(text)) {
				t.Errorf("%q: the text came back with %d bytes", unit, len(got))
			}
		}
	}
}

func TestStreamKeepsItsError(t *testing.T) {
	broken := errors.New("broken")
	w := &failingWriter{left: 1, err: broken}
	s := NewStream(w, testReply(KindChat), StreamConfig{IncludeUsage: true})
	if err := s.Choice(0).Start("", ""); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Choice(0).Write([]byte("x")); n != 0 || !errors.Is(err, broken) {
		t.Errorf("got %d, %v", n, err)
	}
	for name, err := range map[string]error{
		"start": s.Choice(0).Start("", ""), "ping": s.Ping(), "end": s.Choice(0).End(), "finish": s.Finish(), "fail": s.Fail(failure),
	} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.calls != 2 {
		t.Errorf("%d writes after the first", w.calls)
	}
	long := testReply(KindChat)
	long.Model = strings.Repeat("m", MaxLine)
	if err := NewStream(&bytes.Buffer{}, long, StreamConfig{}).Choice(0).Start("", ""); !errors.Is(err, errLine) {
		t.Errorf("a line that is too long: %v", err)
	}
}

func TestStreamEnds(t *testing.T) {
	for name, end := range map[string]func(*Stream) error{
		"finish": (*Stream).Finish,
		"fail":   func(s *Stream) error { return s.Fail(failure) },
	} {
		var out bytes.Buffer
		s := NewStream(&out, testReply(KindText), StreamConfig{})
		if err := end(s); err != nil {
			t.Fatal(err)
		}
		size := out.Len()
		_, err := s.Choice(0).Write([]byte("x"))
		for _, err := range []error{err, s.Ping(), s.Choice(0).End(), s.Finish(), s.Fail(failure)} {
			if !errors.Is(err, ErrEnded) {
				t.Errorf("after %s: %v", name, err)
			}
		}
		if out.Len() != size {
			t.Errorf("after %s came %q", name, out.Bytes()[size:])
		}
	}
}

func TestStreamChoices(t *testing.T) {
	const head = `data: {"id":"id-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[`
	const a, b = `],"usage":null,"agentfm_peer_id":"A","agentfm_task_id":"1"}` + "\n\n", `],"usage":null,"agentfm_peer_id":"B","agentfm_task_id":"2"}` + "\n\n"
	want := ": ping\n" +
		head + `{"index":1,"delta":{"role":"assistant","content":""},"finish_reason":null}` + b +
		head + `{"index":1,"delta":{"content":"one two"},"finish_reason":null}` + b +
		head + `{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}` + a +
		": ping\n" +
		head + `{"index":1,"delta":{},"finish_reason":"length"}` + b +
		head + `{"index":0,"delta":{"content":"one "},"finish_reason":null}` + a +
		head + `{"index":0,"delta":{},"finish_reason":"stop"}` + a +
		head + `],"usage":{"prompt_tokens":7,"completion_tokens":4,"total_tokens":11,"agentfm_estimated":true}}` + "\n\n" +
		"data: [DONE]\n\n"
	var out bytes.Buffer
	counted := 0
	s := NewStream(&out, testReply(KindChat), StreamConfig{
		Choices: 2, IncludeUsage: true, Limits: Limits{MaxTokens: 2, Stop: []string{"END"}},
		PromptTokens: func() int { counted++; return 7 },
	})
	must := func(want, err error) {
		t.Helper()
		if err != want {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
	write := func(i int, p string) error {
		_, err := s.Choice(i).Write([]byte(p))
		return err
	}
	must(nil, s.Ping())
	must(nil, s.Choice(1).Start("B", "2"))
	must(ErrLimit, write(1, "one two three"))
	must(ErrLimit, write(1, "more"))
	must(nil, s.Choice(0).Start("A", "1"))
	must(nil, s.Ping())
	must(nil, s.Choice(1).End())
	must(ErrLimit, write(1, "more"))
	must(ErrLimit, write(0, "one END two"))
	must(nil, s.Choice(1).End())
	must(nil, s.Finish())
	if got := out.String(); got != want || counted != 1 {
		t.Errorf("prompt counted %d times; got\n%s\nwant\n%s", counted, got, want)
	}
}

func TestChoiceEnds(t *testing.T) {
	var out bytes.Buffer
	s := NewStream(&out, testReply(KindText), StreamConfig{Choices: 2})
	if err := s.Choice(1).End(); err != nil {
		t.Fatal(err)
	}
	size := out.Len()
	_, err := s.Choice(1).Write([]byte("x"))
	if !errors.Is(err, ErrEnded) || s.Choice(1).End() != nil || s.Choice(1).Start("", "") != nil || out.Len() != size {
		t.Errorf("got %v, and then came %q", err, out.Bytes()[size:])
	}
	if _, err := s.Choice(0).Write([]byte("x")); err != nil || s.Finish() != nil {
		t.Errorf("the other choice: %v", err)
	}
}

// Several agents and a heartbeat write at one time. The race detector watches.
func TestStreamConcurrently(t *testing.T) {
	var out bytes.Buffer
	s := NewStream(&out, testReply(KindChat), StreamConfig{Choices: 4, IncludeUsage: true})
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for range 100 {
				if _, err := s.Choice(i).Write([]byte(strconv.Itoa(i))); err != nil {
					t.Error(err)
				}
			}
			if err := s.Choice(i).End(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Go(func() {
		for range 100 {
			if err := s.Ping(); err != nil {
				t.Error(err)
			}
		}
	})
	group.Wait()
	if err := s.Finish(); err != nil {
		t.Fatal(err)
	}
	events := strings.ReplaceAll(out.String(), ": ping\n", "")
	for i, text := range joined(t, []byte(events), KindChat) {
		if text != strings.Repeat(strconv.Itoa(i), 100) {
			t.Errorf("choice %d: got %q", i, text)
		}
	}
}

// The quick way to write a chunk must not differ from the typed one.
func TestTemplate(t *testing.T) {
	texts := []string{"", "x", "Hel\"lo\\\n\r\t\b\f\x00\x1f\x7f", "é€😀", "<&>", "a\u0085\u2028\u2029\u0085b", "�", `"content":""`}
	for _, kind := range []Kind{KindChat, KindText} {
		for _, usage := range []bool{false, true} {
			for _, model := range []string{"m", `"content":"" "text":"" \ é` + "\u2028"} {
				reply := testReply(kind)
				reply.Model = model
				c := NewStream(io.Discard, reply, StreamConfig{IncludeUsage: usage, Choices: 3}).Choice(2)
				_ = c.Start(`"content":""`, "task_1\u0085")
				for _, text := range texts {
					want := "data: " + string(c.chunk(Delta{Content: &text}, text, nil)) + "\n\n"
					if got := string(c.template.append(nil, text)); got != want {
						t.Errorf("got\n%s\nwant\n%s", got, want)
					}
				}
			}
		}
	}
}

func BenchmarkChunk(b *testing.B) {
	for _, r := range []struct {
		name   string
		config StreamConfig
	}{
		{"plain", StreamConfig{}},
		{"usage", StreamConfig{IncludeUsage: true}},
		{"stop", StreamConfig{Limits: Limits{Stop: []string{"\n\n\n", "END"}}}},
		{"max_tokens", StreamConfig{Limits: Limits{MaxTokens: math.MaxInt}}},
	} {
		b.Run(r.name, func(b *testing.B) {
			s := NewStream(io.Discard, testReply(KindChat), r.config)
			p := []byte("The quick brown fox jumps over the lazy dog.\n")
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Choice(0).Write(p); err != nil {
					b.Fatal(err)
				}
			}
		})
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

// joined checks the framing of a stream that ended well and returns the texts of
// its choices, of which there are four at most.
func joined(t *testing.T, stream []byte, kind Kind) []string {
	t.Helper()
	body, ok := strings.CutSuffix(string(stream), "data: [DONE]\n\n")
	if !ok {
		t.Fatalf("the stream does not end with the end mark")
	}
	texts := make([]string, 4)
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
				texts[choice.Index] += choice.Text
			}
			continue
		}
		var c ChatChunk
		if err := json.Unmarshal([]byte(data), &c, json.RejectUnknownMembers(true)); err != nil {
			t.Fatal(err)
		}
		for _, choice := range c.Choices {
			if choice.Delta.Content != nil {
				texts[choice.Index] += *choice.Delta.Content
			}
		}
	}
	return texts
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
		s := NewStream(&out, testReply(kind), StreamConfig{IncludeUsage: usage})
		for rest := output; len(rest) > 0; {
			k := min(max(n, 1, len(output)/256), len(rest)) // a long input in few steps
			_, _ = s.Choice(0).Write(rest[:k])
			rest = rest[k:]
		}
		if err := s.Finish(); err != nil {
			t.Fatal(err)
		}
		if got := joined(t, out.Bytes(), kind)[0]; got != validText(output) {
			t.Errorf("%q came back as %q", output, got)
		}
	})
}
