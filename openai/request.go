// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ChatRequest is the body of POST /v1/chat/completions: what we read of it.
type ChatRequest struct {
	Model         string        `json:"model"`
	Messages      []Message     `json:"messages"`
	Stream        bool          `json:"stream"`
	StreamOptions StreamOptions `json:"stream_options"`
	// N is how many choices are asked for, 1 to [MaxChoices].
	N int `json:"-"`
	// Limits are where each choice is to be cut.
	Limits Limits `json:"-"`
}

// StreamOptions are the options of an answer that is streamed.
type StreamOptions struct {
	// IncludeUsage asks for one more chunk, with the usage, before the end.
	IncludeUsage bool `json:"include_usage"`
}

// Message is one message of a chat.
type Message struct {
	Role    string  `json:"role"`
	Content Content `json:"content"`
}

// Content is the text of a message. On the wire it is a string, or an array of
// parts, or null. The texts of several parts are joined with a newline: clients
// use parts for separate blocks (a file, then a question), which would run into
// each other otherwise.
type Content struct {
	// Text is the whole text.
	Text string

	given bool // it was there, and not null
}

// part is one part of a message's content.
type part struct {
	Type    string  `json:"type"`
	Text    *string `json:"text"`
	Refusal *string `json:"refusal"`
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (c *Content) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch kind := dec.PeekKind(); kind {
	case 'n':
		*c = Content{}
		return dec.SkipValue()
	case '"':
		*c = Content{given: true}
		return json.UnmarshalDecode(dec, &c.Text)
	case '[':
		var parts []part
		if err := json.UnmarshalDecode(dec, &parts); err != nil {
			return err
		}
		text, err := joinParts(parts, dec.StackPointer())
		*c = Content{Text: text, given: true}
		return err
	default:
		return wrongType(dec, "a string or an array of parts")
	}
}

// wrongType is the error for the value that comes next.
func wrongType(dec *jsontext.Decoder, want string) error {
	kind := dec.PeekKind()
	if err := dec.SkipValue(); err != nil { // now the pointer is that of the value
		return err
	}
	p := dec.StackPointer()
	return invalid(paramOf(p), "%s: want %s, not %s", Clip(string(p), maxPointer), want, kindName(kind))
}

// joinParts returns the text of the parts, which are the value at p.
func joinParts(parts []part, p jsontext.Pointer) (string, error) {
	if len(parts) == 0 {
		return "", invalid(paramOf(p), "%s: want at least one part", p)
	}
	texts := make([]string, len(parts))
	for i, part := range parts {
		at := jsontext.Pointer(fmt.Sprintf("%s/%d", p, i))
		var name string // of the field with the text
		var text *string
		switch part.Type {
		case "":
			return "", invalid(paramOf(at+"/type"), "%s: a part needs a type", at)
		case "text", "input_text", "output_text": // the last two are those of /v1/responses
			name, text = "text", part.Text
		case "refusal": // of an assistant, in an earlier turn
			name, text = "refusal", part.Refusal
		default:
			return "", &Error{
				Message: fmt.Sprintf("%s: parts of type %q are not supported; agents take text", at, Clip(part.Type, 64)),
				Type:    TypeInvalidRequest, Code: CodeUnsupportedPromptType, Param: paramOf(at + "/type"),
			}
		}
		if text == nil {
			return "", invalid(paramOf(at+jsontext.Pointer("/"+name)), "%s: a part of type %s needs a %s", at, part.Type, name)
		}
		texts[i] = *text
	}
	return strings.Join(texts, "\n"), nil
}

// DecodeChat reads the body of a chat request. Every error is an *[Error]: the
// body is not a request, a field has a value that it may not have, or asks for
// what an agent that answers in text cannot do ([CodeUnsupportedParameter]).
// Fields that we do not know are ignored.
func DecodeChat(body []byte) (ChatRequest, error) {
	var req struct {
		ChatRequest
		options
		chatOptions
	}
	if err := Decode(body, &req); err != nil {
		return ChatRequest{}, err
	}
	if err := needModel(&req.Model); err != nil {
		return ChatRequest{}, err
	}
	if len(req.Messages) == 0 {
		return ChatRequest{}, &Error{
			Message: "messages is missing or empty; want at least one message",
			Type:    TypeInvalidRequest, Code: CodePromptRequired, Param: "messages",
		}
	}
	for i, m := range req.Messages {
		if err := m.check("messages", i); err != nil {
			return ChatRequest{}, err
		}
	}
	if err := req.options.check(); err != nil {
		return ChatRequest{}, err
	}
	if err := req.chatOptions.check(); err != nil {
		return ChatRequest{}, err
	}
	req.N, req.Limits = req.choices(), req.limits(req.MaxCompletionTokens)
	return req.ChatRequest, nil
}

// needModel takes the space around the model away, which matching ignores, and
// returns an error when nothing is left.
func needModel(model *string) error {
	if *model = strings.TrimSpace(*model); *model != "" {
		return nil
	}
	return &Error{
		Message: "model is missing; want a peer id, an agent name or a model engine",
		Type:    TypeInvalidRequest, Code: CodeModelRequired, Param: "model",
	}
}

// check returns an error when the message, the i-th of the list, cannot be rendered.
// Any role on one line is taken: agents may know more than OpenAI's.
func (m Message) check(list string, i int) error {
	switch {
	case m.Role == "":
		return invalid(fmt.Sprintf("%s[%d].role", list, i), "/%s/%d: a message needs a role", list, i)
	case strings.ContainsFunc(m.Role, unicode.IsControl):
		return invalid(fmt.Sprintf("%s[%d].role", list, i), "/%s/%d/role: control characters are not allowed", list, i)
	case !m.Content.given && m.Role != "assistant" && m.Role != "function": // of a call, or of a function without a result
		return invalid(fmt.Sprintf("%s[%d].content", list, i), "/%s/%d: a message of role %s needs a content", list, i, Clip(m.Role, 64))
	}
	return nil
}

// Prompt renders the chat for an agent that takes a text: a paragraph
// "role: content" for each message, a blank line after each, and a last line
// "assistant:" for the agent to continue.
func (r ChatRequest) Prompt() string { return render(r.Messages) + "assistant:" }

// Affinity returns text that stays the same in all turns of one conversation:
// everything up to the first message of the user, and that.
func (r ChatRequest) Affinity() string {
	for i, m := range r.Messages {
		if m.Role == "user" {
			return render(r.Messages[:i+1])
		}
	}
	return render(r.Messages)
}

// render writes messages as paragraphs.
func render(messages []Message) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString(m.Role)
		b.WriteString(": ")
		b.WriteString(m.Content.Text)
		b.WriteString("\n\n")
	}
	return b.String()
}

// CompletionRequest is the body of POST /v1/completions: what we read of it.
type CompletionRequest struct {
	Model         string        `json:"model"`
	Prompt        Prompt        `json:"prompt"`
	Stream        bool          `json:"stream"`
	StreamOptions StreamOptions `json:"stream_options"`
	// N is how many choices are asked for, 1 to [MaxChoices].
	N int `json:"-"`
	// Limits are where each choice is to be cut.
	Limits Limits `json:"-"`
}

// Prompt is a prompt. On the wire it is a string, or an array of exactly one.
type Prompt string

// errPromptType is replaced by an error that knows the place.
var errPromptType = errors.New("unsupported prompt")

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (p *Prompt) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	var text string
	err := errPromptType
	switch dec.PeekKind() {
	case 'n':
		err = dec.SkipValue()
	case '"':
		err = json.UnmarshalDecode(dec, &text)
	case '[':
		text, err = onePrompt(dec)
	}
	if errors.Is(err, errPromptType) {
		return &Error{
			Message: "prompt: want a string, or an array of exactly one string",
			Type:    TypeInvalidRequest, Code: CodeUnsupportedPromptType, Param: "prompt",
		}
	}
	*p = Prompt(text)
	return err
}

// onePrompt reads an array that holds one string, or nothing. It stops at the
// first element that is not that.
func onePrompt(dec *jsontext.Decoder) (string, error) {
	if _, err := dec.ReadToken(); err != nil { // the bracket
		return "", err
	}
	var text string
	for n := 0; dec.PeekKind() != ']'; n++ {
		if n > 0 || dec.PeekKind() != '"' {
			return "", errPromptType
		}
		tok, err := dec.ReadToken()
		if err != nil {
			return "", err
		}
		text = tok.String()
	}
	_, err := dec.ReadToken()
	return text, err
}

// DecodeCompletion reads the body of a completion request. Every error is an
// *[Error], as of [DecodeChat].
func DecodeCompletion(body []byte) (CompletionRequest, error) {
	var req struct {
		CompletionRequest
		options
		completionOptions
	}
	if err := Decode(body, &req); err != nil {
		return CompletionRequest{}, err
	}
	if err := needModel(&req.Model); err != nil {
		return CompletionRequest{}, err
	}
	if req.Prompt == "" {
		return CompletionRequest{}, &Error{
			Message: "prompt is missing or empty",
			Type:    TypeInvalidRequest, Code: CodePromptRequired, Param: "prompt",
		}
	}
	if err := req.options.check(); err != nil {
		return CompletionRequest{}, err
	}
	req.N, req.Limits = req.choices(), req.limits(nil)
	if err := req.completionOptions.check(req.N); err != nil {
		return CompletionRequest{}, err
	}
	return req.CompletionRequest, nil
}

// Affinity returns text that tells one use of an agent from another: the first
// 256 bytes of the prompt.
func (r CompletionRequest) Affinity() string { return string(r.Prompt[:min(len(r.Prompt), 256)]) }
