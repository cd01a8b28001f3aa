// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// headFields are the fields of a head, for a reader that decodes all of a body.
type headFields struct {
	Model         *string       `json:"model"`
	Stream        bool          `json:"stream"`
	StreamOptions StreamOptions `json:"stream_options"`
}

func TestReadHead(t *testing.T) {
	for _, r := range []struct {
		name, body    string
		model         string
		stream, usage bool
	}{
		{"model only", `{"model":"m"}`, "m", false, false},
		{"space", " \r\n{ \"stream\" : true ,\t\"model\" : \" m\\n\" } ", "m", true, false},
		{"escapes", `{"\u006dodel":"\u006d\ud83d\ude00","strea\u006d":true}`, "m😀", true, false},
		{"nested models", `{"x":{"model":"a","stream":true},"messages":[{"model":"b"}],"model":"m"}`, "m", false, false},
		{"model in a text", `{"x":"\",\"model\":\"a\"","model":"m"}`, "m", false, false},
		{"other names", `{"models":"a","model ":"b","model":"m","streams":true,"stream_options":{"Include_usage":true}}`, "m", false, false},
		{"previous response", `{"previous_response_id":1,"model":"m"}`, "m", false, false},
		{"usage", `{"model":"m","stream_options":{"x":{"include_usage":false},"include_usage":true},"stream":true}`, "m", true, true},
		{"nulls", `{"model":"m","stream":null,"stream_options":null}`, "m", false, false},
		{"null in options", `{"model":"m","stream_options":{"include_usage":null}}`, "m", false, false},
		{"many names", `{"model":"m",` + manyFields(100) + `}`, "m", false, false},
	} {
		t.Run(r.name, func(t *testing.T) {
			for _, contentType := range []string{"", "application/json", "Application/JSON; charset=utf-8", "application/json; x"} {
				h, err := ReadHead(contentType, []byte(r.body))
				if err != nil || h.Model != r.model || h.Stream != r.stream || h.IncludeUsage != r.usage {
					t.Errorf("%q: got %+v, %v", contentType, h, err)
				}
			}
			checkHead(t, []byte(r.body), "new \"model\"\n")
		})
	}
}

// manyFields returns n fields of different names.
func manyFields(n int) string {
	fields := make([]string, n)
	for i := range fields {
		fields[i] = fmt.Sprintf(`"f%d":{"a":1}`, i)
	}
	return strings.Join(fields, ",")
}

func TestReadHeadRefuses(t *testing.T) {
	for _, r := range []struct{ name, contentType, body, code, param, text string }{
		{"no model", "", `{}`, CodeModelRequired, "model", ""},
		{"null model", "", `{"model":null}`, CodeModelRequired, "model", ""},
		{"blank model", "", `{"model":" \n"}`, CodeModelRequired, "model", ""},
		{"number", "", `{"model":1}`, CodeInvalidRequest, "model", "/model: want a string, not a number"},
		{"stream", "", `{"model":"m","stream":"true"}`, CodeInvalidRequest, "stream", "/stream: want a boolean, not a string"},
		{"options", "", `{"model":"m","stream_options":[]}`, CodeInvalidRequest, "stream_options", "/stream_options: want an object"},
		{"usage", "", `{"model":"m","stream_options":{"include_usage":1}}`, CodeInvalidRequest, "stream_options.include_usage", "/stream_options/include_usage: want a boolean"},
		{"twice", "", `{"model":"a","model":"b"}`, CodeInvalidRequest, "", "duplicate"},
		{"twice, escaped", "", `{"model":"a","\u006dodel":"b"}`, CodeInvalidRequest, "", "duplicate"},
		{"another case", "", `{"model":"a","Model":"b"}`, CodeInvalidRequest, "model", `"Model": want "model"`},
		{"another case alone", "", `{"MODEL":"b"}`, CodeInvalidRequest, "model", ""},
		{"a long s", "", `{"model":"a","ſtream":true}`, CodeInvalidRequest, "stream", ""},
		{"another case of more", "", `{"model":"a","Previous_Response_ID":"x"}`, CodeInvalidRequest, "previous_response_id", ""},
		{"twice, of many", "", `{"model":"a",` + manyFields(100) + `,"f7":1}`, CodeInvalidRequest, "", "duplicate"},
		{"text", "text/plain", `{"model":"m"}`, CodeInvalidRequest, "", "application/json or multipart/form-data"},
		{"form without boundary", "multipart/form-data", "", CodeInvalidRequest, "", "boundary"},
		{"malformed type", "/", `{"model":"m"}`, CodeInvalidRequest, "", "application/json"},
	} {
		t.Run(r.name, func(t *testing.T) {
			_, err := ReadHead(r.contentType, []byte(r.body))
			mustFail(t, err, r.code, r.param, r.text)
		})
	}
}

func TestWithModelIsTheSame(t *testing.T) {
	for _, body := range []string{`{"model":"m","x":[1, 2]}`, `{"x":"y","model":"\u006d"}`} {
		h, err := ReadHead("", []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		in := []byte(body)
		if got, err := h.WithModel(in, "m"); err != nil || &got[0] != &in[0] || len(got) != len(in) {
			t.Errorf("%s: got %s, %v", body, got, err)
		}
		got, err := h.WithModel(in, "n")
		if want := strings.NewReplacer(`"m"`, `"n"`, `"\u006d"`, `"n"`).Replace(body); err != nil || string(got) != want || string(in) != body {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

// scanned are bodies that scanner must take when check does.
var scanned = []string{
	`{"a":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"}`, `{"a":"\x"}`, `{"a":"\u00g0"}`, `{"a":"\u12`, `{"a":"\`, `{"a":"\ud800\n"}`, `{"a":"\ud800\u0041"}`,
	`{"a":[0,-0,1.5,1e3,1E+3,1e-3,-1.5e-999]}`, `{"a":1.}`, `{"a":.5}`, `{"a":1e}`, `{"a":-}`, `{"a":00}`, `{"a":1e308}`, `{"a":1e309}`,
	`{"a":` + strings.Repeat("1", 308) + `}`, `{"a":` + strings.Repeat("9", 310) + `}`, `{"a":0.` + strings.Repeat("1", 400) + `}`,
	`{"a":[true,false,null,[],{},[ ],{ }]}`, `{"a":tru}`, `{"a":nul`, `{"a":truee}`, `{"a":[1 2]}`, `{"a" "b"}`, `{"a":}`, `{:1}`, `{,}`, `[,]`, `{"a":[,1]}`,
	"{\"a\":\"12345678\x00\"}", "{\"a\":\"1234567\x1f9\"}", "{\"a\":\"\x7f\u0080\"}", "{\"a\":\"1234567\xff89\"}", "{\"\xff\":1}", "{\"a\":\"\xed\xa0\x80\"}",
	"{\"a\":1}\x00", "{\"a\":1}\v", "\xef\xbb\xbf{}", "", " ", "{", "[]", "null", `"x"`, "{}{}", "\u00a0{}",
	`{"a":{"b":1,"b":2}}`, `{"a":[{"b":1},{"b":2}],"b":3}`, `{"":1,"":2}`, `{"A":1,"a":2}`,
	`{"a":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1) + "}",
	`{"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + "}",
	strings.Repeat(`{"a":`, maxDepth) + "1" + strings.Repeat("}", maxDepth), strings.Repeat(`{"a":`, maxDepth+1) + "1" + strings.Repeat("}", maxDepth+1),
	// with the braces and the name, as many tokens as a body may have and one more
	`{"a":[` + strings.Repeat("1,", maxTokens-5) + `1]}`, `{"a":[` + strings.Repeat("1,", maxTokens-4) + `1]}`,
	`{"a":[` + strings.Repeat("1,", maxTokens-3) + `1]}`, `{"a":[` + strings.Repeat("{},", maxTokens/2) + `1]}`,
}

func TestScanner(t *testing.T) {
	for _, body := range scanned {
		s := scanner{b: []byte(body)}
		if ok, err := s.whole(nil), check([]byte(body)); ok != (err == nil) {
			t.Errorf("%s: scanned %t, check says %v", Clip(body, 100), ok, err)
		}
	}
}

// checkHead asserts that ReadHead agrees with a reader that decodes all of the
// body, and so with other after WithModel.
func checkHead(t *testing.T, body []byte, other string) {
	t.Helper()
	h, err := ReadHead("", body)
	var v headFields
	want := Decode(body, &v)
	if e, ok := err.(*Error); ok && strings.Contains(e.Message, "case of a name") { // which the other reader does not mind
		return
	}
	if want == nil && (v.Model == nil || strings.TrimSpace(*v.Model) == "") {
		mustFail(t, err, CodeModelRequired, "model", "")
		return
	}
	if want != nil {
		if err == nil || err.Error() != want.Error() || err.(*Error).Param != want.(*Error).Param {
			t.Fatalf("%q: got %v, want %v", body, err, want)
		}
		return
	}
	if err != nil || h.Model != strings.TrimSpace(*v.Model) || h.Stream != v.Stream || h.IncludeUsage != v.StreamOptions.IncludeUsage {
		t.Fatalf("%q: got %+v, %v, want %+v", body, h, err, v)
	}
	before := bytes.Clone(body)
	replaced, err := h.WithModel(body, other)
	if err != nil || !bytes.Equal(body, before) {
		t.Fatalf("%q: got %q, %v", before, body, err)
	}
	var was, is map[string]jsontext.Value
	if err := json.Unmarshal(body, &was); err != nil {
		t.Fatal(err)
	}
	if err := Decode(replaced, &is); err != nil {
		t.Fatalf("%q: %v", replaced, err)
	}
	var model string
	if err := json.Unmarshal(is["model"], &model); err != nil || model != strings.ToValidUTF8(text([]byte(other)), "") || len(is) != len(was) {
		t.Fatalf("%q: got %q, %v", replaced, model, err)
	}
	for name, value := range was {
		if name != "model" && !bytes.Equal(is[name], value) {
			t.Fatalf("%q: %s is %s, was %s", replaced, name, is[name], value)
		}
	}
}

func FuzzReadHead(f *testing.F) {
	for _, body := range scanned {
		if len(body) < 2000 {
			f.Add([]byte(body), "n")
		}
	}
	f.Add([]byte(`{"model":"m","stream":true,"stream_options":{"include_usage":true}}`), "n\"\xff\u2028")
	f.Add([]byte(`{"\u006dodel":" m","messages":[{"role":"user","content":[{"type":"text","text":"é😀"}]}],"n":1.5e3}`), "")
	f.Fuzz(func(t *testing.T, body []byte, other string) {
		if _, err := ReadHead("", body); err != nil {
			checkFuzzError(t, err)
		}
		checkHead(t, body, other)
	})
}

// chatOf returns the body of a chat of about so many bytes.
func chatOf(size int) []byte {
	const turn = `{"role":"user","content":"Explain \"goroutines\" to a newcomer,\nwith an example. 🙂 Then compare them with threads, and say when each is the better choice."},`
	return []byte(`{"model":"llama3.2","messages":[` + strings.TrimSuffix(strings.Repeat(turn, max(1, size/len(turn))), ",") + `],"stream":true}`)
}

func BenchmarkReadHead(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10, 1 << 20} {
		body := chatOf(size)
		b.Run(fmt.Sprintf("head/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ReadHead("application/json", body); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("chat/%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeChat(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
