// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"errors"
	"io"
	"strings"
	"sync"
)

// MaxLine is the size that a line of a stream stays below: well-known clients
// read lines into 64 KiB.
const MaxLine = 64 << 10

// ErrLimit is the error of a [StreamChoice] that has reached a limit: its agent
// may be stopped.
var ErrLimit = errors.New("openai: a limit of the answer was reached")

// ErrEnded is the error of a [Stream] after Finish or Fail, and of a [StreamChoice]
// after End.
var ErrEnded = errors.New("openai: the answer has ended")

// errLine can only come of a Reply with fields beyond all measure.
var errLine = errors.New("openai: event is too long for a line")

// StreamConfig is how an answer is streamed. The zero value is one choice without
// limits and usage.
type StreamConfig struct {
	// Choices is how many choices there are; 0 is one.
	Choices int
	// Limits are where each choice is cut.
	Limits Limits
	// IncludeUsage asks for one more event before the end, with the usage.
	IncludeUsage bool
	// PromptTokens counts the tokens of the prompt, for the usage. It is called
	// once, by Finish; nil is no tokens.
	PromptTokens func() int
	// Kept keeps the text of a response, whose last events repeat it; nil is a
	// strings.Builder, without bound.
	Kept Keeper
}

// Stream writes an answer as server-sent events. Each choice is started, written
// and ended; then comes Finish, or at any time Fail. Every event is one Write to
// the underlying writer, or several when it is longer than [MaxLine]. Once one failed, all further calls return its error.
// All methods, those of the choices too, may be called from several goroutines.
type Stream struct {
	w       io.Writer
	reply   Reply
	config  StreamConfig
	choices []*StreamChoice

	response *responseStream // nil of other kinds

	mu  sync.Mutex // of all below, and of the choices
	buf []byte     // of the event that is being written
	err error
}

// NewStream returns a Stream that writes r to w. Nothing is written yet.
func NewStream(w io.Writer, r Reply, c StreamConfig) *Stream {
	s := &Stream{w: w, reply: r, config: c}
	if r.Kind == KindResponses {
		s.response = &responseStream{s: s, kept: c.Kept}
		if c.Kept == nil {
			s.response.kept = new(strings.Builder)
		}
	}
	for i := range max(1, c.Choices) {
		s.choices = append(s.choices, &StreamChoice{stream: s, index: i, text: NewText(c.Limits, c.IncludeUsage || s.response != nil)})
	}
	return s
}

// Choice returns the i-th choice, from 0.
func (s *Stream) Choice(i int) *StreamChoice { return s.choices[i] }

// Ping writes a comment that keeps the connection alive. It may come before all
// else. It is one line without a blank one after it, which some clients would
// take for an empty event.
func (s *Stream) Ping() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write([]byte(": ping\n"))
}

// Finish ends the answer well, and before it every choice that has not ended.
func (s *Stream) Finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens := 0
	for _, c := range s.choices {
		if err := c.end(); err != nil {
			return err
		}
		tokens += c.text.Tokens()
	}
	var usage Usage
	if s.config.IncludeUsage || s.response != nil {
		prompt := 0
		if s.config.PromptTokens != nil {
			prompt = s.config.PromptTokens()
		}
		usage = EstimateUsage(prompt, tokens)
	}
	if s.response != nil {
		return s.last(s.response.finish(s.choices[0].text.FinishReason(), usage))
	}
	if s.config.IncludeUsage {
		_ = s.event(s.usageChunk(&usage))
	}
	return s.last(s.event([]byte("[DONE]")))
}

// Fail ends the answer with an error. No end mark follows, so that no client
// takes what came for the whole answer.
func (s *Stream) Fail(e *Error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.response != nil {
		return s.last(s.response.fail(e))
	}
	return s.last(s.event(e.Envelope()))
}

// last ends the stream, whose last event was written with this error.
func (s *Stream) last(err error) error {
	if err == nil {
		s.err = ErrEnded
	}
	return err
}

// event writes one event.
func (s *Stream) event(data []byte) error {
	s.buf = append(append(append(s.buf[:0], "data: "...), data...), "\n\n"...)
	return s.write(s.buf)
}

// write writes b, in one Write.
func (s *Stream) write(b []byte) error {
	if s.err == nil && len(b) > MaxLine { // with two newlines
		s.err = errLine
	}
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
	return s.err
}

// StreamChoice is one choice of a [Stream]. It is written by one task.
type StreamChoice struct {
	stream         *Stream
	index          int
	text           *Text
	started, ended bool
	peer, task     string
	template       template
}

// Start writes what comes before the first text of the choice, and says which peer
// serves it in which task: its events carry that. When it is not called, Write
// and End do it, without peer and task. A second call does nothing.
func (c *StreamChoice) Start(peer, task string) error {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.start(peer, task)
}

// start is Start with the lock held.
func (c *StreamChoice) start(peer, task string) error {
	if c.started || c.stream.err != nil {
		return c.stream.err
	}
	c.started, c.peer, c.task = true, peer, task
	if r := c.stream.response; r != nil {
		c.template = r.template()
		return r.start()
	}
	c.template = newTemplate(c)
	if c.stream.reply.Kind == KindText {
		return nil
	}
	var empty string
	return c.stream.event(c.chunk(Delta{Role: "assistant", Content: &empty}, "", nil))
}

// Write adds p, output of the agent, to the choice. What of it is not certain yet
// waits for the next Write: half a character, what could be the begin of a stop
// sequence, a word at the limit of tokens. It returns [ErrLimit] once a limit was
// reached, and adds nothing from there on; then End is to be called.
func (c *StreamChoice) Write(p []byte) (int, error) {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	if err := c.start("", ""); err != nil {
		return 0, err
	}
	if c.ended && !c.text.Done() {
		return 0, ErrEnded
	}
	if err := c.write(c.text.Next(p)); err != nil {
		return 0, err
	}
	if c.text.Done() {
		return len(p), ErrLimit
	}
	return len(p), nil
}

// write writes as many events as keep every line short.
func (c *StreamChoice) write(text string) error {
	r := c.stream.response
	if r != nil {
		if _, err := r.kept.WriteString(text); err != nil {
			return err
		}
	}
	for text != "" && c.stream.err == nil {
		n := fit(text, maxDelta)
		c.stream.buf = c.template.append(c.stream.buf[:0], text[:n])
		if r != nil {
			c.stream.buf = r.number(c.stream.buf)
		}
		_ = c.stream.write(c.stream.buf)
		text = text[n:]
	}
	return c.stream.err
}

// End writes what was held back and the event with the finish reason. A second
// call does nothing.
func (c *StreamChoice) End() error {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.end()
}

// end is End with the lock held.
func (c *StreamChoice) end() error {
	if err := c.start("", ""); err != nil || c.ended {
		return err
	}
	c.ended = true
	if err := c.write(c.text.Rest()); err != nil {
		return err
	}
	reason := c.text.FinishReason()
	if r := c.stream.response; r != nil {
		return r.end(reason)
	}
	return c.stream.event(c.chunk(Delta{}, "", &reason))
}
