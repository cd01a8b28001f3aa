// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxDelta bounds the JSON of a delta's text; what is left of [MaxLine] is for
// the rest of the chunk.
const maxDelta = MaxLine / 2

// chunk returns a chunk of the choice: of a chat with the delta, else with the text.
func (c *StreamChoice) chunk(delta Delta, text string, reason *string) []byte {
	r, usage := c.stream.reply, ChunkUsage{Present: c.stream.config.IncludeUsage}
	if r.Kind == KindText {
		return marshal(Completion{
			ID: r.ID, Object: ObjectText, Created: r.Created, Model: r.Model, Usage: usage, PeerID: c.peer, TaskID: c.task,
			Choices: []CompletionChoice{{Index: c.index, Text: text, FinishReason: reason}},
		})
	}
	return marshal(ChatChunk{
		ID: r.ID, Object: ObjectChatChunk, Created: r.Created, Model: r.Model, Usage: usage, PeerID: c.peer, TaskID: c.task,
		Choices: []ChatChunkChoice{{Index: c.index, Delta: delta, FinishReason: reason}},
	})
}

// usageChunk returns the chunk that has the usage and no choices. Who served is
// named when there was one only.
func (s *Stream) usageChunk(u *Usage) []byte {
	r, usage := s.reply, ChunkUsage{Present: true, Usage: u}
	var peer, task string
	if len(s.choices) == 1 {
		peer, task = s.choices[0].peer, s.choices[0].task
	}
	if r.Kind == KindText {
		return marshal(Completion{
			ID: r.ID, Object: ObjectText, Created: r.Created, Model: r.Model,
			Choices: []CompletionChoice{}, Usage: usage, PeerID: peer, TaskID: task,
		})
	}
	return marshal(ChatChunk{
		ID: r.ID, Object: ObjectChatChunk, Created: r.Created, Model: r.Model,
		Choices: []ChatChunkChoice{}, Usage: usage, PeerID: peer, TaskID: task,
	})
}

// template is a whole event of a choice, but for its text.
type template struct{ head, tail []byte }

// newTemplate takes apart an event without text. The place of the text is the
// first of that form: inside a string, quotes have a backslash.
func newTemplate(c *StreamChoice) template {
	var empty string
	place := `"content":""`
	if c.stream.reply.Kind == KindText {
		place = `"text":""`
	}
	data := c.chunk(Delta{Content: &empty}, empty, nil)
	i := bytes.Index(data, []byte(place)) + len(place) - len(`""`)
	return template{
		head: append([]byte("data: "), data[:i]...),
		tail: append(data[i+len(`""`):len(data):len(data)], "\n\n"...),
	}
}

// append appends the event with this text, which is valid UTF-8.
func (t template) append(b []byte, text string) []byte {
	return append(appendText(append(b, t.head...), text), t.tail...)
}

// escapes are the characters that marshal escapes and jsontext.AppendQuote not.
var escapes = [][2][]byte{
	{nel, []byte(`\u0085`)},
	{[]byte("\u2028"), []byte(`\u2028`)},
	{[]byte("\u2029"), []byte(`\u2029`)},
}

// appendText appends text as marshal writes it.
func appendText(b []byte, text string) []byte {
	start := len(b)
	b, _ = jsontext.AppendQuote(b, text) // fails for invalid UTF-8 only
	for _, e := range escapes {
		if bytes.Contains(b[start:], e[0]) {
			b = append(b[:start], bytes.ReplaceAll(b[start:], e[0], e[1])...)
		}
	}
	return b
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

// EncodedLen is the size of s in a JSON string, never too small.
func EncodedLen(s string) int {
	size := 0
	for _, r := range s {
		size += encodedLen(r)
	}
	return size
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
