// SPDX-License-Identifier: Apache-2.0

package client

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// zipOf returns a zip file.
func zipOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range files {
		w, err := z.Create(name)
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDownload wants a broken download to go on, and another zip not to be taken.
func TestDownload(t *testing.T) {
	content := []byte(strings.Repeat("0123456789", 100))
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	serve := func(etag string, pieces int, more http.HandlerFunc) http.HandlerFunc {
		n := 0
		return func(w http.ResponseWriter, r *http.Request) {
			if more != nil && n > 0 {
				more(w, r)
				return
			}
			if n++; etag != "" {
				w.Header().Set("ETag", etag)
			}
			if n < pieces {
				w = &short{w, 300}
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}
	}
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind Kind
	}{
		"at once":          {serve(`"`+sum+`"`, 0, nil), ""},
		"in pieces":        {serve(`"`+sum+`"`, 4, nil), ""},
		"another etag":     {serve(`"17-2f"`, 4, nil), ""},
		"no etag":          {serve("", 1, nil), ""},
		"no etag, broken":  {serve("", 2, nil), ErrConnection},
		"weak":             {serve(`W/"x"`, 2, nil), ErrConnection},
		"another zip":      {serve(`"`+strings.Repeat("0", 64)+`"`, 0, nil), ErrArtifact},
		"changed":          {serve(`"a"`, 2, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }), ErrArtifact},
		"another part":     {serve(`"a"`, 2, otherPart("bytes 0-999/1000")), ErrProtocol},
		"of another":       {serve(`"a"`, 2, otherPart("bytes 300-999/1001")), ErrProtocol},
		"of nothing":       {serve(`"a"`, 2, otherPart("")), ErrProtocol},
		"gone by then":     {serve(`"a"`, 2, problem(404, CodeTaskNotFound)), ErrNotFound},
		"no range by then": {serve(`"a"`, 2, problem(416, CodeInvalidRequest)), ErrInvalidRequest},
	} {
		var b bytes.Buffer
		d, err := fake(t, routes{"GET /api/tasks/t/artifacts": c.h}).Tasks.Download(t.Context(), "t", &b)
		if c.kind != "" {
			if !errors.Is(err, c.kind) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(b.Bytes(), content) || d.Size != 1000 || d.SHA256 != sum {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	c := fake(t, routes{"/": serve("", 0, nil)})
	if _, err := c.Tasks.Download(t.Context(), "t", failingWriter{}); !errors.Is(err, ErrArtifact) || !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// otherPart answers with a part that was not asked for.
func otherPart(contentRange string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
	}
}

// failingWriter is a full disk.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

// short breaks an answer off after so many bytes.
type short struct {
	http.ResponseWriter
	left int
}

func (s *short) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		_, _ = s.ResponseWriter.Write(p[:len(p)+s.left])
		_ = http.NewResponseController(s.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return s.ResponseWriter.Write(p)
}

func TestArtifacts(t *testing.T) {
	good := zipOf(t, map[string]string{"a/b.txt": "x"})
	serve := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	}
	c := fake(t, routes{
		"GET /api/tasks/t/artifacts":    serve(good),
		"GET /api/tasks/evil/artifacts": serve(zipOf(t, map[string]string{"ok": "x", "../../evil": "x"})),
		"GET /api/tasks/half/artifacts": serve(good[:len(good)-5]),
		"GET /":                         problem(404, CodeTaskNotFound),
	})
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	dir := filepath.Join(t.TempDir(), "out")
	paths, err := c.Tasks.Artifacts(t.Context(), "t", dir)
	if err != nil || len(paths) != 1 || paths[0] != filepath.Join(dir, "a", "b.txt") {
		t.Fatal(paths, err)
	}
	for id, kind := range map[string]Kind{"evil": ErrArtifact, "half": ErrArtifact, "none": ErrNotFound, "t": ErrArtifact} { // the last is there already
		if _, err := c.Tasks.Artifacts(t.Context(), id, dir); !errors.Is(err, kind) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Error(left)
	}
	if left, _ := os.ReadDir(temp); len(left) != 0 {
		t.Error(left)
	}
	file := filepath.Join(temp, "x.zip")
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if paths, err := Unpack(t.Context(), file, dir+"2"); err != nil || len(paths) != 1 {
		t.Error(paths, err)
	}
	if _, err := Unpack(t.Context(), file+"x", dir+"3"); !errors.Is(err, ErrArtifact) || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ended, file, dir+"4"); !errors.Is(err, ErrContext) {
		t.Error(err)
	}
}
