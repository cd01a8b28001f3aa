// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is how deep the values of a body may nest. JSON schemas in tool
// definitions, the deepest that clients send, stay far below.
const maxDepth = 256

// maxTokens is how many values and names a body may hold. Each costs a hundred
// times its two bytes once it is decoded; a long conversation has some thousands.
const maxTokens = 100_000

// maxPointer bounds the JSON pointer in a message: names come from the client.
const maxPointer = 200

// Decode reads a request's whole body, which must be one JSON object, into v.
// Names that v does not have are ignored. Anything that two readers could
// understand differently is an error: duplicate names, text after the object, a
// byte order mark, invalid UTF-8, half a surrogate pair, a number beyond the
// range of a double. So are values of the wrong type and deep nesting. Every
// error is an *[Error] that says where.
func Decode(body []byte, v any) error {
	if err := check(body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return typeError(err)
	}
	return nil
}

// check walks once over the body, those parts included that nothing reads.
func check(body []byte) error {
	switch {
	case len(bytes.TrimLeft(body, " \t\r\n")) == 0:
		return invalid("", "the body is empty; want a JSON object")
	case bytes.HasPrefix(body, []byte("\xef\xbb\xbf")):
		return invalid("", "the body begins with a byte order mark; want a JSON object")
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(body))
	for n := 0; n == 0 || dec.StackDepth() > 0; n++ {
		tok, err := dec.ReadToken()
		if err != nil {
			return syntaxError(err)
		}
		first := n == 0
		if n > maxTokens {
			return invalid("", "the body holds more than %d values and names", maxTokens)
		}
		if first && tok.Kind() != '{' {
			return invalid("", "the body is %s; want a JSON object", kindName(tok.Kind()))
		}
		if dec.StackDepth() > maxDepth {
			return invalid("", "the body nests deeper than %d levels", maxDepth)
		}
		if tok.Kind() == '0' {
			if _, err := tok.Float(); err != nil {
				return outOfRange(dec.StackPointer())
			}
		}
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return invalid("", "there is more after the JSON object, at byte %d", dec.InputOffset()+1)
	}
	return nil
}

// invalid returns an error of the general code.
func invalid(param, format string, args ...any) *Error {
	return &Error{
		Message: fmt.Sprintf(format, args...),
		Type:    TypeInvalidRequest,
		Code:    CodeInvalidRequest,
		Param:   param,
	}
}

// outOfRange is the error for a number that no reader can hold.
func outOfRange(p jsontext.Pointer) *Error {
	return invalid(paramOf(p), "%s: number out of range", Clip(string(p), maxPointer))
}

// syntaxError says what is wrong with a body that is not JSON.
func syntaxError(err error) error {
	syn, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return invalid("", "the body is not valid JSON: it ends early")
		}
		return invalid("", "the body is not valid JSON: %v", err)
	}
	what := "malformed"
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		what = "it ends early"
	case syn.Err != nil:
		what = Clip(strings.TrimPrefix(syn.Err.Error(), "jsontext: "), maxPointer)
	}
	return invalid("", "the body is not valid JSON: %s, at byte %d%s", what, syn.ByteOffset+1, within(syn.JSONPointer))
}

// within names the place of an error, when it is not the top.
func within(p jsontext.Pointer) string {
	if p == "" {
		return ""
	}
	return ", in " + Clip(string(p), maxPointer)
}

// typeError says which value has a type that was not asked for.
func typeError(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	sem, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		return syntaxError(err)
	}
	param, at := paramOf(sem.JSONPointer), Clip(string(sem.JSONPointer), maxPointer)
	want := typeName(sem.GoType)
	switch {
	case want == "":
		return invalid(param, "%s: unexpected value", at)
	case sem.JSONKind == 0, sem.JSONKind == '0' && want == "an integer":
		return invalid(param, "%s: want %s", at, want)
	}
	return invalid(param, "%s: want %s, not %s", at, want, kindName(sem.JSONKind))
}

// kindName names a kind of JSON value in a sentence.
func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '[', ']':
		return "an array"
	default:
		return "an object"
	}
}

// typeName names in a sentence the kind of JSON value that becomes a t.
func typeName(t reflect.Type) string {
	if t == nil {
		return ""
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Bool:
		return "a boolean"
	case reflect.String:
		return "a string"
	case reflect.Float64:
		return "a number"
	case reflect.Int, reflect.Int64:
		return "an integer"
	case reflect.Slice:
		return "an array"
	case reflect.Struct:
		return "an object"
	default:
		return ""
	}
}

// paramOf writes a JSON pointer as OpenAI's errors name fields:
// /messages/0/role becomes messages[0].role.
func paramOf(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		switch {
		case token != "" && strings.Trim(token, "0123456789") == "" && b.Len() > 0:
			b.WriteString("[" + token + "]")
		case b.Len() > 0:
			b.WriteString("." + token)
		default:
			b.WriteString(token)
		}
	}
	return Clip(b.String(), maxPointer)
}
