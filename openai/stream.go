// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"errors"
	"io"
	"unicode/utf8"
)

// MaxLine is the size that a line of a stream stays below: well-known clients
// read lines into 64 KiB.
const MaxLine = 64 << 10

// maxDelta bounds the JSON of a delta's text; what is left of MaxLine is for
// the rest of the chunk.
const maxDelta = MaxLine / 2

// errLine can only come of a Reply with fields beyond all measure.
var errLine = errors.New("openai: event is too long for a line")

// writeEvent writes one event, in one Write.
func writeEvent(w io.Writer, data []byte) error {
	// Inside JSON this character can only be in a string. Some clients split
	// lines at it.
	data = bytes.ReplaceAll(data, []byte("\u0085"), []byte(`\u0085`))
	if len("data: ")+len(data) >= MaxLine {
		return errLine
	}
	event := make([]byte, 0, len(data)+8)
	event = append(event, "data: "...)
	event = append(event, data...)
	event = append(event, "\n\n"...)
	_, err := w.Write(event)
	return err
}

// Stream writes an answer as server-sent events: Start, then Write as often as
// there is output, then Finish or Fail. Every event is one Write to the
// underlying writer. Once one failed, all further calls return its error.
type Stream struct {
	w       io.Writer
	reply   Reply
	usage   ChunkUsage // of every chunk but the one with the usage
	cutter  Cutter
	written int
	err     error
}

// NewStream returns a Stream that writes r to w. With includeUsage there is one
// more chunk at the end, with the usage and no choices.
func NewStream(w io.Writer, r Reply, includeUsage bool) *Stream {
	return &Stream{w: w, reply: r, usage: ChunkUsage{Present: includeUsage}}
}

// Start writes what comes before the first text.
func (s *Stream) Start() error {
	if s.reply.Kind == KindText {
		return nil
	}
	var empty string
	return s.chat(ChatChunkChoice{Delta: Delta{Role: "assistant", Content: &empty}})
}

// Write adds p to the answer. What of it is not a whole character yet waits
// for the next Write.
func (s *Stream) Write(p []byte) (int, error) {
	s.written += len(p)
	if err := s.text(s.cutter.Next(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// text writes as many chunks as keep every line short.
func (s *Stream) text(text string) error {
	for text != "" && s.err == nil {
		n := fit(text, maxDelta)
		piece := text[:n]
		text = text[n:]
		if s.reply.Kind == KindText {
			_ = s.completion(CompletionChoice{Text: piece})
		} else {
			_ = s.chat(ChatChunkChoice{Delta: Delta{Content: &piece}})
		}
	}
	return s.err
}

// Finish ends the answer well. promptSize is for the usage.
func (s *Stream) Finish(promptSize int) error {
	_ = s.text(s.cutter.Rest())
	stop := FinishStop
	usage := EstimateUsage(promptSize, s.written)
	if s.reply.Kind == KindText {
		_ = s.completion(CompletionChoice{FinishReason: &stop})
	} else {
		_ = s.chat(ChatChunkChoice{FinishReason: &stop})
	}
	if s.usage.Present {
		s.usage.Usage = &usage
		if s.reply.Kind == KindText {
			_ = s.completion()
		} else {
			_ = s.chat()
		}
	}
	if s.err == nil {
		s.err = writeEvent(s.w, []byte("[DONE]"))
	}
	return s.err
}

// Fail ends the answer with an error. No end mark follows, so that no client
// takes what came for the whole answer.
func (s *Stream) Fail(e *Error) error {
	if s.err == nil {
		s.err = writeEvent(s.w, e.Envelope())
	}
	return s.err
}

// chat writes a chunk of a chat.
func (s *Stream) chat(choices ...ChatChunkChoice) error {
	if s.err == nil {
		s.err = writeEvent(s.w, marshal(ChatChunk{
			ID: s.reply.ID, Object: ObjectChatChunk, Created: s.reply.Created, Model: s.reply.Model,
			Choices: choices, Usage: s.usage, PeerID: s.reply.PeerID, TaskID: s.reply.TaskID,
		}))
	}
	return s.err
}

// completion writes a chunk of a completion.
func (s *Stream) completion(choices ...CompletionChoice) error {
	if s.err == nil {
		s.err = writeEvent(s.w, marshal(Completion{
			ID: s.reply.ID, Object: ObjectText, Created: s.reply.Created, Model: s.reply.Model,
			Choices: choices, Usage: s.usage, PeerID: s.reply.PeerID, TaskID: s.reply.TaskID,
		}))
	}
	return s.err
}

// fit returns how many bytes of s, up to the end of a character, have a JSON
// encoding of at most max bytes. It is at least one character.
func fit(s string, max int) int {
	if len(s)*len(`\u0000`) <= max {
		return len(s)
	}
	size := 0
	for i, r := range s {
		size += encodedLen(r)
		if size > max && i > 0 {
			return i
		}
	}
	return len(s)
}

// encodedLen is the size of r in a JSON string, never too small.
func encodedLen(r rune) int {
	switch {
	case r == '"', r == '\\', r == '\n', r == '\r', r == '\t', r == '\b', r == '\f':
		return 2
	case r < ' ', r == '\u0085', r == '\u2028', r == '\u2029':
		return len(`\u0000`)
	default:
		return utf8.RuneLen(r)
	}
}
