// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxChoices is how many choices a request may ask for: each is a task of its own.
const MaxChoices = 16

// Bounds of the stop sequences.
const (
	maxStops = 4
	maxStop  = 256 // bytes of one
)

// options are the fields of both kinds of request that say what the answer should
// be like. Pointers are nil when the field is absent or null. Hints for the
// choice of tokens are checked and not used: an agent takes a text.
type options struct {
	Temperature      *float64     `json:"temperature"`
	TopP             *float64     `json:"top_p"`
	PresencePenalty  *float64     `json:"presence_penalty"`
	FrequencyPenalty *float64     `json:"frequency_penalty"`
	LogitBias        *struct{}    `json:"logit_bias"`
	Seed             *int64       `json:"seed"`
	Choices          *int         `json:"n"`
	MaxTokens        *int         `json:"max_tokens"`
	Stop             stopSequence `json:"stop"`
}

// chatOptions are the options of a chat only.
type chatOptions struct {
	MaxCompletionTokens *int             `json:"max_completion_tokens"`
	LogProbs            *bool            `json:"logprobs"`
	TopLogProbs         *int             `json:"top_logprobs"`
	Tools               []jsontext.Value `json:"tools"`
	ToolChoice          toolChoice       `json:"tool_choice"`
	Functions           []jsontext.Value `json:"functions"`
	FunctionCall        toolChoice       `json:"function_call"`
	ResponseFormat      *responseFormat  `json:"response_format"`
	Modalities          []string         `json:"modalities"`
	Audio               *struct{}        `json:"audio"`
	WebSearchOptions    *struct{}        `json:"web_search_options"`
}

// completionOptions are the options of a completion only.
type completionOptions struct {
	Suffix   *string `json:"suffix"`
	Echo     *bool   `json:"echo"`
	BestOf   *int    `json:"best_of"`
	LogProbs *int    `json:"logprobs"`
}

// responseFormat is a form that the answer should have.
type responseFormat struct {
	Type string `json:"type"`
}

// stopSequence are stop sequences. On the wire they are a string, or an array of
// strings, or null.
type stopSequence []string

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (s *stopSequence) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case 'n':
		*s = nil
		return dec.SkipValue()
	case '"':
		*s = make(stopSequence, 1)
		return json.UnmarshalDecode(dec, &(*s)[0])
	case '[':
		return json.UnmarshalDecode(dec, (*[]string)(s))
	default:
		return wrongType(dec, "a string or an array of strings")
	}
}

// toolChoice says whether a tool must be called. On the wire it is a word, or an
// object that names tools, or null.
type toolChoice string

// chosen is the toolChoice that is an object.
const chosen toolChoice = "{}"

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (c *toolChoice) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case 'n':
		*c = ""
		return dec.SkipValue()
	case '"':
		return json.UnmarshalDecode(dec, (*string)(c))
	case '{':
		*c = chosen
		return dec.SkipValue()
	default:
		return wrongType(dec, "a string or an object")
	}
}

// check returns an error when a value is out of its range.
func (o *options) check() error {
	for _, f := range []struct {
		name     string
		value    *float64
		min, max float64
	}{
		{"temperature", o.Temperature, 0, 2},
		{"top_p", o.TopP, 0, 1},
		{"presence_penalty", o.PresencePenalty, -2, 2},
		{"frequency_penalty", o.FrequencyPenalty, -2, 2},
	} {
		if f.value != nil && (*f.value < f.min || *f.value > f.max) {
			return invalid(f.name, "%s: want %g to %g, not %g", f.name, f.min, f.max, *f.value)
		}
	}
	if o.Choices != nil && (*o.Choices < 1 || *o.Choices > MaxChoices) {
		return invalid("n", "n: want 1 to %d choices, not %d; each is a task of its own", MaxChoices, *o.Choices)
	}
	if err := positive("max_tokens", o.MaxTokens); err != nil {
		return err
	}
	return o.Stop.check()
}

// positive returns an error when there is a value that is not.
func positive(name string, value *int) error {
	if value != nil && *value < 1 {
		return invalid(name, "%s: want at least 1, not %d", name, *value)
	}
	return nil
}

// check returns an error when there are too many sequences, or one of a size that
// is not allowed.
func (s stopSequence) check() error {
	if len(s) > maxStops {
		return invalid("stop", "stop: want at most %d sequences, not %d", maxStops, len(s))
	}
	for _, stop := range s {
		if stop == "" || len(stop) > maxStop {
			return invalid("stop", "stop: want sequences of 1 to %d bytes, not %d", maxStop, len(stop))
		}
	}
	return nil
}

// choices returns how many choices are asked for.
func (o *options) choices() int {
	if o.Choices == nil {
		return 1
	}
	return *o.Choices
}

// limits returns the limits that are asked for; maxTokens comes before the older
// name of that field.
func (o *options) limits(maxTokens *int) Limits {
	l := Limits{Stop: o.Stop}
	switch {
	case maxTokens != nil:
		l.MaxTokens = *maxTokens
	case o.MaxTokens != nil:
		l.MaxTokens = *o.MaxTokens
	}
	return l
}

// check returns an error when a value is out of its range, or asks for what an
// agent that answers in text cannot do.
func (o *chatOptions) check() error {
	if err := positive("max_completion_tokens", o.MaxCompletionTokens); err != nil {
		return err
	}
	if n := o.TopLogProbs; n != nil && (*n < 0 || *n > 20) {
		return invalid("top_logprobs", "top_logprobs: want 0 to 20, not %d", *n)
	}
	switch {
	case o.LogProbs != nil && *o.LogProbs:
		return unsupported("logprobs", "agents do not report probabilities; leave it out")
	case o.TopLogProbs != nil && *o.TopLogProbs > 0:
		return unsupported("top_logprobs", "agents do not report probabilities; leave it out")
	case o.Audio != nil:
		return unsupported("audio", "agents answer in text; leave it out")
	case o.WebSearchOptions != nil:
		return unsupported("web_search_options", "the gateway does not search; leave it out")
	}
	for _, m := range o.Modalities {
		if m != "text" {
			return unsupported("modalities", `agents answer in text; leave it out or send ["text"]`)
		}
	}
	if err := o.checkTools(); err != nil {
		return err
	}
	return o.ResponseFormat.check("response_format")
}

// checkTools returns an error unless the answer may be one without a call.
func (o *chatOptions) checkTools() error {
	for _, f := range []struct {
		choice, tools string
		value         toolChoice
		offered       int
	}{
		{"tool_choice", "tools", o.ToolChoice, len(o.Tools)},
		{"function_call", "functions", o.FunctionCall, len(o.Functions)},
	} {
		switch f.value {
		case "none":
			continue
		case "", "auto":
		case "required", chosen:
			return unsupported(f.choice, `agents do not call a client's tools; leave it out or send "none"`)
		default:
			return invalid(f.choice, "%s: want none, auto, required or an object, not %q", f.choice, Clip(string(f.value), 64))
		}
		if f.offered > 0 {
			return unsupported(f.tools, `agents do not call a client's tools; leave it out or send "%s":"none"`, f.choice)
		}
	}
	return nil
}

// check returns an error unless text is asked for in the field. Clients look for
// this sentence to tell which format they must do without.
func (f *responseFormat) check(field string) error {
	switch {
	case f == nil || f.Type == "text":
		return nil
	case f.Type == "":
		return invalid(field+".type", "%s: a format needs a type", field)
	}
	return &Error{
		Message: fmt.Sprintf("Invalid parameter: '%s' of type '%s' is not supported with this model: agents answer in text; leave it out", field, Clip(f.Type, 64)),
		Type:    TypeInvalidRequest, Code: CodeUnsupportedParameter, Param: field,
	}
}

// check returns an error when a value is out of its range, or asks for what an
// agent that answers in text cannot do. The request is for n choices.
func (o *completionOptions) check(n int) error {
	if p := o.LogProbs; p != nil && (*p < 0 || *p > 5) {
		return invalid("logprobs", "logprobs: want 0 to 5, not %d", *p)
	}
	if b := o.BestOf; b != nil && (*b < n || *b > 20) {
		return invalid("best_of", "best_of: want %d, the number of choices, to 20, not %d", n, *b)
	}
	switch {
	case o.LogProbs != nil:
		return unsupported("logprobs", "agents do not report probabilities; leave it out")
	case o.BestOf != nil && *o.BestOf > n:
		return unsupported("best_of", "agents do not rate their answers; leave it out or send the same as n")
	case o.Suffix != nil && *o.Suffix != "":
		return unsupported("suffix", "agents only continue a prompt; make it part of the prompt")
	case o.Echo != nil && *o.Echo:
		return unsupported("echo", "the gateway sends the answer alone; put the prompt before it yourself")
	}
	return nil
}

// unsupported is the error for a field whose meaning an agent cannot honour. It
// begins as OpenAI's does: clients look for that.
func unsupported(param, format string, args ...any) *Error {
	e := invalid(param, "Unsupported parameter: '%s' is not supported with this model: "+format, append([]any{param}, args...)...)
	e.Code = CodeUnsupportedParameter
	return e
}
