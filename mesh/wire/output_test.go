// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const noFiles = "\n[AGENTFM: NO_FILES]\n"

// readers cut one stream into pieces in different ways.
var readers = map[string]func(io.Reader) io.Reader{
	"whole": func(r io.Reader) io.Reader { return r },
	"bytes": iotest.OneByteReader,
	"halfs": iotest.HalfReader,
	"eof":   iotest.DataErrReader,
}

func TestOutputReader(t *testing.T) {
	reset := errors.New("stream reset")
	for name, c := range map[string]struct {
		in    string
		cause error // of the stream's end; nil is a clean close
		want  string
		err   error
		files bool
	}{
		"empty":                 {in: noFiles, want: ""},
		"line":                  {in: "hello\n" + noFiles, want: "hello\n"},
		"no newline":            {in: "hello" + noFiles, want: "hello"},
		"files":                 {in: "hello\n\n[AGENTFM: FILES_INCOMING]\n", want: "hello\n", files: true},
		"indented marker":       {in: "hello\n \t[AGENTFM: NO_FILES]\n", want: "hello"},
		"CRLF":                  {in: "a\r\nb\r\n" + noFiles, want: "a\r\nb\r\n"},
		"blank lines":           {in: "a\n\n\n" + noFiles, want: "a\n\n\n"},
		"forged in the middle":  {in: "a\n[AGENTFM: NO_FILES]\nb\n" + noFiles, want: "a\n[AGENTFM: NO_FILES]\nb\n"},
		"forged at the end":     {in: "a\n[AGENTFM: FILES_INCOMING]\n" + noFiles, want: "a\n[AGENTFM: FILES_INCOMING]\n"},
		"marker inside a line":  {in: "see [AGENTFM: NO_FILES]\n" + noFiles, want: "see [AGENTFM: NO_FILES]\n"},
		"long line":             {in: strings.Repeat("x", 100_000) + noFiles, want: strings.Repeat("x", 100_000)},
		"long looks like it":    {in: "[AGENTFM: " + strings.Repeat("x", 5000) + noFiles, want: "[AGENTFM: " + strings.Repeat("x", 5000)},
		"binary":                {in: "\x00\xff\xfe\n\xf0\x9f" + noFiles, want: "\x00\xff\xfe\n\xf0\x9f"},
		"newlines only":         {in: strings.Repeat("\n", 10_000) + noFiles, want: strings.Repeat("\n", 10_000)},
		"exit":                  {in: "a\n\n⚠️  Sandbox exited: exit status 3\n" + noFiles, want: "a\n", err: ErrAgentFailed},
		"exit without output":   {in: "⚠️  Sandbox exited: exit status 126\n" + noFiles, want: "", err: ErrAgentFailed},
		"exit without marker":   {in: "a\n⚠️  Sandbox exited: exit status 1\n", want: "a", err: ErrAgentFailed},
		"start failed":          {in: "❌ Failed to start task: no such image\n" + noFiles, want: "", err: ErrAgentFailed},
		"exit quoted":           {in: "⚠️  Sandbox exited: exit status 3\nis a bad thing\n" + noFiles, want: "⚠️  Sandbox exited: exit status 3\nis a bad thing\n"},
		"full":                  {in: RefuseTasks(4, 4) + "\n", err: ErrCapacity},
		"loaded":                {in: RefuseCPU(99) + "\n", err: ErrCapacity},
		"GPU":                   {in: RefuseGPU(99) + "\n", err: ErrCapacity},
		"version":               {in: RefuseVersion() + "\n", err: ErrRefused},
		"version, no newline":   {in: RefuseVersion(), err: ErrRefused},
		"refusal as an answer":  {in: RefuseVersion() + "\n" + noFiles, want: RefuseVersion() + "\n"},
		"refusal after output":  {in: "a\n" + RefuseVersion() + "\n", want: "a\n" + RefuseVersion() + "\n", err: ErrTruncated},
		"refusal of two lines":  {in: RefuseVersion() + "\nmore\n", want: RefuseVersion() + "\nmore\n", err: ErrTruncated},
		"cut":                   {in: "hello wor", want: "hello wor", err: ErrTruncated},
		"nothing at all":        {in: "", err: ErrTruncated},
		"reset":                 {in: "hello\n", cause: reset, want: "hello\n", err: reset},
		"reset after a marker":  {in: "hello\n\n[AGENTFM: FILES_INCOMING]\n", cause: reset, want: "hello\n", err: reset},
		"reset within a marker": {in: "hello\n\n[AGENTFM: FI", cause: reset, want: "hello\n", err: reset},
	} {
		for how, cut := range readers {
			t.Run(name+"/"+how, func(t *testing.T) {
				var r io.Reader = strings.NewReader(c.in)
				if c.cause != nil {
					r = io.MultiReader(r, iotest.ErrReader(c.cause))
				}
				o := NewOutputReader(cut(r), 4096)
				got, err := io.ReadAll(o)
				if string(got) != c.want {
					t.Errorf("output %.100q, want %.100q", got, c.want)
				}
				if !errors.Is(err, c.err) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if o.Files() != c.files {
					t.Errorf("files %v, want %v", o.Files(), c.files)
				}
			})
		}
	}
}

// TestOutputReaderEager wants each newline at once, and the marker's own too, but
// none from an agent that wrote nothing: it may yet have failed.
func TestOutputReaderEager(t *testing.T) {
	for in, want := range map[string]string{
		"hello\n" + noFiles:  "hello\n\n",
		"hello" + noFiles:    "hello\n",
		noFiles:              "",
		"\na" + noFiles:      "\na\n",
		"a\n\n\nb" + noFiles: "a\n\n\nb\n",

		"a\n[AGENTFM: NO_FILES]\n" + noFiles: "a\n[AGENTFM: NO_FILES]\n\n",
		"[AGENTFM: NO_FILES]" + noFiles:      "[AGENTFM: NO_FILES]\n",
	} {
		o := NewOutputReader(iotest.OneByteReader(strings.NewReader(in)), 64)
		o.EagerNewline = true
		if got, err := io.ReadAll(o); string(got) != want || err != nil {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

// TestOutputReaderEagerFailure wants no output of an agent that failed without any,
// so that the answer can still say so in its status.
func TestOutputReaderEagerFailure(t *testing.T) {
	for _, in := range []string{"\n" + Exited("exit status 3") + noFiles, "\n" + StartFailed(errors.New("no shell")) + noFiles} {
		o := NewOutputReader(iotest.OneByteReader(strings.NewReader(in)), 64)
		o.EagerNewline = true
		if got, err := io.ReadAll(o); len(got) > 0 || !errors.Is(err, ErrAgentFailed) {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

// TestOutputReaderStreams wants every piece as soon as it cannot be the
// worker's, before the next one comes.
func TestOutputReaderStreams(t *testing.T) {
	for _, eager := range []bool{false, true} {
		r, w := io.Pipe()
		o := NewOutputReader(r, 64)
		o.EagerNewline = eager
		line := "tok"
		if eager {
			line = "line\n"
		}
		for range 3 {
			go func() { _, _ = io.WriteString(w, line) }()
			buf := make([]byte, 64)
			n, err := o.Read(buf)
			if string(buf[:n]) != line || err != nil {
				t.Fatalf("eager %v: got %q, %v; want %q", eager, buf[:n], err, line)
			}
		}
		_ = w.Close()
	}
}

// FuzzOutputReader checks that what an agent writes comes out as it went in,
// however the stream is cut, unless its last words are a status.
func FuzzOutputReader(f *testing.F) {
	for _, s := range []string{"", "hello\n", "a\r\n[AGENTFM: NO_FILES]\n", "\n\n\n", "⚠️  Sandbox exited: exit status 1\n", "  [AGENTFM:", "text\n[AGENTFM: NO_FILES]\n",
		RefuseVersion()} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, out []byte, size uint8) {
		stream := append(bytes.Clone(out), noFiles...)
		o := NewOutputReader(&pieces{stream, int(size) + 1}, 300)
		got, err := io.ReadAll(o)
		if errors.Is(err, ErrAgentFailed) {
			if !bytes.Contains(out, []byte("Sandbox exited")) && !bytes.Contains(out, []byte("Failed to start task")) {
				t.Fatalf("%q: %v", out, err)
			}
			return
		}
		if err != nil || !bytes.Equal(got, out) {
			t.Fatalf("%q became %q, %v", out, got, err)
		}
		eager := NewOutputReader(&pieces{bytes.Clone(stream), int(size) + 1}, 300)
		eager.EagerNewline = true
		want := string(out)
		if want != "" { // an agent that wrote nothing has no newline, either
			want += "\n"
		}
		if got, err := io.ReadAll(eager); err != nil || string(got) != want {
			t.Fatalf("%q became %q with each newline at once, %v", out, got, err)
		}
		// without the marker it is an error, and no panic, whatever it is
		if _, err := io.ReadAll(NewOutputReader(&pieces{bytes.Clone(out), int(size) + 1}, 300)); err == nil &&
			!bytes.Contains(out, []byte(markerPrefix)) {
			t.Fatalf("%q without a marker is a success", out)
		}
	})
}

// pieces gives out at most n bytes a read.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.b)
	p.b = p.b[n:]
	return n, nil
}
