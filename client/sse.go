// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// maxEvent bounds one server-sent event, in bytes.
const maxEvent = 16 << 20

// errEventSize says that an event is larger than any of a gateway.
var errEventSize = errors.New("an event is over 16 MiB")

// serverEvent is one server-sent event.
type serverEvent struct {
	name, id string
	data     []byte
}

// eventReader reads server-sent events, as the HTML standard has them.
type eventReader struct {
	r     *bufio.Reader
	begun bool
	cr    bool   // the last line ended with one: a newline now belongs to it
	id    string // the last one
}

// newEventReader returns one that reads from r.
func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, readSize)}
}

// next returns the next event that has data. An event that the end cuts off is none.
func (e *eventReader) next() (ev serverEvent, err error) {
	var data []byte
	has, size := false, 0
	for {
		line, err := e.line()
		if err != nil {
			return serverEvent{}, err
		}
		if len(line) == 0 {
			if has {
				ev.id, ev.data = e.id, data
				return ev, nil
			}
			ev.name = ""
			continue
		}
		if size += len(line); size > maxEvent {
			return serverEvent{}, errEventSize
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "": // a comment
			size = len(data)
		case "data":
			if has {
				data = append(data, '\n')
			}
			data, has = append(data, value...), true
		case "event":
			ev.name = string(value)
		case "id":
			if !bytes.ContainsRune(value, 0) {
				e.id = string(value)
			}
		}
	}
}

// line returns the next line, without its end: LF, CR or both. The slice is good until the
// next call.
func (e *eventReader) line() ([]byte, error) {
	var line []byte
	for {
		b, err := e.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if e.cr && b == '\n' {
			e.cr = false
			continue
		}
		e.cr = b == '\r'
		if b == '\n' || b == '\r' {
			if !e.begun {
				e.begun = true
				line = bytes.TrimPrefix(line, []byte("\uFEFF"))
			}
			return line, nil
		}
		if line = append(line, b); len(line) > maxEvent {
			return nil, errEventSize
		}
	}
}

// isEventStream reports whether a content type is that of server-sent events.
func isEventStream(contentType string) bool {
	mediaType, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(mediaType), "text/event-stream")
}
