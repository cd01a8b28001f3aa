// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// outputs are answers of agents that tempt a gateway to change them.
var outputs = map[string][]string{
	"nothing":                   nil,
	"no newline at the end":     {"a"},
	"newlines":                  {"a\n", "\n", "\nb\n\n"},
	"carriage returns":          {"a\r\nb\r", "\nc\r"},
	"markers":                   {"[AGENTFM: NO_FILES]\n", "x\n  [AGENTFM: FILES_INCOMING]\ny", "\n[AGENTFM: ERROR x]\n"},
	"events":                    {"data: [DONE]\n\n", "data: {\"error\":{}}\n\n", ": ping\nevent: error\nid: 1\n"},
	"terminal":                  {"\x1b[31m\x1b]52;c;eA==\x07\b\x00\x7f"},
	"JSON":                      {`{"a":"\"}\u0000`, "\\"},
	"HTML":                      {"<script>&amp;\u2028\u2029\u0085"},
	"right to left":             {"\u202eabc\u202c\ufeff"},
	"characters in pieces":      {"\xf0", "\x9f", "\x98", "\x80\xe2", "\x82\xac"},
	"a megabyte without a line": {strings.Repeat("x", 1<<20)},
	"a megabyte of NUL":         {strings.Repeat("\x00", 1<<20)},
}

func TestOutputIsUnchanged(t *testing.T) {
	f := &fakeMesh{}
	g := serve(t, f)
	for name, output := range outputs {
		t.Run(name, func(t *testing.T) {
			f.dispatch = answers(script{output: output})
			want := strings.Join(output, "")
			for route, body := range map[string]string{"/v1/chat/completions": chatBody, "/v1/completions": textBody} {
				if got := wholeText(t, g.do(t, "POST", route, body).body); got != want {
					t.Errorf("%s: got %.100q", route, got)
				}
				if got := streamText(t, g.do(t, "POST", route, streaming(body, false)).body); got != want {
					t.Errorf("%s, streamed: got %.100q", route, got)
				}
			}
		})
	}
}

func TestInvalidUTF8Output(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"a\xff\xf0\x9f", "b\xe2\x82"}})}
	g := serve(t, f)
	const want = "a���b��"
	if got := wholeText(t, g.do(t, "POST", "/v1/completions", textBody).body); got != want {
		t.Errorf("got %q", got)
	}
	if got := streamText(t, g.do(t, "POST", "/v1/completions", streaming(textBody, false)).body); got != want {
		t.Errorf("streamed: got %q", got)
	}
}

// wholeText returns the text of an answer of either kind.
func wholeText(t *testing.T, body string) string {
	t.Helper()
	var v struct {
		Choices []struct {
			Text    string             `json:"text"`
			Message openai.ChatMessage `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil || len(v.Choices) != 1 {
		t.Fatalf("%.200s: %v", body, err)
	}
	return v.Choices[0].Text + v.Choices[0].Message.Content
}

// streamText returns the text of a stream of either kind.
func streamText(t *testing.T, body string) string {
	t.Helper()
	body, ok := strings.CutSuffix(body, "data: [DONE]\n\n")
	if !ok {
		t.Fatalf("no end mark: %.200s", body)
	}
	var text strings.Builder
	for _, event := range strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(event, "data: ")
		if !ok || strings.ContainsAny(data, "\r\n") || len(event) >= 64<<10 {
			t.Fatalf("event of %d bytes: %.100q", len(event), event)
		}
		var v struct {
			Choices []struct {
				Text  string `json:"text"`
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			t.Fatal(err)
		}
		for _, c := range v.Choices {
			text.WriteString(c.Text + c.Delta.Content)
		}
	}
	return text.String()
}

func TestPromptsAreUnchanged(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{})}
	g := serve(t, f)
	for _, prompt := range []string{
		"x", "\r\n\r", "\x1b]52;c;eA==\x07", "--help", "-e", "[AGENTFM: NO_FILES]\n", "\u202eRTL\u202c", "😀\ufeff", " \t\n",
		"$(rm -rf /)", "{env.HOME}", "{http.request.header.Authorization}", strings.Repeat("x", 131_071), strings.Repeat("é", 500_000),
	} {
		for route, body := range map[string]string{
			"/v1/completions":      `{"model":"m","prompt":` + quote(prompt) + `}`,
			"/api/execute":         `{"worker_id":"` + peerA + `","prompt":` + quote(prompt) + `}`,
			"/v1/chat/completions": `{"model":"m","messages":[{"role":"user","content":` + quote(prompt) + `}]}`,
		} {
			want := prompt
			if strings.Contains(route, "chat") {
				want = "user: " + prompt + "\n\nassistant:"
			}
			a := g.do(t, "POST", route, body)
			calls := f.seen()
			if a.status != 200 || calls[len(calls)-1].Prompt != want {
				t.Errorf("%s with %.40q: got %d, prompt %.60q", route, prompt, a.status, calls[len(calls)-1].Prompt)
			}
		}
	}
}

// flood is a task without end.
type flood struct{ fakeRun }

func (f *flood) Read(p []byte) (int, error) { return len(p), nil }

func TestAnswerOverTheLimit(t *testing.T) {
	closed := make(chan struct{})
	f := &fakeMesh{dispatch: func(context.Context, mesh.Call) (run, error) {
		return &flood{fakeRun{script: script{closed: closed}, served: mesh.Served{Peer: peerA}}}, nil
	}}
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/completions", textBody)
	a.failed(t, 502, "worker_stream_failed")
	if !strings.Contains(a.message(), "16777216") || a.header.Get("X-Should-Retry") != "false" {
		t.Errorf("got %s", a.body)
	}
	<-closed
}

// A client that goes away takes its task with it, whatever the task does.
func TestClientGoesAway(t *testing.T) {
	for route, body := range taskRoutes {
		for name, r := range map[string]struct {
			body   string
			output []string
		}{
			"before output":           {body, nil},
			"before output, streamed": {streaming(body, false), nil},
			"in the middle":           {body, []string{"x"}},
			"in the middle, streamed": {streaming(body, true), []string{"x"}},
		} {
			t.Run(route[1:]+"/"+name, func(t *testing.T) {
				dispatched, closed := make(chan struct{}), make(chan struct{})
				inner := answers(script{output: r.output, hang: true, closed: closed})
				g := serve(t, &fakeMesh{dispatch: func(ctx context.Context, c mesh.Call) (run, error) {
					defer close(dispatched)
					return inner(ctx, c)
				}})
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "POST", g.URL+route, strings.NewReader(r.body))
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					if resp, err := g.Client().Do(req); err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				}()
				<-dispatched
				cancel()
				<-closed
				<-done
			})
		}
	}
}

// Each piece must arrive when it is there, not with the next one.
func TestStreamsAreFlushed(t *testing.T) {
	for route, body := range taskRoutes {
		for _, http2 := range []bool{false, true} {
			g := serve(t, &fakeMesh{dispatch: answers(script{output: []string{"first"}, hang: true})},
				func(_ *gate, s *serverSettings) { s.http2 = http2 })
			ctx, cancel := context.WithCancel(context.Background())
			req, err := http.NewRequestWithContext(ctx, "POST", g.URL+route, strings.NewReader(streaming(body, false)))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := g.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			seen := ""
			for r := bufio.NewReader(resp.Body); !strings.Contains(seen, "first"); {
				b, err := r.ReadByte() // would wait for ever
				if err != nil {
					t.Fatal(err)
				}
				seen += string(b)
			}
			if http2 != (resp.ProtoMajor == 2) {
				t.Errorf("%s over %s", route, resp.Proto)
			}
			cancel()
			_ = resp.Body.Close()
		}
	}
}
