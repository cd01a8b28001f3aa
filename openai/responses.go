// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ResponsesRequest is the body of POST /v1/responses: what we read of it.
type ResponsesRequest struct {
	// Model is the model that is asked for.
	Model string
	// Messages are the instructions, as a message of the system, and the input.
	Messages []Message
	// Stream asks for an answer of events.
	Stream bool
	// Limits are where the answer is to be cut.
	Limits Limits
	// Echo is what the answer says of the request.
	Echo Echo
}

// Prompt renders the request as that of a [ChatRequest].
func (r ResponsesRequest) Prompt() string { return ChatRequest{Messages: r.Messages}.Prompt() }

// Affinity returns text that stays the same in all turns of one conversation.
func (r ResponsesRequest) Affinity() string { return ChatRequest{Messages: r.Messages}.Affinity() }

// Echo are the fields of a [ResponsesRequest] that its answer has, too.
type Echo struct {
	Instructions      *string           `json:"instructions"`
	MaxOutputTokens   *int              `json:"max_output_tokens"`
	Metadata          map[string]string `json:"metadata"`
	ParallelToolCalls *bool             `json:"parallel_tool_calls"`
	PromptCacheKey    *string           `json:"prompt_cache_key,omitzero"`
	SafetyIdentifier  *string           `json:"safety_identifier,omitzero"`
	Temperature       *float64          `json:"temperature"`
	Text              *TextConfig       `json:"text"`
	ToolChoice        toolChoice        `json:"tool_choice"`
	TopP              *float64          `json:"top_p"`
	Truncation        *string           `json:"truncation"`
	User              *string           `json:"user,omitzero"`
}

// TextConfig is the form that a [ResponsesRequest] asks its text to have.
type TextConfig struct {
	Format    *responseFormat `json:"format"`
	Verbosity *string         `json:"verbosity,omitzero"`
}

// responsesOptions are the fields of a request that are checked only. What is
// not here, like store, service_tier and reasoning, changes nothing that a text
// would be wrong without.
type responsesOptions struct {
	Background         *bool            `json:"background"`
	Conversation       jsontext.Value   `json:"conversation"`
	Include            []string         `json:"include"`
	PreviousResponseID *string          `json:"previous_response_id"`
	Prompt             jsontext.Value   `json:"prompt"`
	StreamOptions      *struct{}        `json:"stream_options"`
	Tools              []jsontext.Value `json:"tools"`
	TopLogProbs        *int             `json:"top_logprobs"`
}

// input is the input of a request. On the wire it is a string, which is a message
// of the user, or an array of items, or null.
type input []inputItem

// inputItem is an item of the input: a message, or what it has the type of.
type inputItem struct {
	Type    string       `json:"type"`
	Role    string       `json:"role"`
	Content inputContent `json:"content"`
}

// inputContent is the content of an item: a string, or parts, whose kinds matter
// only when the item is a message.
type inputContent struct {
	Content
	parts []part
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (in *input) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case 'n':
		*in = nil
		return dec.SkipValue()
	case '"':
		var text string
		err := json.UnmarshalDecode(dec, &text)
		if *in = nil; text != "" {
			*in = input{{Role: "user", Content: inputContent{Content: Content{Text: text, given: true}}}}
		}
		return err
	case '[':
		return json.UnmarshalDecode(dec, (*[]inputItem)(in))
	default:
		return wrongType(dec, "a string or an array of items")
	}
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (c *inputContent) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*c = inputContent{}
	if dec.PeekKind() != '[' {
		return c.Content.UnmarshalJSONFrom(dec)
	}
	c.parts, c.given = []part{}, true
	return json.UnmarshalDecode(dec, &c.parts)
}

// messages returns the input as messages.
func (in input) messages() ([]Message, error) {
	var messages []Message
	for i, item := range in {
		switch item.Type {
		case "", "message":
		case "reasoning": // of a model in an earlier turn, for itself
			continue
		default:
			param := fmt.Sprintf("input[%d].type", i)
			return nil, &Error{
				Message: fmt.Sprintf("/input/%d: items of type %q are not supported; agents take messages of text", i, Clip(item.Type, 64)),
				Type:    TypeInvalidRequest, Code: CodeUnsupportedPromptType, Param: param,
			}
		}
		m := Message{Role: item.Role, Content: item.Content.Content}
		if item.Content.parts != nil {
			var err error
			at := jsontext.Pointer(fmt.Sprintf("/input/%d/content", i))
			if m.Content.Text, err = joinParts(item.Content.parts, at); err != nil {
				return nil, err
			}
		}
		if err := m.check("input", i); err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	if len(messages) == 0 {
		return nil, &Error{
			Message: "input is missing or empty; want a text or at least one message",
			Type:    TypeInvalidRequest, Code: CodePromptRequired, Param: "input",
		}
	}
	return messages, nil
}

// DecodeResponses reads the body of a request for a response. Every error is an
// *[Error], as of [DecodeChat]. Refused is also what asks for a response that was
// kept, or is to be worked on while nobody waits: there is no store of any.
func DecodeResponses(body []byte) (ResponsesRequest, error) {
	var req struct {
		Model  string `json:"model"`
		Input  input  `json:"input"`
		Stream bool   `json:"stream"`
		Echo
		responsesOptions
	}
	if err := Decode(body, &req); err != nil {
		return ResponsesRequest{}, err
	}
	if err := needModel(&req.Model); err != nil {
		return ResponsesRequest{}, err
	}
	if err := req.responsesOptions.check(req.ToolChoice); err != nil {
		return ResponsesRequest{}, err
	}
	messages, err := req.Input.messages()
	if err != nil {
		return ResponsesRequest{}, err
	}
	if err := req.Echo.check(); err != nil {
		return ResponsesRequest{}, err
	}
	r := ResponsesRequest{Model: req.Model, Messages: messages, Stream: req.Stream, Echo: req.Echo}
	if i := req.Instructions; i != nil && *i != "" {
		first := Message{Role: "system", Content: Content{Text: *i, given: true}}
		r.Messages = append([]Message{first}, messages...)
	}
	if req.MaxOutputTokens != nil {
		r.Limits.MaxTokens = *req.MaxOutputTokens
	}
	return r, nil
}

// check returns an error when a field asks for what there is not.
func (o *responsesOptions) check(choice toolChoice) error {
	const keeps = "this gateway keeps no responses; "
	given := func(v jsontext.Value) bool { return len(v) > 0 && v.Kind() != 'n' }
	switch {
	case o.PreviousResponseID != nil && *o.PreviousResponseID != "":
		return unsupported("previous_response_id", keeps+"send the whole conversation as input")
	case given(o.Conversation):
		return unsupported("conversation", keeps+"send the whole conversation as input")
	case o.Background != nil && *o.Background:
		return unsupported("background", keeps+"leave it out, and stream what takes long")
	case given(o.Prompt):
		return unsupported("prompt", "this gateway keeps no templates; send the text as input")
	case o.TopLogProbs != nil && *o.TopLogProbs != 0:
		return unsupported("top_logprobs", "agents do not report probabilities; leave it out")
	case slices.Contains(o.Include, "message.output_text.logprobs"):
		return unsupported("include", "agents do not report probabilities; leave message.output_text.logprobs out")
	}
	tools := chatOptions{Tools: o.Tools, ToolChoice: choice}
	return tools.checkTools()
}

// Bounds of the metadata, which are OpenAI's.
const (
	maxMetadata      = 16
	maxMetadataKey   = 64
	maxMetadataValue = 512
)

// check returns an error when a value is out of its range, or asks for what an
// agent that answers in text cannot do.
func (e *Echo) check() error {
	o := options{Temperature: e.Temperature, TopP: e.TopP}
	if err := o.check(); err != nil {
		return err
	}
	if err := positive("max_output_tokens", e.MaxOutputTokens); err != nil {
		return err
	}
	if len(e.Metadata) > maxMetadata {
		return invalid("metadata", "metadata: want at most %d pairs, not %d", maxMetadata, len(e.Metadata))
	}
	for k, v := range e.Metadata {
		if len(k) > 4*maxMetadataKey || len(v) > 4*maxMetadataValue { // they count characters
			return invalid("metadata", "metadata: want names of at most %d characters, and values of %d", maxMetadataKey, maxMetadataValue)
		}
	}
	if t := e.Truncation; t != nil && *t != "auto" && *t != "disabled" {
		return invalid("truncation", "truncation: want auto or disabled, not %q", Clip(*t, 64))
	}
	if e.Text == nil {
		return nil
	}
	return e.Text.Format.check("text.format")
}

// complete sets what the answer says of a field that the request does not have.
func (e Echo) complete() Echo {
	if e.ParallelToolCalls == nil {
		e.ParallelToolCalls = new(true)
	}
	if e.ToolChoice != "none" {
		e.ToolChoice = "auto"
	}
	if e.Truncation == nil {
		e.Truncation = new("disabled")
	}
	text := TextConfig{Format: &responseFormat{Type: "text"}}
	if e.Text != nil {
		text.Verbosity = e.Text.Verbosity
	}
	e.Text = &text
	return e
}

// itemID returns the id of the only item of a response.
func itemID(response string) string { return "msg_" + strings.TrimPrefix(response, "resp_") }
