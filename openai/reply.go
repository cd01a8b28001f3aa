// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Values of the field "object".
const (
	ObjectChat      = "chat.completion"
	ObjectChatChunk = "chat.completion.chunk"
	ObjectText      = "text_completion" // of its chunks, too
	ObjectModel     = "model"
	ObjectList      = "list"
)

// Usage counts tokens.
type Usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
	// Estimated says that we counted, and not the agent's model.
	Estimated bool `json:"agentfm_estimated,omitzero"`
}

// EstimateUsage returns the usage of a prompt and answers of so many tokens that
// we counted ourselves, see [CountTokens].
func EstimateUsage(prompt, completion int) Usage {
	return Usage{PromptTokens: prompt, CompletionTokens: completion, TotalTokens: prompt + completion, Estimated: true}
}

// ChatCompletion is a whole answer to a [ChatRequest].
type ChatCompletion struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"`
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []ChatChoice `json:"choices"`
	Usage   Usage        `json:"usage"`
}

// ChatChoice is one choice of a [ChatCompletion].
type ChatChoice struct {
	Index        int            `json:"index"`
	Message      ChatMessage    `json:"message"`
	LogProbs     jsontext.Value `json:"logprobs"` // always null
	FinishReason string         `json:"finish_reason"`
}

// ChatMessage is the message of an answer.
type ChatMessage struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"` // always null
}

// ChatChunk is one event of an answer that is streamed.
type ChatChunk struct {
	ID      string            `json:"id"`
	Object  string            `json:"object"`
	Created int64             `json:"created"`
	Model   string            `json:"model"`
	Choices []ChatChunkChoice `json:"choices"`
	Usage   ChunkUsage        `json:"usage,omitzero"`
	// PeerID and TaskID say who serves the choice; an event of none, of an answer
	// with several choices, has none.
	PeerID string `json:"agentfm_peer_id,omitzero"`
	TaskID string `json:"agentfm_task_id,omitzero"`
}

// ChatChunkChoice is one choice of a [ChatChunk].
type ChatChunkChoice struct {
	Index        int     `json:"index"`
	Delta        Delta   `json:"delta"`
	FinishReason *string `json:"finish_reason"` // null until the last
}

// Delta is what a [ChatChunk] adds to the message.
type Delta struct {
	Role    string  `json:"role,omitzero"` // in the first chunk only
	Content *string `json:"content,omitzero"`
}

// Completion is a whole answer to a [CompletionRequest], and a chunk of one.
type Completion struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []CompletionChoice `json:"choices"`
	Usage   ChunkUsage         `json:"usage,omitzero"`
	PeerID  string             `json:"agentfm_peer_id,omitzero"` // in chunks only
	TaskID  string             `json:"agentfm_task_id,omitzero"`
}

// CompletionChoice is one choice of a [Completion].
type CompletionChoice struct {
	Text         string         `json:"text"`
	Index        int            `json:"index"`
	LogProbs     jsontext.Value `json:"logprobs"`      // always null
	FinishReason *string        `json:"finish_reason"` // null until the last chunk
}

// ChunkUsage is a usage that may be null, or not there at all: clients tell
// these apart in a chunk.
type ChunkUsage struct {
	// Present says that there is one; Usage is nil when it is null.
	Present bool
	Usage   *Usage
}

// IsZero makes omitzero leave an absent usage out.
func (u ChunkUsage) IsZero() bool { return !u.Present }

// MarshalJSONTo implements json.MarshalerTo.
func (u ChunkUsage) MarshalJSONTo(enc *jsontext.Encoder) error {
	return json.MarshalEncode(enc, u.Usage)
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (u *ChunkUsage) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*u = ChunkUsage{Present: true}
	return json.UnmarshalDecode(dec, &u.Usage)
}

// Kind is one of the shapes of an answer.
type Kind int

// The kinds: of /v1/chat/completions, of /v1/completions and of /v1/responses.
const (
	KindChat Kind = iota
	KindText
	KindResponses // has one choice
)

// Reply names an answer. All its chunks have this in common.
type Reply struct {
	Kind    Kind
	ID      string
	Created int64 // Unix seconds
	Model   string
	Echo    Echo // of KindResponses
}

// NewReply returns a Reply with a fresh id, created now.
func NewReply(kind Kind, model string) Reply {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	prefix := "chatcmpl-"
	switch kind {
	case KindText:
		prefix = "cmpl-"
	case KindResponses:
		prefix = "resp_"
	}
	return Reply{Kind: kind, ID: prefix + hex.EncodeToString(b[:]), Created: time.Now().Unix(), Model: model}
}

// Choice is one choice of a whole answer.
type Choice struct {
	Text         string
	FinishReason string // one of the Finish constants
}

// Whole returns the JSON of the whole answer, with the choices in this order.
func (r Reply) Whole(choices []Choice, u Usage) []byte {
	if r.Kind == KindResponses {
		return marshal(r.ended(choices[0], u))
	}
	if r.Kind == KindText {
		c := Completion{ID: r.ID, Object: ObjectText, Created: r.Created, Model: r.Model, Usage: ChunkUsage{Present: true, Usage: &u}}
		for i, choice := range choices {
			c.Choices = append(c.Choices, CompletionChoice{Index: i, Text: choice.Text, FinishReason: &choice.FinishReason})
		}
		return marshal(c)
	}
	c := ChatCompletion{ID: r.ID, Object: ObjectChat, Created: r.Created, Model: r.Model, Usage: u}
	for i, choice := range choices {
		message := ChatMessage{Role: "assistant", Content: choice.Text}
		c.Choices = append(c.Choices, ChatChoice{Index: i, Message: message, FinishReason: choice.FinishReason})
	}
	return marshal(c)
}
