// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"strings"
	"testing"
)

// formType is the content type of the forms of the tests.
const formType = "multipart/form-data; boundary=b0"

// formOf returns a form of these parts, in which each line ends with CR LF.
func formOf(parts ...string) string {
	var b strings.Builder
	for _, part := range parts {
		b.WriteString("--b0\r\n" + strings.ReplaceAll(part, "\n", "\r\n") + "\r\n")
	}
	return b.String() + "--b0--\r\n"
}

// textPart is the part of a field.
func textPart(name, value string) string {
	return "Content-Disposition: form-data; name=\"" + name + "\"\n\n" + value
}

// filePart is a part that holds what other parts could begin with.
const filePart = "Content-Disposition: form-data; name=\"file\"; filename=\"name*=model.mp3\"\nContent-Type: audio/mpeg\n\n" +
	"\x00\xff--b0 \r\n\r\nContent-Disposition: form-data; name=\"model\"\n\nother\n--b"

func TestReadForm(t *testing.T) {
	for _, r := range []struct {
		name, body, model string
		stream            bool
	}{
		{"model", formOf(textPart("model", "m")), "m", false},
		{"audio", formOf(filePart, textPart("model", "whisper"), textPart("stream", "true")), "whisper", true},
		{"no quotes, no last line end", strings.TrimSuffix(formOf("content-disposition:form-data;name=model\n\n m \n"), "\r\n"), "m", false},
		{"Python", formOf(textPart("model", "m"), textPart("stream", "False")), "m", false},
		{"Python, true", formOf(textPart("stream", "True"), textPart("model", "m")), "m", true},
		{"headers", formOf("Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n" + textPart("model", "é")), "é", false},
		{"other fields twice", formOf(textPart("include[]", "a"), textPart("include[]", "b"), textPart("model", "m"), textPart("prompt", "")), "m", false},
		{"other name in a charset", formOf(textPart("model", "m"), "Content-Disposition: form-data; name=\"f\"; filename*=UTF-8''%e2%82%ac\n\nx"), "m", false},
	} {
		t.Run(r.name, func(t *testing.T) {
			h, err := ReadHead(formType, []byte(r.body))
			if err != nil || h.Model != r.model || h.Stream != r.stream {
				t.Fatalf("got %+v, %v", h, err)
			}
			checkForm(t, []byte(r.body), "new/model")
			if same, err := h.WithModel([]byte(r.body), h.raw); err != nil || string(same) != r.body {
				t.Errorf("got %q, %v", same, err)
			}
			for _, model := range []string{"a\r\nb", "a\nb", "a\rb", "\x00", "--b0", "a--b0--"} {
				_, err := h.WithModel([]byte(r.body), model)
				mustFail(t, err, CodeInvalidRequest, "model", "")
			}
		})
	}
}

func TestReadFormRefuses(t *testing.T) {
	model := textPart("model", "m")
	for _, r := range []struct{ name, body, param, text string }{
		{"nothing", "", "", "does not begin"},
		{"text before", "x\r\n" + formOf(model), "", "does not begin"},
		{"line before", "\r\n" + formOf(model), "", "does not begin"},
		{"text after", formOf(model) + "x", "", "more after its end"},
		{"no end", strings.TrimSuffix(formOf(model), "--b0--\r\n"), "", "does not end"},
		{"bare LF", strings.ReplaceAll(formOf(model), "\r", ""), "", "on a line of its own"},
		{"space after a boundary", strings.Replace(formOf(model), "--b0\r", "--b0 \r", 1), "", "on a line of its own"},
		{"longer boundary", strings.Replace(formOf(model), "--b0\r", "--b01\r", 1), "", "on a line of its own"},
		{"no model", formOf("Content-Disposition: form-data; name=f; filename=f\n\nx"), "model", ""},
		{"LF boundary", strings.Replace(formOf(model, textPart("f", "x|--b0")), "|", "\n", 1), "", "has the boundary in it"},
		{"CR boundary", strings.Replace(formOf(model, textPart("f", "x|--b0")), "|", "\r", 1), "", "has the boundary in it"},
		{"boundary begins a content", formOf(model, textPart("f", "--b0--")), "", "has the boundary in it"},
		{"boundary in a header", formOf(textPart("--b0", "m")), "", "headers"},
		{"no headers", formOf(model, "\nx"), "", "headers"},
		{"headers only", formOf("Content-Disposition: form-data; name=model"), "", "headers"},
		{"long headers", formOf("X: " + strings.Repeat("x", maxPartHeader) + "\n" + model), "", "headers"},
		{"too many parts", formOf(strings.Split(strings.Repeat(textPart("x", "y")+"|", maxParts)+model, "|")...), "", "more than 1000 parts"},
		{"folded header", formOf("X: y\n z\n" + model), "", "malformed"},
		{"space before a colon", formOf("X : y\n" + model), "", "malformed"},
		{"bare LF in a header", strings.Replace(formOf("X: y|z\n"+model), "|", "\n", 1), "", "malformed"},
		{"control character in a header", formOf("X: \x11\n" + model), "", "malformed"},
		{"delete in a header", formOf("X: \x7f\n" + model), "", "malformed"},
		{"no disposition", formOf("X: y\n\nm"), "", "no Content-Disposition"},
		{"two dispositions", formOf("Content-Disposition: form-data; name=x\n" + model), "", "more than one"},
		{"other disposition", formOf("Content-Disposition: attachment; name=model\n\nm"), "", "malformed"},
		{"two names", formOf("Content-Disposition: form-data; name=x; name=model\n\nm"), "", "malformed"},
		{"name in a charset", formOf("Content-Disposition: form-data; name*=utf-8''model\n\nm"), "", "malformed"},
		{"name in pieces", formOf("Content-Disposition: form-data; NAME*0=mo; name*1=del\n\nm"), "", "malformed"},
		{"escaped name", formOf(`Content-Disposition: form-data; name="mod\el"` + "\n\nm"), "", "malformed"},
		{"encoded", formOf("Content-Transfer-Encoding: quoted-printable\n" + model), "", "is encoded"},
		{"charset", formOf("Content-Type: text/plain; charset=UTF-16\n" + model), "", "charset"},
		{"two models", formOf(model, filePart, model), "model", "two parts"},
		{"two streams", formOf(model, textPart("stream", "true"), textPart("stream", "true")), "stream", "two parts"},
		{"model is a file", formOf("Content-Disposition: form-data; name=model; filename=m\n\nm"), "model", "not a file"},
		{"not UTF-8", formOf(textPart("model", "\xff")), "model", "want a text"},
		{"stream of another value", formOf(model, textPart("stream", "yes")), "stream", "want true or false"},
	} {
		t.Run(r.name, func(t *testing.T) {
			code := CodeInvalidRequest
			if r.text == "" {
				code = CodeModelRequired
			}
			_, err := ReadHead(formType, []byte(r.body))
			mustFail(t, err, code, r.param, r.text)
		})
	}
	for _, contentType := range []string{"multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"b0 \"", "multipart/form-data; boundary=b0; boundary=b1",
		"multipart/form-data; boundary*=utf-8''b0", `multipart/form-data; boundary="b\"0"`, "multipart/form-data; boundary=" + strings.Repeat("x", 71), "multipart/mixed; boundary=b0"} {
		_, err := ReadHead(contentType, []byte(formOf(model)))
		mustFail(t, err, CodeInvalidRequest, "", "boundary")
	}
}

// checkForm asserts that what ReadHead takes is the same for mime/multipart, and so
// after WithModel.
func checkForm(t *testing.T, body []byte, other string) {
	t.Helper()
	h, err := ReadHead(formType, body)
	if err != nil {
		checkFuzzError(t, err)
		return
	}
	was := formParts(t, body)
	if was["model"] != fmt.Sprintf(" %q", h.raw) || (strings.EqualFold(was["stream"], ` "true"`)) != h.Stream {
		t.Fatalf("%q: got %+v, want %q", body, h, was)
	}
	replaced, err := h.WithModel(body, other)
	if err != nil {
		checkFuzzError(t, err)
		return
	}
	is := formParts(t, replaced)
	was["model"] = fmt.Sprintf(" %q", other)
	if fmt.Sprint(is) != fmt.Sprint(was) {
		t.Fatalf("%q: got %q, want %q", replaced, is, was)
	}
}

// formParts returns the contents of the parts of each name.
func formParts(t *testing.T, body []byte) map[string]string {
	t.Helper()
	parts := make(map[string]string)
	r := multipart.NewReader(bytes.NewReader(body), "b0")
	for {
		part, err := r.NextRawPart()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		content, err := io.ReadAll(part)
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		parts[part.FormName()] += fmt.Sprintf(" %q", content)
	}
}

func FuzzReadForm(f *testing.F) {
	f.Add([]byte(formOf(filePart, textPart("model", "m"), textPart("stream", "true"))), "n")
	f.Add([]byte(formOf(textPart("model", ""), textPart("x", "--b0"))), "--b0")
	f.Add([]byte(formOf("Content-Type: text/plain\nContent-Disposition: form-data; name=model; x=\"y\"\n\nm")), "\r\n")
	f.Fuzz(func(t *testing.T, body []byte, other string) { checkForm(t, body, other) })
}
