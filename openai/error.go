// SPDX-License-Identifier: Apache-2.0

// Package openai holds what the OpenAI API looks like on the wire: requests and
// their strict decoding, answers and their chunks, server-sent events, the
// error envelope, how messages become a prompt, and how an agent's output becomes
// text within the limits of a request. It knows neither Caddy nor libp2p nor an
// HTTP server.
package openai

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Values of [Error.Type].
const (
	TypeInvalidRequest = "invalid_request_error" // the client's fault: every 4xx
	TypeServer         = "server_error"          // ours or a worker's: every 5xx
)

// Values of [Error.Code] that the decoding of a request gives.
const (
	CodeInvalidRequest        = "invalid_request_error"
	CodeModelRequired         = "model_required"
	CodePromptRequired        = "prompt_required"
	CodeUnsupportedPromptType = "unsupported_prompt_type"
	CodeUnsupportedParameter  = "unsupported_parameter" // Param names it
)

// maxErrorText bounds the message of an error: parts of it come from outside.
const maxErrorText = 1 << 10

// Error is an error as clients see it. Of the decoding of a request it is the
// only kind.
type Error struct {
	// Message is for people.
	Message string
	// Type is one of the Type constants.
	Type string
	// Code is what clients match on.
	Code string
	// Param names the field at fault, for example "messages[0].role"; empty when
	// there is none.
	Param string
	// Cause is one word on why the agent failed, such as "oom_killed"; empty where
	// nobody knows, or no agent has.
	Cause string
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// envelope is the wire form of an Error. All four keys are always there:
// typed clients ask for them.
type envelope struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Code    string  `json:"code"`
		Param   *string `json:"param"`
		Cause   string  `json:"cause,omitempty"`
	} `json:"error"`
}

// Envelope returns the JSON object {"error":{…}} that clients read.
func (e *Error) Envelope() []byte { return marshal(e.envelope()) }

// envelope returns the wire form of the error.
func (e *Error) envelope() (env envelope) {
	env.Error.Message = Clip(e.Message, maxErrorText)
	env.Error.Type, env.Error.Code, env.Error.Cause = e.Type, e.Code, e.Cause
	if e.Param != "" {
		param := Clip(e.Param, maxErrorText)
		env.Error.Param = &param
	}
	return env
}

// marshal returns the JSON of one of this package's types. Of these none can
// fail: invalid UTF-8 becomes U+FFFD.
func marshal(v any) []byte {
	// Escaping U+2028 and U+2029 helps clients that split lines at them.
	b, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true), jsontext.EscapeForJS(true))
	if err != nil {
		panic("openai: encoding " + err.Error())
	}
	return escapeNEL(b)
}

// escapeNEL escapes U+0085 in JSON, where it can only be in a string: some clients
// split lines at it.
func escapeNEL(b []byte) []byte {
	if !bytes.Contains(b, nel) {
		return b
	}
	return bytes.ReplaceAll(b, nel, []byte(`\u0085`))
}

// nel is U+0085.
var nel = []byte("\u0085")

// Clip shortens s to at most n bytes, between two characters.
func Clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "�") + "…"
}
