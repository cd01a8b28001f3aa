// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// What a chat says before a message, and before the next line of one.
const (
	ready = "> "
	more  = "  "
)

// input is where the messages of a chat come from.
type input interface {
	// message waits for the next message. The error is io.EOF when there is none, and
	// errStopped after Ctrl-C.
	message() (string, error)
	// restore leaves the terminal as it was found.
	restore()
}

// newInput returns the input of a chat. What is said to whoever types goes to notes.
func newInput(in io.Reader, notes io.Writer) input {
	f, ok := in.(*os.File)
	if ok && terminal(f) && terminal(notes) && os.Getenv("TERM") != "dumb" {
		return newEditor(f, notes)
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxPrompt)
	return &plainInput{lines, notes}
}

// plainInput is an input of lines.
type plainInput struct {
	lines *bufio.Scanner
	notes io.Writer
}

// message implements input.
func (p *plainInput) message() (string, error) {
	fmt.Fprint(p.notes, ready)
	if p.lines.Scan() {
		return p.lines.Text(), nil
	}
	if err := p.lines.Err(); err != nil {
		return "", err
	}
	return "", io.EOF
}

// restore implements input.
func (*plainInput) restore() {}

// editor is an input of a terminal, whose lines can be edited, with those before at the arrow
// keys. The terminal is its own while it waits for a message; else Ctrl-C is an interrupt.
type editor struct {
	keys *keys
	line *term.Terminal

	mu    sync.Mutex
	state *term.State // of the terminal while it is ours; else nil
}

// keys are what is typed, and where that is shown.
type keys struct {
	*os.File           // the terminal
	notes    io.Writer // shows it
	stopped  bool      // there was a Ctrl-C
}

// Read implements io.Reader.
func (k *keys) Read(p []byte) (int, error) {
	n, err := k.File.Read(p)
	k.stopped = k.stopped || bytes.IndexByte(p[:n], 3) >= 0
	return n, err
}

// Write implements io.Writer.
func (k *keys) Write(p []byte) (int, error) { return k.notes.Write(p) }

// newEditor returns an editor.
func newEditor(f *os.File, notes io.Writer) *editor {
	k := &keys{File: f, notes: notes}
	return &editor{keys: k, line: term.NewTerminal(k, ready)}
}

// message implements input. Lines that are pasted are one message, with the one that is typed
// after them.
func (e *editor) message() (string, error) {
	if err := e.take(); err != nil {
		return "", err
	}
	defer e.restore()
	e.line.SetPrompt(ready)
	var b strings.Builder
	for {
		line, err := e.line.ReadLine()
		b.WriteString(line)
		switch {
		case b.Len() > maxPrompt:
			return "", fmt.Errorf("the message has more than %d bytes", maxPrompt)
		case errors.Is(err, term.ErrPasteIndicator):
			b.WriteByte('\n')
			e.line.SetPrompt(more)
		case err == io.EOF && e.keys.stopped:
			history := e.line.History
			e.line = term.NewTerminal(e.keys, ready) // what was typed is forgotten
			e.line.History, e.keys.stopped = history, false
			fmt.Fprint(e.keys.notes, "\r\n")
			return "", errStopped
		default:
			e.keys.stopped = false
			return b.String(), err
		}
	}
}

// take makes the terminal ours.
func (e *editor) take() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	fd := int(e.keys.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("reading from the terminal: %w", err)
	}
	e.state = state
	if width, height, err := term.GetSize(fd); err == nil && width > 0 && height > 0 {
		_ = e.line.SetSize(width, height) // it only draws
	}
	e.line.SetBracketedPasteMode(true)
	return nil
}

// restore implements input.
func (e *editor) restore() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == nil {
		return
	}
	e.line.SetBracketedPasteMode(false)
	_ = term.Restore(int(e.keys.Fd()), e.state) // nobody can be told
	e.state = nil
}
