// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// mustFail asserts that err is an *Error with that code and param, whose message
// contains the text.
func mustFail(t *testing.T, err error, code, param, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v (%T), want an *Error", err, err)
	}
	if e.Code != code || e.Param != param || e.Type != TypeInvalidRequest {
		t.Errorf("got code %q, param %q, type %q; want %q, %q", e.Code, e.Param, e.Type, code, param)
	}
	if !strings.Contains(e.Message, text) {
		t.Errorf("message %q does not contain %q", e.Message, text)
	}
	if len(e.Envelope()) > 16<<10 {
		t.Errorf("an envelope of %d bytes", len(e.Envelope()))
	}
}

func TestDecodeRefuses(t *testing.T) {
	type row struct{ name, body, param, text string }
	rows := []row{
		{"nothing", "", "", "empty"},
		{"only space", " \r\n\t", "", "empty"},
		{"null", "null", "", "the body is null"},
		{"array", "[]", "", "an array"},
		{"number", "1", "", "a number"},
		{"string", `"x"`, "", "a string"},
		{"boolean", "true", "", "a boolean"},
		{"open object", "{", "", "ends early"},
		{"cut in a string", `{"a":"b`, "", "ends early"},
		{"cut in a literal", `{"a":tru`, "", "ends early"},
		{"text after", "{}x", "", "more after the JSON object"},
		{"second object", "{} {}", "", "more after the JSON object"},
		{"NUL after", "{}\x00", "", "more after the JSON object"},
		{"duplicate name", `{"a":1,"a":2}`, "", "duplicate object member name, at byte 8, in /a"},
		{"duplicate name, escaped", `{"a":1,"\u0061":2}`, "", "duplicate"},
		{"duplicate name, deep", `{"x":[{"b":1,"b":2}]}`, "", "/x/0/b"},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", "", "invalid UTF-8, at byte 7, in /a"},
		{"invalid UTF-8 in a name", "{\"\xc3\":1}", "", "invalid UTF-8"},
		{"overlong UTF-8", "{\"a\":\"\xc0\xaf\"}", "", "invalid UTF-8"},
		{"surrogate in UTF-8", "{\"a\":\"\xed\xa0\x80\"}", "", "invalid UTF-8"},
		{"lone high surrogate", `{"a":"\ud800"}`, "", "surrogate"},
		{"lone low surrogate", `{"a":"\udc00x"}`, "", "surrogate"},
		{"surrogates the wrong way round", `{"a":"\udc00\ud800"}`, "", "surrogate"},
		{"byte order mark", "\xef\xbb\xbf{}", "", "byte order mark"},
		{"UTF-16", "\xff\xfe{\x00}\x00", "", "not valid JSON"},
		{"raw NUL", "{\"a\":\"\x00\"}", "", "not valid JSON"},
		{"raw newline in a string", "{\"a\":\"\n\"}", "", "not valid JSON"},
		{"NaN", `{"a":NaN}`, "", "invalid character 'N'"},
		{"Infinity", `{"a":-Infinity}`, "", "not valid JSON"},
		{"huge number", `{"a":1e999}`, "a", "/a: number out of range"},
		{"huge number, deep", `{"a":[1,{"b":-1e999}]}`, "a[1].b", "/a/1/b: number out of range"},
		{"leading zero", `{"a":01}`, "", "not valid JSON"},
		{"plus sign", `{"a":+1}`, "", "not valid JSON"},
		{"hex number", `{"a":0x10}`, "", "not valid JSON"},
		{"trailing comma", `{"a":1,}`, "", "not valid JSON"},
		{"trailing comma in an array", `{"a":[1,]}`, "", "not valid JSON"},
		{"comment", "// c\n{}", "", "not valid JSON"},
		{"name without quotes", "{a:1}", "", "not valid JSON"},
		{"single quotes", "{'a':1}", "", "not valid JSON"},
		{"form", "model=m&prompt=p", "", "not valid JSON"},
		{"HTML", "<html>", "", "not valid JSON"},
		{"100,000 arrays", `{"a":` + strings.Repeat("[", 100_000), "", "deeper than 256"},
		{"100,000 objects", strings.Repeat(`{"a":`, 100_000), "", "deeper than 256"},
		{"a name of 1 MiB, twice", `{"` + strings.Repeat("n", 1<<20) + `":1,"` + strings.Repeat("n", 1<<20) + `":1}`, "", "duplicate"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var v struct{}
			mustFail(t, Decode([]byte(r.body), &v), CodeInvalidRequest, r.param, r.text)
		})
	}
}

func TestDecodeTakes(t *testing.T) {
	var v struct {
		S string   `json:"s"`
		F *float64 `json:"f"`
	}
	body := "\r\n\t {\"S\":1,\"unknown\":{\"deep\":[[[1.5e3,-0]]]},\"s\":\"\\ud83d\\ude00\\u0000é\",\"f\":1e308} \n"
	if err := Decode([]byte(body), &v); err != nil {
		t.Fatal(err)
	}
	if v.S != "😀\x00é" || *v.F != 1e308 {
		t.Errorf("got %q, %v", v.S, *v.F)
	}
	deepest := `{"a":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1) + "}"
	if err := Decode([]byte(deepest), &v); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
}

func TestDecodeTypes(t *testing.T) {
	for body, text := range map[string]string{
		`{"s":1}`:            "/s: want a string, not a number",
		`{"s":["x"]}`:        "/s: want a string, not an array",
		`{"b":"true"}`:       "/b: want a boolean, not a string",
		`{"f":"1"}`:          "/f: want a number, not a string",
		`{"o":[]}`:           "/o: want an object, not an array",
		`{"o":{"l":{}}}`:     "/o/l: want an array, not an object",
		`{"o":{"l":[1,""]}}`: "/o/l/1: want a number, not a string",
		`{"p":true}`:         "/p: want a string, not a boolean",
	} {
		var v struct {
			S string  `json:"s"`
			B bool    `json:"b"`
			F float64 `json:"f"`
			P *string `json:"p"`
			O struct {
				L []float64 `json:"l"`
			} `json:"o"`
		}
		err := Decode([]byte(body), &v)
		if err == nil || err.Error() != text {
			t.Errorf("%s: got %v, want %q", body, err, text)
		}
	}
}

func TestParamOf(t *testing.T) {
	for pointer, want := range map[string]string{
		"":                       "",
		"/model":                 "model",
		"/messages/0/content/12": "messages[0].content[12]",
		"/a~1b/~0":               "a/b.~",
		"/0/1":                   "0[1]",
	} {
		if got := paramOf(jsontext.Pointer(pointer)); got != want {
			t.Errorf("%s: got %q, want %q", pointer, got, want)
		}
	}
}

func TestEnvelope(t *testing.T) {
	e := &Error{Message: "no \"x\"", Type: TypeServer, Code: "internal_error"}
	want := `{"error":{"message":"no \"x\"","type":"server_error","code":"internal_error","param":null}}`
	if got := string(e.Envelope()); got != want {
		t.Errorf("got %s", got)
	}
	e.Param = "messages[0]"
	if got := string(e.Envelope()); !strings.HasSuffix(got, `"param":"messages[0]"}}`) {
		t.Errorf("got %s", got)
	}
	e.Message = strings.Repeat("é", maxErrorText) + "\xff"
	if got := string(e.Envelope()); !strings.Contains(got, "é…") || len(got) > 2*maxErrorText {
		t.Errorf("a long message became %d bytes", len(got))
	}
}

// TestManyValues wants a body of many small values to be refused before they are
// made: each costs a hundred times its bytes.
func TestManyValues(t *testing.T) {
	for name, body := range map[string]string{
		"messages": `{"model":"m","messages":[` + strings.Repeat("{},", maxTokens) + `{}]}`,
		"prompt":   `{"model":"m","prompt":[` + strings.Repeat("1,", maxTokens) + `1]}`,
		"ignored":  `{"model":"m","x":[` + strings.Repeat("1,", maxTokens) + `1]}`,
	} {
		_, chat := DecodeChat([]byte(body))
		_, text := DecodeCompletion([]byte(body))
		for _, err := range []error{chat, text} {
			if err == nil || !strings.Contains(err.Error(), "more than 100000") {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
}
