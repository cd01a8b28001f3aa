// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestTaskRoundTrip(t *testing.T) {
	for _, prompt := range []string{"", "hello", "a\r\nb\x00c", "<&>", "  \u202e 日本", strings.Repeat("x", MaxTaskFrame-200)} {
		frame, err := EncodeTask("task_1", prompt)
		if err != nil {
			t.Fatalf("EncodeTask(%.20q): %v", prompt, err)
		}
		req, err := ReadTask(iotest.OneByteReader(bytes.NewReader(frame)))
		if err != nil || req.Data != prompt || req.TaskID != "task_1" || req.Version != Version {
			t.Errorf("ReadTask(EncodeTask(%.20q)) = %.80q, %v", prompt, req, err)
		}
	}
}

// TestTaskFrame pins the bytes that AgentFM 1.3 workers read.
func TestTaskFrame(t *testing.T) {
	frame, err := EncodeTask("task_1", `say "hi" <b>`)
	want := `{"version":"1.3.0","task":"agent_task","data":"say \"hi\" <b>","task_id":"task_1"}`
	if err != nil || string(frame) != want {
		t.Errorf("got %s, %v; want %s", frame, err, want)
	}
}

func TestEncodeTaskRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		id, prompt string
		want       error
	}{
		"no id":       {"", "x", ErrBadFrame},
		"path id":     {"../x", "x", ErrBadFrame},
		"long id":     {strings.Repeat("a", 129), "x", ErrBadFrame},
		"not UTF-8":   {"a", "\xff", ErrBadFrame},
		"too large":   {"a", strings.Repeat("x", MaxTaskFrame), ErrFrameTooLarge},
		"escapes big": {"a", strings.Repeat("\n", MaxTaskFrame*2/3), ErrFrameTooLarge},
	} {
		if _, err := EncodeTask(c.id, c.prompt); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestReadTaskRefuses(t *testing.T) {
	good := `{"version":"1.3.0","task":"agent_task","data":"x","task_id":"a"}`
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"empty":           {"", ErrBadFrame},
		"cut":             {good[:20], ErrBadFrame},
		"garbage":         {"hello", ErrBadFrame},
		"array":           {"[]", ErrBadFrame},
		"null":            {"null", ErrBadFrame},
		"trailing":        {good + "{}", ErrBadFrame},
		"no version":      {`{"task":"agent_task","data":"x","task_id":"a"}`, ErrBadFrame},
		"other kind":      {`{"version":"1.3.0","task":"shell","data":"x","task_id":"a"}`, ErrBadFrame},
		"no id":           {`{"version":"1.3.0","task":"agent_task","data":"x"}`, ErrBadFrame},
		"path id":         {`{"version":"1.3.0","task":"agent_task","data":"x","task_id":"../../etc"}`, ErrBadFrame},
		"wrong type":      {`{"version":"1.3.0","task":"agent_task","data":7,"task_id":"a"}`, ErrBadFrame},
		"not UTF-8":       {`{"version":"1.3.0","task":"agent_task","data":"` + "\xff" + `","task_id":"a"}`, ErrBadFrame},
		"endless string":  {`{"version":"` + strings.Repeat("1", 2*MaxTaskFrame), ErrFrameTooLarge},
		"endless nesting": {strings.Repeat("[", 2*MaxTaskFrame), ErrBadFrame},
		"endless space":   {strings.Repeat(" ", 2*MaxTaskFrame), ErrFrameTooLarge},
	} {
		if _, err := ReadTask(strings.NewReader(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestReadTaskOtherVersion wants no error: the caller answers with words.
func TestReadTaskOtherVersion(t *testing.T) {
	req, err := ReadTask(strings.NewReader(`{"version":"9.9.9","other":true}`))
	if err != nil || req.Version != "9.9.9" {
		t.Errorf("got %+v, %v", req, err)
	}
}

// TestReadTaskOpenStream reads from a gateway that keeps its side open.
func TestReadTaskOpenStream(t *testing.T) {
	r, w := io.Pipe()
	frame, _ := EncodeTask("a", "x")
	go func() { _, _ = w.Write(frame) }()
	if req, err := ReadTask(r); err != nil || req.Data != "x" {
		t.Errorf("got %+v, %v", req, err)
	}
}

func TestNewTaskID(t *testing.T) {
	a, b := NewTaskID(), NewTaskID()
	if !ValidTaskID(a) || a == b || len(a) != len("task_")+24 {
		t.Errorf("ids %q, %q", a, b)
	}
}

func TestArtifactHeader(t *testing.T) {
	var b bytes.Buffer
	if err := WriteArtifactHeader(&b, ArtifactHeader{Size: 258, TaskID: "ab"}); err != nil {
		t.Fatal(err)
	}
	if want := "\x02\x01\x00\x00\x00\x00\x00\x00\x02ab"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	b.WriteString("zip")
	h, err := ReadArtifactHeader(&b)
	if err != nil || h != (ArtifactHeader{258, "ab"}) || b.String() != "zip" {
		t.Errorf("got %+v, %v, rest %q", h, err, b.String())
	}
}

func TestArtifactHeaderRefuses(t *testing.T) {
	raw := func(size uint64, id string) []byte {
		b := binary.LittleEndian.AppendUint64(nil, size)
		return append(append(b, byte(len(id))), id...)
	}
	for name, in := range map[string][]byte{
		"empty":     nil,
		"cut":       raw(1, "abc")[:10],
		"size 0":    raw(0, "a"),
		"size 2^63": raw(1<<63, "a"),
		"size -1":   raw(^uint64(0), "a"),
		"too large": raw(MaxArtifact+1, "a"),
		"no id":     raw(1, ""),
		"path id":   raw(1, "../x"),
		"long id":   raw(1, strings.Repeat("a", 200)),
	} {
		if h, err := ReadArtifactHeader(bytes.NewReader(in)); err == nil {
			t.Errorf("%s: accepted as %+v", name, h)
		}
	}
}

func FuzzReadTask(f *testing.F) {
	f.Add([]byte(`{"version":"1.3.0","task":"agent_task","data":"x","task_id":"a"}`))
	f.Add([]byte(`{"version":"2"}`))
	f.Add([]byte("[[[["))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := ReadTask(bytes.NewReader(b))
		if err != nil || req.Version != Version {
			return
		}
		frame, err := EncodeTask(req.TaskID, req.Data)
		if err != nil && !errors.Is(err, ErrFrameTooLarge) {
			t.Fatalf("accepted what cannot be sent: %v", err)
		}
		if err == nil {
			if again, err := ReadTask(bytes.NewReader(frame)); err != nil || again != req {
				t.Fatalf("%+v became %+v, %v", req, again, err)
			}
		}
	})
}

func FuzzReadArtifactHeader(f *testing.F) {
	f.Add([]byte("\x02\x01\x00\x00\x00\x00\x00\x00\x02ab"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadArtifactHeader(bytes.NewReader(b))
		if err != nil {
			return
		}
		var w bytes.Buffer
		if err := WriteArtifactHeader(&w, h); err != nil || !bytes.HasPrefix(b, w.Bytes()) {
			t.Fatalf("%+v: %v", h, err)
		}
	})
}

// The request of a client comes with its task, as it is, and a peer without it sends
// and reads what it always did.
func TestTaskWithItsRequest(t *testing.T) {
	const request = `{"messages":[{"content":"<b>\u00fc"}],"temperature":0.5}`
	frame, err := EncodeTaskOf("t1", "hi", []byte(request))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]RawJSON{
		string(frame): request,
		`{"version":"1.3.0","task":"agent_task","data":"hi","task_id":"t1"}`:                "",
		`{"version":"1.3.0","task":"agent_task","data":"hi","task_id":"t1","request":null}`: "",
	} {
		if got, err := DecodeTask([]byte(name)); err != nil || got.Request != want || got.Data != "hi" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	plain, err := EncodeTask("t1", "hi")
	if err != nil || strings.Contains(string(plain), "request") {
		t.Errorf("without a request: %s, %v", plain, err)
	}
	if _, err := EncodeTaskOf("t1", "hi", []byte(`"`+strings.Repeat("x", MaxTaskFrame)+`"`)); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("a request that is too large: %v", err)
	}
}
