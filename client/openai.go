// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/Agent-FM/caddy-agentfm/openai"
)

// OpenAIService speaks OpenAI's API, as far as agents do. For tools, images and all else
// that a model server behind a worker may know, use OpenAI's own library:
//
//	openai.NewClient(option.WithBaseURL(c.OpenAI.BaseURL()), option.WithAPIKey(c.APIKey()))
type OpenAIService struct{ c *Client }

// BaseURL returns the base URL for OpenAI's libraries.
func (s *OpenAIService) BaseURL() string { return s.c.baseURL + "/v1" }

// ChatMessage is a message of a chat.
type ChatMessage struct {
	Role    string `json:"role"` // "system", "user", "assistant"
	Content string `json:"content"`
}

// Sampling are the fields that chats and completions have in common.
type Sampling struct {
	// MaxTokens is where the answer is cut; 0 is nowhere.
	MaxTokens int `json:"max_tokens,omitzero"`
	// Stop are texts before which it is.
	Stop []string `json:"stop,omitzero"`
	// N is how many answers there shall be; 0 is one.
	N           int      `json:"n,omitzero"`
	Temperature *float64 `json:"temperature,omitzero"`
	TopP        *float64 `json:"top_p,omitzero"`
	Seed        *int     `json:"seed,omitzero"`
	// Extra are further fields, by their names in JSON. One that has a field of its own
	// here wins over that.
	Extra map[string]any `json:"-"`
}

// ChatRequest asks for the next message of a chat.
type ChatRequest struct {
	// Model is a peer id, an agent's name or a model engine.
	Model    string        `json:"model"`
	Messages []ChatMessage `json:"messages"`
	Sampling
}

// CompletionRequest asks for what follows a text.
type CompletionRequest struct {
	// Model is a peer id, an agent's name or a model engine.
	Model  string `json:"model"`
	Prompt string `json:"prompt"`
	Sampling
}

// ChatCompletion is a whole answer to a [ChatRequest]. It has the fields of OpenAI's: Choices
// with a Message each, and Usage.
type ChatCompletion struct {
	openai.ChatCompletion
	Served Served `json:"-"`
}

// Text returns the text of the first choice; empty when there is none.
func (c *ChatCompletion) Text() string {
	if len(c.Choices) == 0 {
		return ""
	}
	return c.Choices[0].Message.Content
}

// Completion is a whole answer to a [CompletionRequest]. It has the fields of OpenAI's: Choices
// with a Text each, and Usage.
type Completion struct {
	openai.Completion
	Served Served `json:"-"`
}

// Text returns the text of the first choice; empty when there is none.
func (c *Completion) Text() string {
	if len(c.Choices) == 0 {
		return ""
	}
	return c.Choices[0].Text
}

// ChatChunk is a piece of an answer that is streamed. It has the fields of OpenAI's: Choices
// with a Delta each.
type ChatChunk struct{ openai.ChatChunk }

// Text returns what the chunk adds to the text of the first choice.
func (c *ChatChunk) Text() string {
	for _, choice := range c.Choices {
		if choice.Index == 0 && choice.Delta.Content != nil {
			return *choice.Delta.Content
		}
	}
	return ""
}

// CompletionChunk is a piece of an answer that is streamed. It has the fields of OpenAI's:
// Choices with a Text each.
type CompletionChunk struct{ openai.Completion }

// Text returns what the chunk adds to the text of the first choice.
func (c *CompletionChunk) Text() string {
	for _, choice := range c.Choices {
		if choice.Index == 0 {
			return choice.Text
		}
	}
	return ""
}

// Chat returns the next message of a chat, when all of it is there.
func (s *OpenAIService) Chat(ctx context.Context, r ChatRequest, opts ...CallOption) (*ChatCompletion, error) {
	var answer ChatCompletion
	header, err := s.post(ctx, "/v1/chat/completions", r, r.Extra, &answer.ChatCompletion, opts)
	if err != nil {
		return nil, err
	}
	answer.Served = servedBy(header)
	return &answer, nil
}

// ChatStream returns the next message of a chat as it comes.
func (s *OpenAIService) ChatStream(ctx context.Context, r ChatRequest, opts ...CallOption) (*Stream[ChatChunk], error) {
	return openEvents[ChatChunk](ctx, s.c, "/v1/chat/completions", r, r.Extra, opts)
}

// Complete returns what follows a text, when all of it is there.
func (s *OpenAIService) Complete(ctx context.Context, r CompletionRequest, opts ...CallOption) (*Completion, error) {
	var answer Completion
	header, err := s.post(ctx, "/v1/completions", r, r.Extra, &answer.Completion, opts)
	if err != nil {
		return nil, err
	}
	answer.Served = servedBy(header)
	return &answer, nil
}

// CompleteStream returns what follows a text as it comes.
func (s *OpenAIService) CompleteStream(ctx context.Context, r CompletionRequest, opts ...CallOption) (*Stream[CompletionChunk], error) {
	return openEvents[CompletionChunk](ctx, s.c, "/v1/completions", r, r.Extra, opts)
}

// Models returns the workers that are online, as OpenAI lists models.
func (s *OpenAIService) Models(ctx context.Context) ([]openai.Model, error) {
	var list openai.ModelList
	if err := s.c.get(ctx, "/v1/models", nil, &list); err != nil {
		return nil, err
	}
	return list.Data, nil
}

// Model returns the worker that a name is for now.
func (s *OpenAIService) Model(ctx context.Context, name string) (*openai.Model, error) {
	if name == "" {
		return nil, invalid("model", "the name of the model is missing")
	}
	var m openai.Model
	if err := s.c.get(ctx, "/v1/models/"+url.PathEscape(name), nil, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

// Embeddings returns a vector for each text, in their order, where a model server behind a
// worker makes them.
func (s *OpenAIService) Embeddings(ctx context.Context, model string, texts []string, opts ...CallOption) ([][]float32, error) {
	body := map[string]any{"model": model, "input": texts, "encoding_format": "float"}
	var answer struct {
		Data []struct {
			Index     int            `json:"index"`
			Embedding jsontext.Value `json:"embedding"`
		} `json:"data"`
	}
	if _, err := s.post(ctx, "/v1/embeddings", body, nil, &answer, opts); err != nil {
		return nil, err
	}
	vectors := make([][]float32, len(texts))
	for _, d := range answer.Data {
		if d.Index < 0 || d.Index >= len(texts) || vectors[d.Index] != nil {
			return nil, protocolError(nil, "the embeddings are not those of the texts")
		}
		v, err := vector(d.Embedding)
		if err != nil {
			return nil, protocolError(err, "an embedding cannot be read")
		}
		vectors[d.Index] = v
	}
	if len(answer.Data) != len(texts) {
		return nil, protocolError(nil, "there are %d embeddings of %d texts", len(answer.Data), len(texts))
	}
	return vectors, nil
}

// vector reads an embedding: an array of numbers, or the base64 of floats.
func vector(b jsontext.Value) (v []float32, err error) {
	if b.Kind() != '"' {
		err = json.Unmarshal(b, &v)
		return v, err
	}
	var coded string
	if err := json.Unmarshal(b, &coded); err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.DecodeString(coded)
	if err != nil || len(raw)%4 != 0 {
		return nil, errors.New("it is not base64 of numbers")
	}
	v = make([]float32, len(raw)/4)
	for i := range v {
		v[i] = math.Float32frombits(uint32(raw[4*i]) | uint32(raw[4*i+1])<<8 | uint32(raw[4*i+2])<<16 | uint32(raw[4*i+3])<<24)
	}
	return v, nil
}

// post asks a model for a whole answer.
func (s *OpenAIService) post(ctx context.Context, path string, body any, extra map[string]any, v any, opts []CallOption) (http.Header, error) {
	r, err := modelRequest(path, body, extra, false, opts)
	if err != nil {
		return nil, err
	}
	return s.c.call(ctx, r, v)
}

// modelRequest is a request to a model.
func modelRequest(path string, body any, extra map[string]any, stream bool, opts []CallOption) (request, error) {
	r := request{method: http.MethodPost, path: path, body: body, work: true}.with(opts)
	if len(extra) == 0 && !stream {
		return r, nil
	}
	b, err := json.Marshal(body, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return r, invalid("", "the request cannot be sent as JSON: %v", err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return r, invalid("", "the request cannot be sent as JSON: %v", err)
	}
	maps.Copy(fields, extra)
	delete(fields, "stream")
	if stream {
		fields["stream"] = true
		r.accept = "text/event-stream"
	}
	r.body = fields
	return r, nil
}

// openEvents asks a model for an answer that is streamed.
func openEvents[T any](ctx context.Context, c *Client, path string, body any, extra map[string]any, opts []CallOption) (*Stream[T], error) {
	r, err := modelRequest(path, body, extra, true, opts)
	if err != nil {
		return nil, err
	}
	return openStream(ctx, c, r, readEvents[T])
}

// readEvents reads an answer that is streamed. Only the mark at its end makes it whole.
func readEvents[T any](s *Stream[T], yield func(T, error) bool) {
	var none T
	if !isEventStream(s.resp.Header.Get("Content-Type")) {
		yield(none, withID(protocolError(nil, "the answer is no stream of events"), s.resp))
		return
	}
	for events := newEventReader(s.resp.Body); ; {
		ev, err := events.next()
		switch {
		case err == io.EOF:
			yield(none, withID(&Error{Kind: ErrWorkerStream, Code: CodeWorkerStreamFailed, Message: "the answer ended early: its end mark is missing"}, s.resp))
			return
		case errors.Is(err, errEventSize):
			yield(none, withID(protocolError(err, "reading the answer"), s.resp))
			return
		case err != nil:
			yield(none, s.failed(err, "reading the answer"))
			return
		}
		if string(ev.data) == "[DONE]" {
			return
		}
		if e := errorOf(ev.data); e != nil {
			yield(none, withID(e, s.resp))
			return
		}
		var piece T
		if err := decode(ev.data, &piece, "reading the answer"); err != nil {
			yield(none, err)
			return
		}
		if !yield(piece, nil) {
			return
		}
	}
}
