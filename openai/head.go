// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"errors"
	"mime"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Head is what a gateway needs to know of a request that it passes on as it is.
type Head struct {
	// Model is the model that is asked for, without the space around it.
	Model string
	// Stream asks for an answer of events.
	Stream bool
	// IncludeUsage is that of [StreamOptions].
	IncludeUsage bool
	// Previous is the response that this one goes on from; empty for none.
	Previous string

	start, end int    // of the model in the body: of a JSON string, or of the content of a part
	raw        string // the model with the space around it
	boundary   string // of a body in parts; JSON has none
}

// ReadHead reads the head of a request's whole body, which is JSON, also when no
// content type is given, or of type multipart/form-data. Of the rest of the body
// it knows only that all readers find the same head in it: what [Decode] refuses
// of any body is an error here, too. Every error is an *[Error].
func ReadHead(contentType string, body []byte) (Head, error) {
	mediaType, params, err := mime.ParseMediaType(contentType)
	var h Head
	switch {
	case contentType == "", mediaType == "application/json" && (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter)):
		err = h.readJSON(body)
	case mediaType == "multipart/form-data" && err == nil && !strings.ContainsAny(contentType, `*\`): // see disposition
		err = h.readForm(params["boundary"], body)
	default:
		err = invalid("", "the Content-Type is not one that is taken; want application/json or multipart/form-data, with its boundary")
	}
	if err != nil {
		return Head{}, err
	}
	h.Model = h.raw
	if err := needModel(&h.Model); err != nil {
		return Head{}, err
	}
	return h, nil
}

// WithModel returns body, which h is the head of, with another model and else
// unchanged. It is the same slice when that is its model already, and otherwise
// a new one. The error is for a model that a body in parts cannot hold.
func (h Head) WithModel(body []byte, model string) ([]byte, error) {
	if model == h.raw {
		return body, nil
	}
	value := []byte(model)
	switch {
	case h.boundary == "":
		value = marshal(model)
	case strings.ContainsFunc(model, unicode.IsControl), strings.Contains(model, "--"+h.boundary):
		return nil, invalid("model", "model: %q cannot be sent in a form", Clip(model, 64))
	}
	return slices.Concat(body[:h.start], value, body[h.end:]), nil
}

// readJSON reads the head of a JSON object.
func (h *Head) readJSON(body []byte) error {
	var failed error
	top := scanner{b: body, names: make([][]byte, 0, 8)}
	ok := top.whole(func(name []byte, start, end int) {
		if failed == nil {
			failed = h.field(string(name), body, start, end)
		}
	})
	if !ok {
		if err := check(body); err != nil { // says what is wrong
			return err
		}
		return invalid("", "the body is not valid JSON")
	}
	return failed
}

// headNames are the names of fields that decide about a request. Some readers take a name in
// another case for them, too: the gateway would look at one model, and the server at another.
var headNames = []string{"model", "stream", "stream_options", "previous_response_id"}

// field takes a field of the top object, body[start:end].
func (h *Head) field(name string, body []byte, start, end int) error {
	value := jsontext.Value(body[start:end])
	switch name {
	case "model":
		h.start, h.end = start, end
		return decodeField(name, value, &h.raw)
	case "stream":
		return decodeField(name, value, &h.Stream)
	case "stream_options":
		var o StreamOptions
		err := decodeField(name, value, &o)
		h.IncludeUsage = o.IncludeUsage
		return err
	case "previous_response_id":
		if json.Unmarshal(value, &h.Previous) != nil { // for who serves it to say
			h.Previous = ""
		}
	default:
		for _, read := range headNames {
			if strings.EqualFold(name, read) {
				return invalid(read, "%q: want %q, as it is written here: to some servers the case of a name is nothing", Clip(name, 64), read)
			}
		}
	}
	return nil
}

// decodeField reads the value of a field into v, as [Decode] does.
func decodeField(name string, value jsontext.Value, v any) error {
	err := json.Unmarshal(value, v)
	if sem, ok := errors.AsType[*json.SemanticError](err); ok {
		sem.JSONPointer = jsontext.Pointer("/"+name) + sem.JSONPointer
	}
	if err != nil {
		return typeError(err)
	}
	return nil
}
