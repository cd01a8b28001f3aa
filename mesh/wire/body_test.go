// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// TestReadBody wants a body whole whatever was announced of it, and an early end to
// be an error where its length was.
func TestReadBody(t *testing.T) {
	for _, c := range []struct {
		body            string
		length, trusted int64
		err             error
	}{
		{"", 0, 8, nil},
		{"", -1, 8, nil},
		{"hello", 5, 8, nil},
		{"hello", -1, 8, nil},
		{"hello, all", 10, 8, nil},
		{"hello, all", 5, 8, nil}, // a server would not give more
		{"he", 5, 8, io.ErrUnexpectedEOF},
	} {
		got, err := ReadBody(iotest.OneByteReader(strings.NewReader(c.body)), c.length, c.trusted)
		if !errors.Is(err, c.err) || err == nil && string(got) != c.body {
			t.Errorf("%q of %d: got %q, %v", c.body, c.length, got, err)
		}
	}
}
