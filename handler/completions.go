// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// maxAnswer bounds an answer that is not streamed. It is held in memory until
// the agent has ended well; a larger one is an error, never cut.
const maxAnswer = 16 << 20

// completion is a request of one of OpenAI's kinds.
type completion struct {
	kind     openai.Kind
	model    string
	prompt   string
	body     []byte // that the prompt was made of
	param    string // the field that the prompt came in
	affinity func() string
	choices  int
	limits   openai.Limits
	stream   bool
	usage    bool // asked for at the end of a stream
	echo     openai.Echo
}

// chat serves POST /v1/chat/completions.
func (x *exchange) chat() error {
	return x.completion(func(body []byte) (completion, error) {
		req, err := openai.DecodeChat(body)
		return completion{
			kind: openai.KindChat, model: req.Model, prompt: req.Prompt(), param: "messages", affinity: req.Affinity,
			choices: req.N, limits: req.Limits, stream: req.Stream, usage: req.StreamOptions.IncludeUsage,
		}, err
	})
}

// completions serves POST /v1/completions.
func (x *exchange) completions() error {
	return x.completion(func(body []byte) (completion, error) {
		req, err := openai.DecodeCompletion(body)
		return completion{
			kind: openai.KindText, model: req.Model, prompt: string(req.Prompt), param: "prompt", affinity: req.Affinity,
			choices: req.N, limits: req.Limits, stream: req.Stream, usage: req.StreamOptions.IncludeUsage,
		}, err
	})
}

// completion serves a request that workers serve themselves, or as a text that
// decode makes of it.
func (x *exchange) completion(decode func(body []byte) (completion, error)) error {
	body, err := x.body()
	if err != nil {
		return err
	}
	affinity := func() string {
		c, err := decode(body)
		if err != nil { // for an agent that takes a text
			return string(body[:min(len(body), maxAffinity)])
		}
		return c.affinity()
	}
	return x.serveModel(body, "", affinity, func() error {
		c, err := decode(body)
		if err != nil {
			return err
		}
		c.body = body
		return x.complete(c)
	})
}

// maxAffinity is how much of a body that is not read tells one use of a model from
// another.
const maxAffinity = 1 << 10

// complete runs the tasks and answers with their output.
func (x *exchange) complete(c completion) error {
	reply := openai.NewReply(c.kind, c.model)
	reply.Echo = c.echo
	if c.stream {
		return x.streamReply(c, reply)
	}
	return x.wholeReply(c, reply)
}

// call is the task of one choice.
func (x *exchange) call(c completion) mesh.Call {
	return mesh.Call{Target: router.Request{Model: c.model, Text: true, Affinity: x.affinity(c.affinity)}, Prompt: c.prompt, Original: c.body, Again: c.choices > 1}
}

// promptTokens estimates the size of the prompt.
func (c *completion) promptTokens() int { return openai.CountTokens(c.prompt) }

// wholeReply answers when the agents have ended well.
func (x *exchange) wholeReply(c completion, reply openai.Reply) error {
	answers := make([]heldAnswer, c.choices)
	for i := range answers {
		answers[i].client = x.client()
	}
	defer func() {
		for i := range answers {
			answers[i].release()
		}
	}()
	err := x.runChoices(c, func(_ context.Context, i int, task run) error {
		return answers[i].read(task, c.limits)
	})
	if s := answers[0].served; s.Peer != "" { // also of a failure
		x.served(s)
	}
	if err != nil {
		return err
	}
	choices, tokens := make([]openai.Choice, c.choices), 0
	for i := range answers {
		choices[i] = openai.Choice{Text: answers[i].b.String(), FinishReason: answers[i].text.FinishReason()}
		tokens += answers[i].text.Tokens()
	}
	input := c.promptTokens()
	x.seen.counted(input, tokens)
	x.answer(http.StatusOK, reply.Whole(choices, openai.EstimateUsage(input, tokens)))
	return nil
}

// heldAnswer is the answer of one task that is being held, within the limits.
type heldAnswer struct {
	client string
	b      strings.Builder
	cost   int64 // of the text, and of the JSON that it becomes
	text   *openai.Text
	served mesh.Served
}

// read holds the task's output, up to where the request wants it cut.
func (a *heldAnswer) read(task run, limits openai.Limits) error {
	a.served = task.Served()
	a.text = openai.NewText(limits, true)
	buf := make([]byte, mesh.ReadSize)
	for !a.text.Done() {
		n, err := task.Read(buf)
		if err := a.hold(a.text.Next(buf[:n])); err != nil {
			return err
		}
		if err == io.EOF {
			return a.hold(a.text.Rest())
		}
		if err != nil {
			return err
		}
	}
	task.Enough()
	return nil
}

// hold adds to the answer.
func (a *heldAnswer) hold(text string) error {
	if a.b.Len()+len(text) > maxAnswer {
		return streamFailed(nil, fmt.Sprintf("the answer is over %d bytes; ask for it with \"stream\":true", maxAnswer))
	}
	cost := int64(len(text) + openai.EncodedLen(text))
	if err := held.take(a.client, cost); err != nil {
		return err
	}
	a.cost += cost
	a.b.WriteString(text)
	return nil
}

// release gives back what the answer holds.
func (a *heldAnswer) release() { held.give(a.client, a.cost) }

// streamReply answers with events as the output comes. The status is decided by
// the first output, or by the first heartbeat: until then, a failure has one of
// its own.
func (x *exchange) streamReply(c completion, reply openai.Reply) error {
	out := &eventWriter{x: x}
	kept := heldAnswer{client: x.client()}
	defer kept.release()
	stream := openai.NewStream(out, reply, openai.StreamConfig{
		Choices: c.choices, Limits: c.limits, IncludeUsage: c.usage, PromptTokens: c.promptTokens, Kept: &kept,
	})
	stop := out.keepAlive(x.h.heartbeat, stream.Ping)
	defer stop() // also when a task panics
	err := x.runChoices(c, func(_ context.Context, i int, task run) error {
		out.served(task.Served())
		return streamChoice(stream.Choice(i), task)
	})
	stop()
	x.attempted(err)
	switch {
	case out.failed || x.r.Context().Err() != nil:
		if !out.begun {
			return err
		}
		x.gone(err)
		return nil
	case err == nil:
		err = stream.Finish()
	case !out.begun:
		return err
	default:
		p := problemOf(err)
		x.logProblem(p)
		x.seen.broken = true
		err = stream.Fail(p.openAI())
	}
	if err != nil {
		x.gone(err)
	}
	return nil
}

// streamChoice writes a task's output as it comes. Its first read decides the
// status of the answer, so that nothing is written before.
func streamChoice(choice *openai.StreamChoice, task run) error {
	buf := make([]byte, mesh.ReadSize)
	for started := false; ; started = true {
		n, err := task.Read(buf)
		if n == 0 && err != nil && err != io.EOF {
			return err
		}
		if !started {
			if err := choice.Start(task.Served().Peer, task.Served().TaskID); err != nil {
				return err
			}
		}
		switch _, limit := choice.Write(buf[:n]); {
		case limit == openai.ErrLimit:
			task.Enough()
			return choice.End()
		case limit != nil:
			return limit
		case err == io.EOF:
			return choice.End()
		case err != nil:
			return err
		}
	}
}
