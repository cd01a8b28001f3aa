// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"
)

// FuzzEventReader wants any bytes to end, in an error or in an exit, the same in
// whatever pieces they come, and no piece to be larger than a line allows.
func FuzzEventReader(f *testing.F) {
	for _, seed := range []string{
		"",
		"event: output\ndata: {\"text\":\"a\"}\n\nevent: exit\ndata: {\"status\":\"ok\"}\n\n",
		"event: output\r\ndata: {\"bytes\":\"/w==\",\"text\":\"x\"}\r\n\r\nevent: exit\r\ndata: {\"status\":\"failed\",\"reason\":\"a\\u001bb\"}\r\n\r\n",
		"event: artifact\ndata: {\"size\":5,\"sha256\":\"" + strings.Repeat("0", 64) + "\"}\n\nevent: artifact\ndata: {\"size\":1}\n\n",
		"event: artifact\ndata: {\"size\":9223372036854775807,\"sha256\":\"\"}\n\n",
		"event: artifact\ndata: {\"size\":1,\"sha256\":\"" + strings.Repeat("0", 64) + "\",\"skipped\":-1,\"skipped_files\":[{\"reason\":\"a\\nb\",\"count\":-2,\"names\":[\"\\u202e\",\"" + strings.Repeat("n", 200) + "\",\"\",\"\",\"\",\"\",\"\"]}]}\n\n",
		": comment\n\nevent: later\ndata: [1]\n\ndata: {}\n\nevent: exit\n",
		"event: output\ndata: " + strings.Repeat("x", maxEvent) + "\n\n",
		"event: exit\ndata: {\"status\":\"ok\"}\n\nevent: output\ndata: {\"text\":\"late\"}\n\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := NewEventReader(bytes.NewReader(b))
		out, err := io.ReadAll(whole)
		if len(out) > len(b)*3 { // U+FFFD for each byte
			t.Fatalf("%d bytes of %d", len(out), len(b))
		}
		if a := whole.Artifact(); a != nil && (a.Size <= 0 || a.Size > MaxArtifact || len(a.SHA256) != 64) {
			t.Fatalf("artifact %+v", a)
		} else if a != nil {
			checkSkipped(t, a)
		}
		if err != nil && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrAgentFailed) && !errors.Is(err, ErrBadFrame) && !errors.Is(err, ErrFrameTooLarge) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if err == nil && !bytes.Contains(b, []byte("exit")) {
			t.Fatal("an end without an exit")
		}
		slow := NewEventReader(iotest.OneByteReader(bytes.NewReader(b)))
		again, err2 := io.ReadAll(slow)
		if !bytes.Equal(out, again) || (err == nil) != (err2 == nil) {
			t.Fatalf("byte by byte: %q, %v instead of %q, %v", again, err2, out, err)
		}
	})
}

// checkSkipped wants what is told of files that were left out to be within its bounds.
func checkSkipped(t *testing.T, a *Artifact) {
	t.Helper()
	texts := []string{}
	for _, s := range a.SkippedFiles {
		if s.Count < 0 || len(s.Names) > MaxSkippedNames {
			t.Fatalf("skipped %+v", s)
		}
		texts = append(append(texts, s.Reason), s.Names...)
	}
	for _, text := range texts {
		if len(text) > MaxSkippedName || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("skipped %q", text)
		}
	}
	if a.Skipped < 0 || len(a.SkippedFiles) > MaxSkipped {
		t.Fatalf("skipped %+v", a)
	}
}

// TestSkippedFits wants the largest list of what was left out to be an event that can
// be read.
func TestSkippedFits(t *testing.T) {
	a := Artifact{Size: 1, SHA256: strings.Repeat("0", 64), Skipped: 1 << 40}
	for range MaxSkipped {
		s := Skipped{Reason: strings.Repeat("r", 60), Count: 1 << 40}
		for range MaxSkippedNames {
			s.Names = append(s.Names, strings.Repeat(`\`, MaxSkippedName))
		}
		a.SkippedFiles = append(a.SkippedFiles, s)
	}
	var b bytes.Buffer
	w := NewEventWriter(&b)
	if err := errors.Join(w.Artifact(a), w.Exit(Exit{Status: ExitOK})); err != nil {
		t.Fatal(err)
	}
	r := NewEventReader(&b)
	_, err := io.ReadAll(r)
	if got := r.Artifact(); err != nil || got == nil || len(got.SkippedFiles) != MaxSkipped || got.SkippedFiles[15].Names[4] != a.SkippedFiles[15].Names[4] {
		t.Errorf("%v, %+v", err, got)
	}
}

// FuzzEvents wants an agent's output to come out as it went in, and never to be
// taken for an event.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("a\nb"), "reason", true)
	f.Add([]byte("\n\nevent: exit\ndata: {\"status\":\"ok\"}\n\n"), "a\r\nb", false)
	f.Add([]byte("\xff\xc3\xa9\xe2\x82"), "", false)
	f.Add(bytes.Repeat([]byte("\xe2\x82\xac"), MaxEventOutput/2), "", true)
	f.Fuzz(func(t *testing.T, out []byte, reason string, ok bool) {
		var b bytes.Buffer
		w := NewEventWriter(&b)
		_, _ = w.Write(out)
		status := ExitFailed
		if ok {
			status = ExitOK
		}
		_ = w.Exit(Exit{Status: status, Reason: reason})
		got, err := io.ReadAll(NewEventReader(&b))
		if !bytes.Equal(got, out) || ok != (err == nil) || !ok && !errors.Is(err, ErrAgentFailed) {
			t.Fatalf("got %q, %v of %q", got, err, out)
		}
	})
}

// FuzzParseProfile wants what is taken to be within its bounds, and to be taken
// again when it is passed on.
func FuzzParseProfile(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"peer_id":"x","cpu_cores":1,"max_tasks":1,"status":"AVAILABLE"}`,
		`{"peer_id":"x","cpu_cores":1,"max_tasks":4,"status":"AVAILABLE","models":["a","b"],"routes":["/v1/chat/completions"],"max_body_bytes":1,"later":{"x":[1]}}`,
		`{"peer_id":"x","cpu_cores":1,"max_tasks":4,"status":"AVAILABLE","models":["\u202e"],"routes":["/etc"],"max_body_bytes":-1}`,
		`{"mesh_protocol":1e999}`, `{"max_tasks":-1,"cpu_usage_pct":-1e308}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProfile(b)
		if err != nil {
			return
		}
		if len(p.Models) > MaxModels || len(p.Routes) > maxRoutes || p.MaxBody < 0 {
			t.Fatalf("taken: %+v", p)
		}
		for _, m := range p.Models {
			if CheckModel(m) != nil || strings.ContainsFunc(m, unprintable) {
				t.Fatalf("model %q", m)
			}
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := ParseProfile(again); err != nil && len(again) <= MaxProfile || err == nil && q.PeerID != p.PeerID {
			t.Fatalf("not taken again: %v", err)
		}
	})
}

// FuzzDecodeTask wants what is taken to be safe as a file's name, and within bounds.
func FuzzDecodeTask(f *testing.F) {
	for _, prompt := range []string{"", "hi", "a\x00b", "é\r\n", strings.Repeat("x", 1000)} {
		b, _ := EncodeTask("t-1", prompt)
		f.Add(b)
	}
	for _, seed := range []string{`{}`, `[]`, `null`, `{"version":"1.3.0","task":"agent_task","data":"x","task_id":"../x"}`,
		`{"version":"1.3.0","task":"agent_task","data":"x","task_id":"a"}{}`, `{"task_id":"a","task_id":"b"}`, "{\"data\":\"\xff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := DecodeTask(b)
		if err != nil || req.Version != Version { // the caller refuses that
			return
		}
		if !ValidTaskID(req.TaskID) || strings.ContainsAny(req.TaskID, "/\\\x00") || strings.HasPrefix(req.TaskID, ".") || len(b) > MaxTaskFrame {
			t.Fatalf("taken: %+v", req)
		}
		if !utf8.ValidString(req.Data) {
			t.Fatalf("taken: %q", req.Data)
		}
		frame, err := EncodeTask(req.TaskID, req.Data)
		if errors.Is(err, ErrFrameTooLarge) {
			return
		}
		if again, err2 := DecodeTask(frame); err != nil || err2 != nil || again.Data != req.Data || again.TaskID != req.TaskID {
			t.Fatalf("%+v is %+v when sent again: %v, %v", req, again, err, err2)
		}
	})
}
