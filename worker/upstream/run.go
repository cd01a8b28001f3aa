// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// errNotPrepared is for a task that comes before the server was asked.
var errNotPrepared = errors.New("openai runtime is not prepared")

// Run implements worker.Runtime: the prompt is the one message of a chat. What goes
// wrong is told in a few words; the log has the rest.
func (r *Runtime) Run(ctx context.Context, task worker.Task) (worker.Exit, error) {
	v := r.view.Load()
	if v == nil {
		return worker.Exit{}, errNotPrepared
	}
	r.working.Add(1)
	defer r.working.Add(-1)
	resp, err := r.ask(ctx, v.first, task.Prompt)
	var usage *wire.Usage
	if err == nil {
		defer resp.Body.Close()
		usage, err = r.answerOf(resp, task.Output)
	}
	if ctx.Err() != nil {
		return worker.Exit{}, context.Cause(ctx)
	}
	if err == nil {
		return worker.Exit{Usage: usage}, nil
	}
	r.logger.Warn("a task failed at the server", zap.String("task", task.ID), zap.Error(err))
	reason := "the agent's model server failed"
	if f, ok := errors.AsType[failure](err); ok {
		reason = string(f)
	}
	return worker.Exit{Code: 1, Reason: reason}, nil
}

// failure is an error that may be shown to clients.
type failure string

// Error implements error.
func (f failure) Error() string { return string(f) }

// ask sends a prompt.
func (r *Runtime) ask(ctx context.Context, model, prompt string) (*http.Response, error) {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	type options struct {
		Usage bool `json:"include_usage"`
	}
	body, err := json.Marshal(struct {
		Model    string    `json:"model"`
		Messages []message `json:"messages"`
		Stream   bool      `json:"stream"`
		Options  options   `json:"stream_options"`
	}{model, []message{{"user", prompt}}, true, options{true}})
	if err != nil {
		return nil, err
	}
	req := r.request(ctx, http.MethodPost, "/chat/completions")
	req.Header["Content-Type"] = []string{"application/json"}
	req.Header["Accept"] = []string{"text/event-stream"}
	setBody(req, body)
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() == nil {
			r.doubtful()
		}
		return nil, fmt.Errorf("%w: %w", failure(textUnreachable), err)
	}
	return resp, nil
}

// answerOf copies the text of an answer to output, as it comes, and returns the usage where
// the server tells it.
func (r *Runtime) answerOf(resp *http.Response, output io.Writer) (usage *wire.Usage, err error) {
	if resp.StatusCode != http.StatusOK {
		return nil, failure(fmt.Sprintf("the agent's model server answered with status %d", resp.StatusCode))
	}
	if mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mediaType != "text/event-stream" {
		return nil, failure("the agent's model server does not stream")
	}
	finished := false
	for events := newEvents(resp.Body); ; {
		ev, err := events.next()
		switch {
		case err != nil && finished: // what is missing is not of the answer
			return usage, nil
		case errors.Is(err, io.EOF):
			return nil, failure("the agent's model server broke off its answer")
		case errors.Is(err, errEvent):
			return nil, err
		case err != nil:
			return nil, fmt.Errorf("%w: %w", failure("the agent's model server broke off its answer"), err)
		case string(ev.data) == "[DONE]":
			return usage, nil
		}
		text, end, counted, err := r.piece(ev)
		if err != nil {
			return nil, err
		}
		finished = finished || end
		usage = cmp.Or(counted, usage)
		if text == "" {
			continue
		}
		if _, err := io.WriteString(output, text); err != nil {
			return nil, fmt.Errorf("writing the answer: %w", err)
		}
	}
}

// chunk is what is read of a piece of a chat's answer.
type chunk struct {
	Choices []struct {
		Index int `json:"index"`
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
		FinishReason string `json:"finish_reason"`
	} `json:"choices"`
	Usage json.RawMessage `json:"usage"`
	Error json.RawMessage `json:"error"`
}

// usageOf reads what a server says of the usage; nil where that is none.
func usageOf(b json.RawMessage) *wire.Usage {
	u := new(wire.Usage)
	if len(b) == 0 || json.Unmarshal(b, u) != nil || !u.Valid() {
		return nil
	}
	return u
}

// maxDetail bounds what the log has of an error of the server's.
const maxDetail = 300

// piece returns the text of an event, whether the answer ends with it, and the usage
// where it has that.
func (r *Runtime) piece(ev event) (text string, end bool, usage *wire.Usage, err error) {
	var c chunk
	if err := json.Unmarshal(ev.data, &c); err != nil && ev.name != "error" {
		return "", false, nil, errors.New("an event is not a chunk of a chat")
	}
	if ev.name == "error" || len(c.Error) > 0 && string(c.Error) != "null" {
		return "", false, nil, fmt.Errorf("an error came in the stream: %s", openai.Clip(r.key.hide(string(ev.data)), maxDetail))
	}
	for _, choice := range c.Choices {
		if choice.Index == 0 {
			text += choice.Delta.Content
			end = end || choice.FinishReason != ""
		}
	}
	return text, end, usageOf(c.Usage), nil
}
