// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Keeper keeps the text of an answer. An error says that there is no room for
// more of it. A strings.Builder is one.
type Keeper interface {
	fmt.Stringer
	WriteString(string) (int, error)
}

// responseStream is what a [Stream] of a response has beside the rest. It is a
// sequence of events, each with a name and a number.
//
// The last ones repeat the text, three times in parts and then in the response
// that the libraries hand out. The text is therefore kept, and those events are
// longer than [MaxLine] when it is: a line is the only form of them that all
// clients read, and OpenAI's are as long. No event of a piece of text is.
type responseStream struct {
	s        *Stream
	sequence int
	opened   bool
	kept     Keeper
}

// responseEvent is an event of a response. What it has depends on its type.
type responseEvent struct {
	Type         string           `json:"type"`
	Response     *Response        `json:"response,omitzero"`
	OutputIndex  *int             `json:"output_index,omitzero"`
	Item         *OutputMessage   `json:"item,omitzero"`
	ItemID       string           `json:"item_id,omitzero"`
	ContentIndex *int             `json:"content_index,omitzero"`
	Part         *OutputText      `json:"part,omitzero"`
	Text         *string          `json:"text,omitzero"`
	LogProbs     []jsontext.Value `json:"logprobs,omitzero"`
	*failureEvent
	Sequence int `json:"sequence_number"`
}

// failureEvent is what an event of type error has: the error in the form of this
// API, and in the one that makes every library raise it.
type failureEvent struct {
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Param   *string        `json:"param"`
	Error   jsontext.Value `json:"error"`
}

// write writes an event, in as many writes as keep each short.
func (r *responseStream) write(e responseEvent) error {
	e.Sequence = r.sequence
	r.sequence++
	event := append(append([]byte("event: "+e.Type+"\ndata: "), marshal(e)...), "\n\n"...)
	for len(event) > 0 {
		n := min(len(event), MaxLine)
		if err := r.s.write(event[:n]); err != nil {
			return err
		}
		event = event[n:]
	}
	return nil
}

// lifecycle writes an event of the whole response.
func (r *responseStream) lifecycle(response Response) error {
	response.PeerID, response.TaskID = r.s.choices[0].peer, r.s.choices[0].task
	return r.write(responseEvent{Type: "response." + response.Status, Response: &response})
}

// open writes what comes before all else.
func (r *responseStream) open() error {
	if r.opened {
		return r.s.err
	}
	r.opened = true
	created := r.s.reply.response(StatusInProgress)
	created.PeerID, created.TaskID = r.s.choices[0].peer, r.s.choices[0].task
	if err := r.write(responseEvent{Type: "response.created", Response: &created}); err != nil {
		return err
	}
	return r.lifecycle(created)
}

// start writes what comes before the text.
func (r *responseStream) start() error {
	if err := r.open(); err != nil {
		return err
	}
	item := r.s.reply.message(StatusInProgress)
	if err := r.write(responseEvent{Type: "response.output_item.added", OutputIndex: new(0), Item: &item}); err != nil {
		return err
	}
	e, part := r.ofPart("response.content_part.added"), outputText("")
	e.Part = &part
	return r.write(e)
}

// ofPart returns an event of the only part of the only item.
func (r *responseStream) ofPart(kind string) responseEvent {
	return responseEvent{Type: kind, OutputIndex: new(0), ItemID: itemID(r.s.reply.ID), ContentIndex: new(0)}
}

// template returns an event of a piece of text, but for that and its number.
func (r *responseStream) template() template {
	return template{
		head: []byte("event: response.output_text.delta\ndata: " +
			`{"type":"response.output_text.delta","output_index":0,"item_id":` + string(marshal(itemID(r.s.reply.ID))) + `,"content_index":0,"delta":`),
		tail: []byte(`,"logprobs":[],"sequence_number":`),
	}
}

// number appends the end of an event of a piece of text.
func (r *responseStream) number(event []byte) []byte {
	event = strconv.AppendInt(event, int64(r.sequence), 10)
	r.sequence++
	return append(event, "}\n\n"...)
}

// end writes what comes after the text.
func (r *responseStream) end(finishReason string) error {
	text := r.kept.String()
	done := r.ofPart("response.output_text.done")
	done.Text, done.LogProbs = &text, []jsontext.Value{}
	if err := r.write(done); err != nil {
		return err
	}
	e, part := r.ofPart("response.content_part.done"), outputText(text)
	e.Part = &part
	if err := r.write(e); err != nil {
		return err
	}
	item := r.s.reply.message(statusOf(finishReason), part)
	return r.write(responseEvent{Type: "response.output_item.done", OutputIndex: new(0), Item: &item})
}

// finish writes the last event, with the whole response.
func (r *responseStream) finish(finishReason string, u Usage) error {
	return r.lifecycle(r.s.reply.ended(Choice{Text: r.kept.String(), FinishReason: finishReason}, u))
}

// fail writes the response without what there is of the text, and then the error
// itself. Of the first alone, some libraries make an answer, and a loop over
// pieces of text would end as if that were all.
func (r *responseStream) fail(e *Error) error {
	if err := r.open(); err != nil {
		return err
	}
	failed := r.s.reply.response(StatusFailed)
	message := Clip(e.Message, maxErrorText)
	failed.Error = &ResponseError{Code: TypeServer, Message: message} // this API knows few codes
	if err := r.lifecycle(failed); err != nil {
		return err
	}
	env := e.envelope()
	event := failureEvent{Code: e.Code, Message: message, Param: env.Error.Param, Error: marshal(env.Error)}
	return r.write(responseEvent{Type: "error", failureEvent: &event})
}
