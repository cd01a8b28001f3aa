// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"mime"
	"net/textproto"
	"strings"
	"unicode/utf8"
)

// Bounds of a body in parts.
const (
	maxParts      = 1000
	maxPartHeader = 8 << 10 // bytes of the headers of one
)

// form walks over a body of type multipart/form-data. It takes less than readers
// do: no text around the parts, no line of another end than CR LF in what is not
// content, no line in the content that some reader could take for the end of it.
type form struct {
	b     []byte
	dash  []byte // the two hyphens and the boundary
	i     int    // what is before it is done
	parts int
}

// formPart is a part of a form: its field, and where in the body its content is.
type formPart struct {
	name       string
	file       bool
	start, end int
}

// errForm is the error for a form that is not one, or one that readers could
// understand differently.
func errForm(format string, args ...any) error {
	return invalid("", "the body is not a form that is taken: "+format, args...)
}

// readForm reads the head of a form.
func (h *Head) readForm(boundary string, body []byte) error {
	if !validBoundary(boundary) {
		return errForm("its boundary in the Content-Type is missing or malformed")
	}
	h.boundary = boundary
	f := form{b: body, dash: []byte("--" + boundary)}
	if !bytes.HasPrefix(body, f.dash) {
		return errForm("it does not begin with its boundary")
	}
	f.i = len(f.dash)
	seen := make(map[string]bool, 2)
	for {
		part, ok, err := f.next()
		if err != nil || !ok {
			return err
		}
		if part.name != "model" && part.name != "stream" {
			continue
		}
		content := string(body[part.start:part.end])
		switch {
		case seen[part.name]:
			return invalid(part.name, "%s: there are two parts of that name", part.name)
		case part.file, !utf8.ValidString(content):
			return invalid(part.name, "%s: want a text, not a file", part.name)
		}
		seen[part.name] = true
		if part.name == "model" {
			h.raw, h.start, h.end = content, part.start, part.end
			continue
		}
		switch strings.ToLower(content) { // Python writes a capital
		case "true":
			h.Stream = true
		case "false", "":
		default:
			return invalid("stream", "stream: want true or false, not %q", Clip(content, 64))
		}
	}
}

// validBoundary says whether s may be a boundary, by RFC 2046.
func validBoundary(s string) bool {
	if s == "" || len(s) > 70 || strings.HasSuffix(s, " ") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !isAlnum(r) && !strings.ContainsRune("'()+_,-./:=? ", r)
	})
}

// isAlnum says whether r is a letter or digit of ASCII.
func isAlnum(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// next returns the next part; ok is false when there is none. The form is just
// after a boundary.
func (f *form) next() (p formPart, ok bool, err error) {
	if rest := f.b[f.i:]; bytes.HasPrefix(rest, []byte("--")) {
		if len(rest) > len("--") && string(rest) != "--\r\n" {
			return p, false, errForm("there is more after its end")
		}
		return p, false, nil
	}
	if !bytes.HasPrefix(f.b[f.i:], []byte("\r\n")) {
		return p, false, errForm("a boundary is not on a line of its own")
	}
	if f.parts++; f.parts > maxParts {
		return p, false, errForm("it has more than %d parts", maxParts)
	}
	f.i += len("\r\n")
	header, ok := f.header()
	if !ok {
		return p, false, errForm("the headers of part %d do not end, or are over %d bytes", f.parts, maxPartHeader)
	}
	if p.name, p.file, err = f.readHeader(header); err != nil {
		return p, false, err
	}
	p.start = f.i
	if p.end, ok = f.content(); !ok {
		return p, false, errForm("part %d does not end, or has the boundary in it", f.parts)
	}
	return p, true, nil
}

// header moves over the headers of a part and the blank line after them, and
// returns the headers.
func (f *form) header() (string, bool) {
	rest := f.b[f.i:min(len(f.b), f.i+maxPartHeader)]
	n := bytes.Index(rest, []byte("\r\n\r\n"))
	if n < 0 || bytes.Contains(rest[:n], f.dash) {
		return "", false
	}
	f.i += n + len("\r\n\r\n")
	return string(rest[:n]), true
}

// content moves over the content of a part and the boundary after it, and returns
// where it ends. What begins a line as the boundary does must be it.
func (f *form) content() (int, bool) {
	start := f.i
	for {
		n := bytes.Index(f.b[f.i:], f.dash)
		if n < 0 {
			return 0, false
		}
		at := f.i + n
		f.i = at + len(f.dash)
		if before := f.b[at-1]; before != '\r' && before != '\n' {
			continue
		}
		return at - len("\r\n"), at-len("\r\n") >= start && f.b[at-2] == '\r' && f.b[at-1] == '\n'
	}
}

// readHeader returns the name of a part's field, and whether it is a file.
func (f *form) readHeader(header string) (name string, file bool, err error) {
	found := false
	for line := range strings.SplitSeq(header, "\r\n") {
		key, value, ok := strings.Cut(line, ":")
		if !ok || key == "" || strings.ContainsFunc(key, func(r rune) bool { return !isAlnum(r) && r != '-' }) ||
			strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == '\x7f' }) {
			return "", false, errForm("a header of part %d is malformed", f.parts)
		}
		value = textproto.TrimString(value)
		switch textproto.CanonicalMIMEHeaderKey(key) {
		case "Content-Disposition":
			if found {
				return "", false, errForm("part %d has more than one Content-Disposition", f.parts)
			}
			found = true
			if name, file, ok = disposition(value); !ok {
				return "", false, errForm("the Content-Disposition of part %d is malformed", f.parts)
			}
		case "Content-Type":
			_, params, _ := mime.ParseMediaType(value)
			if c := strings.ToLower(params["charset"]); c != "" && c != "utf-8" && c != "us-ascii" {
				return "", false, errForm("part %d has another charset than UTF-8", f.parts)
			}
		case "Content-Transfer-Encoding":
			if v := strings.ToLower(value); v != "binary" && v != "8bit" && v != "7bit" {
				return "", false, errForm("part %d is encoded; send it without Content-Transfer-Encoding", f.parts)
			}
		}
	}
	if !found {
		return "", false, errForm("part %d has no Content-Disposition", f.parts)
	}
	return name, file, nil
}

// disposition returns the name of a field, and whether it is a file. It refuses
// what readers understand differently: backslashes, and names in another charset
// or in pieces.
func disposition(value string) (name string, file, ok bool) {
	disp, params, err := mime.ParseMediaType(value)
	if err != nil || disp != "form-data" || strings.Contains(value, `\`) {
		return "", false, false
	}
	for i, outside := range strings.Split(value, `"`) { // every other piece
		outside = strings.ReplaceAll(strings.ToLower(outside), "filename*", "")
		if i%2 == 0 && strings.Contains(outside, "name*") {
			return "", false, false
		}
	}
	_, file = params["filename"]
	return params["name"], file, params["name"] != ""
}
