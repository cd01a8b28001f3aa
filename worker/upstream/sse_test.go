// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// readAll returns the names and data of all events.
func readAll(r io.Reader) (string, error) {
	var out []string
	for events := newEvents(r); ; {
		ev, err := events.next()
		if err != nil {
			return strings.Join(out, "|"), err
		}
		out = append(out, ev.name+"="+string(ev.data))
	}
}

func TestEvents(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "",
		"\n\n":                                 "",
		": comment\n\ndata: a\n\n":             "=a",
		"data: a\r\n\r\ndata: b\r\n\r\n":       "=a|=b",
		"data: a\r\rdata: b\r\r":               "=a|=b",
		"\ufeffdata: a\n\n":                    "=a",
		"data:a\ndata: b\ndata\n\n":            "=a\nb\n",
		"event: error\ndata: x\n\ndata: y\n\n": "error=x|=y",
		"event: gone\n\ndata: y\n\n":           "=y",
		"id: 1\nretry: 5\nother: x\ndata: a\n: c\n\n":       "=a",
		"data: a\n\ndata: [DONE]":                           "=a|=[DONE]",
		"data:  two\n\n":                                    "= two",
		"data: " + strings.Repeat("x", maxEvent/2) + "\n\n": "=" + strings.Repeat("x", maxEvent/2),
	} {
		for how, r := range map[string]io.Reader{"whole": strings.NewReader(in), "bytes": iotest.OneByteReader(strings.NewReader(in))} {
			if how == "bytes" && len(in) > 1<<10 {
				continue // each byte would have the line looked at again
			}
			if got, err := readAll(r); got != want || !errors.Is(err, io.EOF) {
				t.Errorf("%.50q, %s: got %.50q, %v", in, how, got, err)
			}
		}
	}
	broken := errors.New("broken")
	if got, err := readAll(io.MultiReader(strings.NewReader("data: a\n\ndata: b"), iotest.ErrReader(broken))); got != "=a" || !errors.Is(err, broken) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, in := range []string{
		"data: " + strings.Repeat("x", 2*maxEvent), strings.Repeat("data: "+strings.Repeat("x", maxEvent/2)+"\n", 3), ":" + strings.Repeat("x", 2*maxEvent),
	} {
		if _, err := readAll(strings.NewReader(in)); !errors.Is(err, errEvent) {
			t.Errorf("over the limit: got %v", err)
		}
	}
}

// FuzzEvents wants the same events however they come, and of a stream that is not
// large no error.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{"data: a\n\n", ":c\r\n\r\nevent: e\rdata: a\ndata: b\r\n\r", "\ufeffdata", "data: {\"choices\":[]}\n\ndata: [DONE]\n\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := readAll(bytes.NewReader(in))
		if !errors.Is(err, io.EOF) && len(in) < maxEvent {
			t.Fatal(err)
		}
		if len(in) > 4<<10 {
			return
		}
		pieces, _ := readAll(iotest.OneByteReader(bytes.NewReader(in)))
		if whole != pieces {
			t.Fatalf("whole %q, in pieces %q", whole, pieces)
		}
		r := &Runtime{key: new(apiKey)}
		for events := newEvents(bytes.NewReader(in)); ; {
			ev, err := events.next()
			if err != nil {
				return
			}
			_, _, _, _ = r.piece(ev)
		}
	})
}
