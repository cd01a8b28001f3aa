// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// maxEvent bounds a line, and the data of an event, in bytes.
const maxEvent = 1 << 20

// errEvent refuses what is over the limit.
var errEvent = errors.New("an event is too large")

// event is a server-sent event.
type event struct {
	name string
	data []byte // valid until the next one is read
}

// events reads server-sent events.
type events struct {
	lines *bufio.Scanner
	after bool // a carriage return: a line feed that follows belongs to it
	begun bool
	data  []byte
}

// newEvents returns a reader of events.
func newEvents(r io.Reader) *events {
	e := &events{lines: bufio.NewScanner(r)}
	e.lines.Buffer(make([]byte, 0, 4<<10), maxEvent)
	e.lines.Split(e.split)
	return e
}

// next returns the next event that has data. At the end, io.EOF; one that no blank
// line ends is there all the same, for whoever reads it sees whether it is whole.
func (e *events) next() (event, error) {
	var ev event
	e.data = e.data[:0]
	found := false
	for e.lines.Scan() {
		line := e.lines.Bytes()
		if !e.begun {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
			e.begun = true
		}
		if len(line) == 0 {
			if found {
				break
			}
			ev.name = ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) { // a comment has no name
		case "event":
			ev.name = string(value)
		case "data":
			if found {
				e.data = append(e.data, '\n')
			}
			found = true
			if e.data = append(e.data, value...); len(e.data) > maxEvent {
				return event{}, errEvent
			}
		}
	}
	switch err := e.lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return event{}, errEvent
	case err != nil:
		return event{}, err
	case !found:
		return event{}, io.EOF
	}
	ev.data = e.data
	return ev, nil
}

// split is a bufio.SplitFunc for lines that end with a line feed, a carriage return,
// or both. It does not wait for what follows a carriage return.
func (e *events) split(b []byte, end bool) (advance int, line []byte, err error) {
	skip := 0
	if e.after && len(b) > 0 {
		e.after = false
		if b[0] == '\n' {
			skip = 1
		}
	}
	rest := b[skip:]
	i := bytes.IndexAny(rest, "\r\n")
	switch {
	case i >= 0:
		e.after = rest[i] == '\r'
		return skip + i + 1, rest[:i], nil
	case end && len(rest) > 0:
		return len(b), rest, nil
	case end:
		return len(b), nil, nil
	}
	return skip, nil, nil
}
