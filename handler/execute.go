// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	ledgerwire "github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// statusTrailer says, after the body, how an execution ended: "ok" or "error".
const statusTrailer = "X-AgentFM-Status"

// maxPeerID is longer than any peer id. Decoding one takes time by the square of
// its length.
const maxPeerID = 128

// executeRequest is the body of POST /api/execute.
type executeRequest struct {
	WorkerID       string   `json:"worker_id"`
	Prompt         string   `json:"prompt"`
	TaskID         string   `json:"task_id"`
	Feedback       string   `json:"feedback"`
	FeedbackRating *float64 `json:"feedback_rating"`
}

// decodeExecute reads and checks the body, in the order that clients know.
func decodeExecute(body []byte) (executeRequest, error) {
	var req executeRequest
	if err := openai.Decode(body, &req); err != nil {
		return req, err
	}
	if req.WorkerID == "" {
		return req, badRequest("worker_id", "worker_id is missing; want the peer id of a worker")
	}
	id, err := decodePeer(req.WorkerID)
	if err != nil {
		return req, badRequest("worker_id", "worker_id is not a peer id")
	}
	req.WorkerID = id.String() // a peer id has more than one spelling
	if req.Prompt == "" {
		return req, &problem{status: http.StatusBadRequest, code: openai.CodePromptRequired, param: "prompt", message: "prompt is missing or empty"}
	}
	if req.TaskID != "" && !wire.ValidTaskID(req.TaskID) {
		return req, badRequest("task_id", "task_id: want a letter or digit, then at most 127 letters, digits, dots, underscores and hyphens")
	}
	if tasks.Reserved(req.TaskID) {
		return req, badRequest("task_id", "task_id: ids of this form are those that the gateway gives to tasks; choose another, or leave it out")
	}
	return req, req.checkFeedback()
}

// decodePeer reads a peer id.
func decodePeer(s string) (peer.ID, error) {
	if len(s) > maxPeerID {
		return "", peer.ErrEmptyPeerID
	}
	return peer.Decode(s)
}

// checkFeedback refuses feedback that is none.
func (r executeRequest) checkFeedback() error {
	if r.FeedbackRating != nil && !(*r.FeedbackRating >= -1 && *r.FeedbackRating <= 1) {
		return badRequest("feedback_rating", "feedback_rating: want a number between -1 and 1")
	}
	if len(r.Feedback) > ledgerwire.MaxComment {
		return badRequest("feedback", "feedback has more than %d bytes", ledgerwire.MaxComment)
	}
	return nil
}

// hasFeedback reports whether there is any. A rating of 0 without a text is none.
func (r executeRequest) hasFeedback() bool {
	return r.Feedback != "" || r.FeedbackRating != nil && *r.FeedbackRating != 0
}

// execute serves POST /api/execute.
func (x *exchange) execute() error {
	body, err := x.body()
	if err != nil {
		return err
	}
	req, err := decodeExecute(body)
	if err != nil {
		return err
	}
	if req.hasFeedback() {
		if _, err := x.ledger(); err != nil { // to lose it in silence would be worse
			return err
		}
	}
	if err := x.trusted(req.WorkerID); err != nil {
		return err
	}
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	if err := roomFor(l); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	call := x.h.tasks.NewCall(x.identity.ID, tasks.Target{Worker: req.WorkerID}, len(req.Prompt), cancel)
	answer := &countedRun{end: errNoAnswer}
	defer func() { call.End(context.Cause(ctx), answer.ended) }()
	answer.run, err = x.dispatch(ctx, mesh.Call{
		Target:       router.Request{Peer: req.WorkerID},
		Prompt:       req.Prompt,
		TaskID:       req.TaskID,
		EagerNewline: true, // the newline before a marker is the client's to see
		Begin: func(s mesh.Served) error {
			call.Begin(s.TaskID, tasks.Worker{Peer: s.Peer, Agent: s.Agent, Model: s.Model})
			return nil
		},
	}, "prompt")
	if err != nil {
		answer.end = err
		return err
	}
	defer answer.Close()
	x.served(answer.Served())
	return x.streamOutput(answer, func() error { return x.feedback(req) })
}

// errNoAnswer stands for an end that has not come.
var errNoAnswer = errors.New("the task has not ended")

// ended notes how a task ended whose client waited for it. Where its end was not read, or is
// that of the request, the client went away.
func (c *countedRun) ended(r *tasks.Record) {
	r.Bytes = c.size
	switch {
	case c.end == io.EOF:
		r.State, r.Result = tasks.Completed, c.result()
		r.Files = r.Result.Artifact != nil
	case c.end == nil, errors.Is(c.end, errNoAnswer), errors.Is(c.end, context.Canceled):
		r.State, r.Reason, r.Message = tasks.Cancelled, tasks.ReasonClientGone, "the client went away"
	default:
		f := taskRunner{}.Failure(c.end)
		p := problemOf(c.end)
		r.State, r.Reason, r.Message = tasks.Failed, cmp.Or(f.Reason, p.code), cmp.Or(f.Message, p.message)
	}
}

// trusted refuses a worker that is online and gets no tasks.
func (x *exchange) trusted(worker string) error {
	id, _ := peer.Decode(worker)
	standing := x.h.ledger.Standing(id)
	if standing.Refused == "" {
		return nil
	}
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	if w := x.workerFor(l.Worker(worker)); w != nil && w.Online {
		return &problem{status: http.StatusForbidden, code: "dispatch_refused", message: "dispatch refused: " + standing.Refused}
	}
	return nil // who is not there is not found
}

// streamOutput answers with the agent's output as it comes, and a line after it
// that says how it ended. done is called when it ended well.
func (x *exchange) streamOutput(task run, done func() error) error {
	buf := make([]byte, mesh.ReadSize)
	n, err := task.Read(buf)
	if n == 0 && err != nil && err != io.EOF {
		return err
	}
	x.w.Header().Set("Trailer", statusTrailer)
	out := x.begin("text/plain; charset=utf-8")
	var last byte
	for {
		if n > 0 {
			last = buf[n-1]
			if _, err := out.Write(buf[:n]); err != nil {
				x.gone(err)
				return nil
			}
		}
		if err != nil {
			break
		}
		n, err = task.Read(buf)
	}
	if err == io.EOF {
		if err := done(); err != nil { // the output is the client's all the same
			x.log().Warn("feedback was not added to the ledger", zap.Error(err))
		}
	}
	if err := x.endOutput(out, last, task, err); err != nil {
		x.gone(err)
	}
	return nil
}

// endOutput writes the closing line, on a line of its own, and the trailer.
func (x *exchange) endOutput(out io.Writer, last byte, task run, end error) error {
	status, line := "ok", wire.MarkerNoFiles
	if task.HasFiles() {
		line = wire.MarkerFiles
	}
	closing := func() error {
		x.w.Header().Set(statusTrailer, status)
		if last != '\n' {
			line = "\n" + line
		}
		_, err := io.WriteString(out, line+"\n")
		return err
	}
	if end == io.EOF {
		return closing()
	}
	return x.broken(end, func(p *problem) error {
		status, line = "error", wire.MarkerError(p.code)
		return closing()
	})
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
