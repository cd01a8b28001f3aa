// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// delta is an event with a piece of an answer.
func delta(text string) string {
	b, _ := json.Marshal(text)
	return `data: {"choices":[{"index":0,"delta":{"content":` + string(b) + `},"finish_reason":null}]}` + "\n\n"
}

const finish = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"

func TestRun(t *testing.T) {
	sse := "text/event-stream; charset=utf-8"
	failed := worker.Exit{Code: 1, Reason: "the agent's model server failed"}
	broke := worker.Exit{Code: 1, Reason: "the agent's model server broke off its answer"}
	for name, c := range map[string]struct {
		status      int
		contentType string
		body        string
		out         string
		exit        worker.Exit
	}{
		"whole":             {200, sse, ": hello\n\n" + delta("He") + delta("llo \u2028\x00") + finish + "data: [DONE]\n\n", "Hello \u2028\x00", worker.Exit{}},
		"without [DONE]":    {200, sse, delta("a") + finish, "a", worker.Exit{}},
		"only [DONE]":       {200, sse, delta("a") + "data: [DONE]\n\nrest", "a", worker.Exit{}},
		"with usage":        {200, sse, delta("a") + finish + `data: {"choices":[],"usage":{"total_tokens":1}}` + "\n\ndata: [DONE]\n\n", "a", worker.Exit{}},
		"with a count":      {200, sse, delta("a") + finish + `data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}` + "\n\ndata: [DONE]\n\n", "a", worker.Exit{Usage: &wire.Usage{Prompt: 3, Completion: 1}}},
		"with odd usage":    {200, sse, delta("a") + `data: {"choices":[],"usage":{"prompt_tokens":"3"}}` + "\n\n" + finish, "a", worker.Exit{}},
		"role and null":     {200, sse, `data: {"choices":[{"delta":{"role":"assistant","content":null}}],"error":null}` + "\n\n" + finish, "", worker.Exit{}},
		"another choice":    {200, sse, `data: {"choices":[{"index":1,"delta":{"content":"x"}}]}` + "\n\n" + delta("a") + finish, "a", worker.Exit{}},
		"carriage returns":  {200, sse, strings.ReplaceAll(delta("a")+finish, "\n", "\r\n"), "a", worker.Exit{}},
		"ends early":        {200, sse, delta("a"), "a", broke},
		"nothing":           {200, sse, "", "", broke},
		"cut in an event":   {200, sse, delta("a") + `data: {"choices":[`, "a", failed},
		"error":             {200, sse, delta("a") + `data: {"error":{"message":"out of memory, ` + secret + `"}}` + "\n\n", "a", failed},
		"event of an error": {200, sse, "event: error\ndata: broken\n\n", "", failed},
		"not a chunk":       {200, sse, "data: 5\n\n", "", failed},
		"too large":         {200, sse, "data: " + strings.Repeat("x", 2*maxEvent) + "\n\n", "", failed},
		"status":            {500, "application/json", `{"error":"` + secret + `"}`, "", worker.Exit{Code: 1, Reason: "the agent's model server answered with status 500"}},
		"key":               {401, "application/json", secret, "", worker.Exit{Code: 1, Reason: "the agent's model server answered with status 401"}},
		"redirect":          {307, "", "", "", worker.Exit{Code: 1, Reason: "the agent's model server answered with status 307"}},
		"not a stream":      {200, "application/json", `{"choices":[]}`, "", worker.Exit{Code: 1, Reason: "the agent's model server does not stream"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			var got string
			f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got = string(b)
				w.Header().Set("Content-Type", c.contentType)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			r, _ := ready(t, f, func(r *Runtime) { r.APIKey = secret })
			var out bytes.Buffer
			exit, err := r.Run(t.Context(), worker.Task{ID: "t", Prompt: "user: a\x00é\n\nassistant:", Output: &out})
			r.transport.CloseIdleConnections()
			if out.String() != c.out || !reflect.DeepEqual(exit, c.exit) || err != nil {
				t.Errorf("got %q, %+v, %v", out.String(), exit, err)
			}
			if want := `{"model":"first","messages":[{"role":"user","content":"user: a\u0000é\n\nassistant:"}],"stream":true,"stream_options":{"include_usage":true}}`; got != want {
				t.Errorf("the server got %s", got)
			}
		})
	}
}

// deaf is an output to which nobody listens.
type deaf struct{}

func (deaf) Write([]byte) (int, error) { return 0, errors.New("nobody listens") }

// waits is an output that tells what it got.
type waits chan string

func (c waits) Write(p []byte) (int, error) {
	c <- string(p)
	return len(p), nil
}

// TestRunStream wants each piece as it comes, and the server to see at once that the
// task is stopped, or that nobody listens.
func TestRunStream(t *testing.T) {
	f := newFake(t)
	gone := make(chan struct{}, 1)
	f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, delta("a"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	r, _ := ready(t, f, nil)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	out := make(waits)
	ended := make(chan error)
	go func() {
		_, err := r.Run(ctx, worker.Task{Output: out})
		ended <- err
	}()
	if got := <-out; got != "a" {
		t.Errorf("got %q", got)
	}
	why := errors.New("the task was stopped")
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	<-gone
	if exit, err := r.Run(context.Background(), worker.Task{Output: deaf{}}); exit.Code != 1 || err != nil {
		t.Errorf("got %v, %v", exit, err)
	}
	<-gone
}

func TestRunUnreachable(t *testing.T) {
	f := newFake(t)
	r, _ := ready(t, f, nil)
	f.on("/v1/chat/completions", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, delta("a"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	var out bytes.Buffer
	exit, err := r.Run(t.Context(), worker.Task{Output: &out})
	if out.String() != "a" || exit.Reason != "the agent's model server broke off its answer" || err != nil {
		t.Errorf("broken off: got %q, %v, %v", out.String(), exit, err)
	}
	f.Close()
	if exit, err := r.Run(t.Context(), worker.Task{Output: &out}); exit.Code != 1 || exit.Reason != textUnreachable || err != nil {
		t.Errorf("refused: got %v, %v", exit, err)
	}
	if _, err := new(Runtime).Run(t.Context(), worker.Task{}); !errors.Is(err, errNotPrepared) {
		t.Errorf("not prepared: got %v", err)
	}
	if r.PromptLimit() != wire.MaxTaskFrame || !r.PromptNUL() {
		t.Error("limits")
	}
}
