// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// recorded answers with h and keeps the body of the request.
func recorded(t *testing.T, body *map[string]any, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		*body = nil
		if err := json.NewDecoder(r.Body).Decode(body); err != nil {
			t.Error(err)
		}
		w.Header().Set("X-AgentFM-Peer", "12D3")
		h(w, r)
	}
}

// events answers with events.
func events(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Request-Id", "req-1")
		_, _ = io.WriteString(w, text)
	}
}

func TestChat(t *testing.T) {
	var body map[string]any
	c := fake(t, routes{
		"POST /v1/chat/completions": recorded(t, &body, answer(200, `{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},"more":{}}`)),
		"POST /v1/completions":      recorded(t, &body, answer(200, `{"id":"cmpl-1","choices":[{"index":0,"text":"hi","finish_reason":"stop"}],"usage":{"total_tokens":3}}`)),
	})
	zero := 0.0
	chat, err := c.OpenAI.Chat(t.Context(), ChatRequest{Model: "m", Messages: []ChatMessage{{"user", "hello"}}, Sampling: Sampling{
		Temperature: &zero, MaxTokens: 5, Stop: []string{"x"}, Extra: map[string]any{"tools": []string{}, "model": "other", "stream": true}}}, PinWorker("12D3"))
	if err != nil || chat.Text() != "hi" || chat.Usage.TotalTokens != 3 || chat.Served.WorkerID != "12D3" || chat.Served.RequestID != "req-1" {
		t.Errorf("%+v, %v", chat, err)
	}
	want := map[string]any{"model": "other", "messages": []any{map[string]any{"role": "user", "content": "hello"}}, "temperature": 0.0, "max_tokens": 5.0, "stop": []any{"x"}, "tools": []any{}}
	if !reflect.DeepEqual(body, want) {
		t.Errorf("%v", body)
	}
	text, err := c.OpenAI.Complete(t.Context(), CompletionRequest{Model: "m", Prompt: "hello"})
	if err != nil || text.Text() != "hi" || text.Usage.Usage.TotalTokens != 3 || text.Served.WorkerID != "12D3" {
		t.Errorf("%+v, %v", text, err)
	}
	if !reflect.DeepEqual(body, map[string]any{"model": "m", "prompt": "hello"}) {
		t.Errorf("%v", body)
	}
	if (&ChatCompletion{}).Text() != "" || (&Completion{}).Text() != "" || (&ChatChunk{}).Text() != "" || (&CompletionChunk{}).Text() != "" {
		t.Error("an answer without choices has a text")
	}
}

const chatEvents = ": ping\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}],\"agentfm_peer_id\":\"12D3\"}\r\n\r\n" +
	"data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"}},{\"index\":0,\"delta\":{\"content\":\"he\"}}]}\n\n" +
	"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"llo\"},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n"

func TestChatStream(t *testing.T) {
	for name, f := range map[string]struct {
		h    http.HandlerFunc
		text string
		kind Kind
	}{
		"whole":       {events(chatEvents + "data: [DONE]\n\n"), "hello", ""},
		"after done":  {events(chatEvents + "data: [DONE]\n\ndata: x\n\n"), "hello", ""},
		"no end mark": {events(chatEvents), "hello", ErrWorkerStream},
		"half event":  {events(chatEvents + "data: [DONE]"), "hello", ErrWorkerStream},
		"error":       {events(chatEvents + `data: {"error":{"message":"killed","type":"server_error","code":"worker_stream_failed","param":null,"cause":"oom_killed"}}` + "\n\n"), "hello", ErrWorkerStream},
		"overloaded":  {events(`data: {"error":{"message":"full","code":"mesh_overloaded"}}` + "\n\n"), "", ErrMeshOverloaded},
		"not JSON":    {events("data: {\n\n"), "", ErrProtocol},
		"not events":  {answer(200, `{}`), "", ErrProtocol},
		"breaks": {func(w http.ResponseWriter, r *http.Request) {
			events(chatEvents)(w, r)
			broken(w, r)
		}, "hello", ErrConnection},
		"refused":   {problem(404, CodeModelNotFound), "", ErrModelNotFound},
		"too large": {events("data: " + strings.Repeat("x", maxEvent) + "\n\n"), "", ErrProtocol},
	} {
		var body map[string]any
		c := fake(t, routes{"POST /v1/chat/completions": recorded(t, &body, f.h)})
		text := ""
		s, err := c.OpenAI.ChatStream(t.Context(), ChatRequest{Model: "m", Messages: []ChatMessage{{"user", "hi"}}})
		if err == nil {
			if s.Served.WorkerID != "12D3" {
				t.Error(s.Served)
			}
			for chunk, e := range s.All() {
				if err = e; e == nil {
					text += chunk.Text()
				}
			}
		}
		if e, ok := errors.AsType[*Error](err); text != f.text || ok != (f.kind != "") || ok && (e.Kind != f.kind || e.Kind != ErrProtocol && e.RequestID != "req-1") {
			t.Errorf("%s: %q, %+v", name, text, err)
		}
		if body["stream"] != true {
			t.Error(body)
		}
		if e, ok := errors.AsType[*Error](err); name == "error" && (!ok || e.Cause != "oom_killed" || e.Code != CodeWorkerStreamFailed) {
			t.Errorf("%+v", err)
		}
	}
}

func TestCompleteStream(t *testing.T) {
	c := fake(t, routes{"POST /v1/completions": events("data:{\"choices\":[{\"index\":0,\"text\":\"a\"}]}\r\rdata: {\"choices\":[{\"index\":0,\"text\":\"b\"}]}\n\ndata: [DONE]\n\n")})
	s, err := c.OpenAI.CompleteStream(t.Context(), CompletionRequest{Model: "m", Prompt: "p"})
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for chunk, err := range s.All() {
		if err != nil {
			t.Fatal(err)
		}
		text += chunk.Text()
	}
	if text != "ab" {
		t.Error(text)
	}
}

func TestModels(t *testing.T) {
	c := fake(t, routes{
		"GET /v1/models": answer(200, `{"object":"list","data":[{"id":"12D3","agentfm_engine":"llama3.2","owned_by":"ann"}]}`),
		"GET /v1/models/{id}": func(w http.ResponseWriter, r *http.Request) {
			answer(200, map[string]string{"id": r.PathValue("id"), "agentfm_peer_id": "12D3"})(w, r)
		},
	})
	models, err := c.OpenAI.Models(t.Context())
	if err != nil || len(models) != 1 || models[0].Engine != "llama3.2" {
		t.Error(models, err)
	}
	if m, err := c.OpenAI.Model(t.Context(), "a/b c"); err != nil || m.ID != "a/b c" || m.PeerID != "12D3" {
		t.Error(m, err)
	}
	if _, err := c.OpenAI.Model(t.Context(), ""); !errors.Is(err, ErrInvalidRequest) {
		t.Error(err)
	}
}

func TestEmbeddings(t *testing.T) {
	for text, want := range map[string]struct {
		v  [][]float32
		is error
	}{
		`{"data":[{"index":1,"embedding":[3,4]},{"index":0,"embedding":[1,2.5]}]}`:     {[][]float32{{1, 2.5}, {3, 4}}, nil},
		`{"data":[{"index":0,"embedding":"AACAPwAAIEA="},{"index":1,"embedding":[]}]}`: {[][]float32{{1, 2.5}, {}}, nil},
		`{"data":[{"index":0,"embedding":[1]}]}`:                                       {nil, ErrProtocol},
		`{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}`:           {nil, ErrProtocol},
		`{"data":[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]}`:           {nil, ErrProtocol},
		`{"data":[{"index":0,"embedding":[1]},{"index":-1,"embedding":[1]}]}`:          {nil, ErrProtocol},
		`{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":"AAA"}]}`:         {nil, ErrProtocol},
		`{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":{}}]}`:            {nil, ErrProtocol},
		`{"error":{"message":"no"}}`:                                                   {nil, ErrProtocol},
	} {
		var body map[string]any
		c := fake(t, routes{"POST /v1/embeddings": recorded(t, &body, answer(200, text))})
		v, err := c.OpenAI.Embeddings(t.Context(), "m", []string{"a", "b"})
		if !errors.Is(err, want.is) || !reflect.DeepEqual(v, want.v) {
			t.Errorf("%s: %v, %v", text, v, err)
		}
		if !reflect.DeepEqual(body, map[string]any{"model": "m", "input": []any{"a", "b"}, "encoding_format": "float"}) {
			t.Error(body)
		}
	}
	c := fake(t, routes{"/": problem(404, CodeUnknownURL)})
	if _, err := c.OpenAI.Embeddings(t.Context(), "m", []string{"a"}); !errors.Is(err, CodeUnknownURL) {
		t.Error(err)
	}
}

// FuzzEvents wants the reader of events not to depend on how they come, and to end.
func FuzzEvents(f *testing.F) {
	f.Add(chatEvents)
	f.Add("\ufeffdata: a\n\nid: 1\rdata\r\revent:x\r\ndata: b\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		var all [2]strings.Builder
		for i, r := range []io.Reader{strings.NewReader(text), io.MultiReader(strings.NewReader(text[:len(text)/2]), strings.NewReader(text[len(text)/2:]))} {
			for events := newEventReader(r); ; {
				ev, err := events.next()
				if err != nil {
					break
				}
				all[i].WriteString(ev.name + "|" + ev.id + "|" + string(ev.data) + "\n")
			}
		}
		if all[0].String() != all[1].String() {
			t.Errorf("%q: %q, %q", text, all[0].String(), all[1].String())
		}
	})
}
