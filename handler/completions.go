// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// maxAnswer bounds an answer that is not streamed. It is held in memory until
// the agent has ended well; a larger one is an error, never cut.
const maxAnswer = 16 << 20

// maxHeld bounds the answers that are being held at one time, all together: an
// agent of a stranger can make any of them as large as it may be.
const maxHeld = 256 << 20

// held is how many bytes of answers are being held. It is one for the process, as
// its memory is.
var held atomic.Int64

// completion is a request of one of OpenAI's two kinds.
type completion struct {
	kind   openai.Kind
	model  string
	prompt string
	param  string // the field that the prompt came in
	stream bool
	usage  bool // asked for at the end of a stream
}

// chat serves POST /v1/chat/completions.
func (x *exchange) chat() error {
	body, err := x.body()
	if err != nil {
		return err
	}
	req, err := openai.DecodeChat(body)
	if err != nil {
		return err
	}
	return x.complete(completion{
		kind: openai.KindChat, model: req.Model, prompt: req.Prompt(), param: "messages",
		stream: req.Stream, usage: req.StreamOptions.IncludeUsage,
	})
}

// completions serves POST /v1/completions.
func (x *exchange) completions() error {
	body, err := x.body()
	if err != nil {
		return err
	}
	req, err := openai.DecodeCompletion(body)
	if err != nil {
		return err
	}
	return x.complete(completion{
		kind: openai.KindText, model: req.Model, prompt: string(req.Prompt), param: "prompt",
		stream: req.Stream, usage: req.StreamOptions.IncludeUsage,
	})
}

// complete runs the task and answers with its output.
func (x *exchange) complete(c completion) error {
	task, err := x.dispatch(mesh.Call{Target: router.Request{Model: c.model}, Prompt: c.prompt}, c.param)
	if err != nil {
		return err
	}
	defer task.Close()
	reply := openai.NewReply(c.kind, c.model)
	if c.stream {
		return x.streamReply(task, reply, c)
	}
	return x.wholeReply(task, reply, c)
}

// wholeReply answers when the agent has ended well.
func (x *exchange) wholeReply(task run, reply openai.Reply, c completion) error {
	var output answerBuffer
	defer output.release()
	if _, err := io.Copy(&output, task); err != nil {
		return err
	}
	text := openai.ValidText(output.b.Bytes())
	usage := openai.EstimateUsage(openai.CountTokens(c.prompt), openai.CountTokens(text))
	x.answer(http.StatusOK, reply.Whole([]openai.Choice{{Text: text, FinishReason: openai.FinishStop}}, usage))
	return nil
}

// answerBuffer is an answer that is being held, within the limits.
type answerBuffer struct {
	b bytes.Buffer // not embedded: io.Copy would find its ReadFrom, and go around Write
}

// Write implements io.Writer.
func (b *answerBuffer) Write(p []byte) (int, error) {
	if b.b.Len()+len(p) > maxAnswer {
		return 0, streamFailed(nil, fmt.Sprintf("the answer is over %d bytes; ask for it with \"stream\":true", maxAnswer))
	}
	if held.Add(int64(len(p))) > maxHeld {
		held.Add(-int64(len(p)))
		return 0, overloaded("the gateway holds too many large answers; try again later, or with \"stream\":true")
	}
	return b.b.Write(p)
}

// release gives back what the answer holds.
func (b *answerBuffer) release() { held.Add(-int64(b.b.Len())) }

// streamReply answers with events as the output comes. The status is decided by
// the first read: until then, a failure has one of its own.
func (x *exchange) streamReply(task run, reply openai.Reply, c completion) error {
	buf := make([]byte, mesh.ReadSize)
	n, err := task.Read(buf)
	if n == 0 && err != nil && err != io.EOF {
		return err
	}
	out := x.begin("text/event-stream; charset=utf-8")
	stream := openai.NewStream(out, reply, openai.StreamConfig{
		IncludeUsage: c.usage, PromptTokens: func() int { return openai.CountTokens(c.prompt) },
	})
	choice := stream.Choice(0)
	if err := choice.Start(task.Served().Peer, task.Served().TaskID); err != nil {
		x.gone(err)
		return nil
	}
	for {
		if _, err := choice.Write(buf[:n]); err != nil {
			x.gone(err)
			return nil
		}
		if err != nil {
			break
		}
		n, err = task.Read(buf)
	}
	if err == io.EOF {
		err = stream.Finish()
	} else {
		err = x.broken(err, func(p *problem) error { return stream.Fail(p.openAI()) })
	}
	if err != nil {
		x.gone(err)
	}
	return nil
}

// broken ends an answer that has begun already with an error, unless it is the
// client that broke it off.
func (x *exchange) broken(err error, tell func(*problem) error) error {
	if gone := x.r.Context().Err(); gone != nil {
		return gone
	}
	p := problemOf(err)
	x.logProblem(p)
	return tell(p)
}
