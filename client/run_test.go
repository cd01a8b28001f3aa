// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSplitter wants the same text and marker however the output comes.
func TestSplitter(t *testing.T) {
	for _, c := range []struct{ in, text, marker string }{
		{"", "", ""},
		{"text\n[AGENTFM: NO_FILES]\n", "text\n", MarkerNoFiles},
		{"[AGENTFM: FILES_INCOMING]\r\n", "", MarkerFiles},
		{"[AGENTFM: FILES_INCOMING]", "", MarkerFiles},
		{"a\n[AGENTFM: NO_FILES]\nb\n[AGENTFM: NO_FILES]\n", "a\n[AGENTFM: NO_FILES]\nb\n", MarkerNoFiles},
		{"a [AGENTFM: NO_FILES]\n", "a [AGENTFM: NO_FILES]\n", ""},
		{"[AGENTFM: NO_FILES]\n\n", "[AGENTFM: NO_FILES]\n\n", ""},
		{"[AGENT", "[AGENT", ""},
		{"[AGENTFM: x\ny", "[AGENTFM: x\ny", ""},
		{"[AGENTFM: NO_FILES] \n", "[AGENTFM: NO_FILES] \n", ""},
		{"[AGENTFM: " + strings.Repeat("x", 300) + "]\nend", "[AGENTFM: " + strings.Repeat("x", 300) + "]\nend", ""},
		{"äöü€😀\n[AGENTFM: ERROR x]\n", "äöü€😀\n", "[AGENTFM: ERROR x]"},
		{"half \xc3\n[AGENTFM: NO_FILES]\n", "half �\n", MarkerNoFiles},
		{"\xe2\x82", "��", ""},
	} {
		for _, size := range []int{1, 2, 3, 7, 1000} {
			var s splitter
			var b strings.Builder
			for p := range slices.Chunk([]byte(c.in), size) {
				b.WriteString(s.next(p))
			}
			rest, marker := s.end()
			if got := b.String() + rest; got != c.text || marker != c.marker {
				t.Errorf("%q by %d: %q, %q", c.in, size, got, marker)
			}
		}
	}
}

// FuzzSplitter wants nothing to be lost, and the size of the pieces not to matter.
func FuzzSplitter(f *testing.F) {
	f.Add([]byte("a\n[AGENTFM: NO_FILES]\n"), uint8(3))
	f.Add([]byte("[AGENTFM: \n]"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		read := func(n int) (string, string) {
			var s splitter
			var b strings.Builder
			for p := range slices.Chunk(in, n) {
				b.WriteString(s.next(p))
			}
			rest, marker := s.end()
			return b.String() + rest, marker
		}
		text, marker := read(len(in) + 1)
		if again, m := read(int(size) + 1); again != text || m != marker {
			t.Errorf("%q, %q and %q, %q", text, marker, again, m)
		}
		if whole := strings.ToValidUTF8(string(in), ""); marker == "" && strings.ReplaceAll(text, "�", "") != strings.ReplaceAll(whole, "�", "") {
			t.Errorf("%q became %q", in, text)
		}
	})
}

// execution answers as /api/execute does: with an output, and a trailer where status is
// not empty.
func execution(output, status string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-AgentFM-Peer", "12D3")
		w.Header().Set("X-AgentFM-Agent", "HR %C3%9C")
		w.Header().Set("X-AgentFM-Task", "task-1")
		w.Header().Set("X-AgentFM-Attempts", "2")
		w.Header().Set("X-Request-Id", "req-1")
		if status != "" {
			w.Header().Set("Trailer", "X-AgentFM-Status")
		}
		_, _ = io.WriteString(w, output)
		if status != "" {
			w.Header().Set("X-AgentFM-Status", status)
		}
	}
}

func TestStream(t *testing.T) {
	for name, c := range map[string]struct {
		h      http.HandlerFunc
		text   string
		marker string
		kind   Kind
		code   Code
	}{
		"no files":         {execution("hello\n[AGENTFM: NO_FILES]\n", "ok"), "hello\n", MarkerNoFiles, "", ""},
		"files":            {execution("hello\n[AGENTFM: FILES_INCOMING]\n", "ok"), "hello\n", MarkerFiles, "", ""},
		"no trailer":       {execution("hello\n[AGENTFM: NO_FILES]\n", ""), "hello\n", MarkerNoFiles, "", ""},
		"failed":           {execution("hal\n[AGENTFM: ERROR worker_stream_failed]\n", "error"), "hal\n", "", ErrWorkerStream, CodeWorkerStreamFailed},
		"another error":    {execution("hal\n[AGENTFM: ERROR internal_error]\n", "error"), "hal\n", "", ErrInternal, CodeInternal},
		"failed, marker":   {execution("hal\n[AGENTFM: ERROR worker_stream_failed]\n", ""), "hal\n", "", ErrWorkerStream, CodeWorkerStreamFailed},
		"failed, trailer":  {execution("hal", "error"), "hal", "", ErrWorkerStream, CodeWorkerStreamFailed},
		"ends early":       {execution("hal", ""), "hal", "", ErrWorkerStream, CodeWorkerStreamFailed},
		"breaks":           {broken, "hal", "", ErrConnection, ""},
		"refused":          {problem(404, CodeWorkerNotFound), "", "", ErrWorkerNotFound, CodeWorkerNotFound},
		"unreachable":      {problem(502, CodeWorkerUnreachable), "", "", ErrWorkerUnreachable, CodeWorkerUnreachable},
		"overloaded":       {problem(503, CodeMeshOverloaded), "", "", ErrMeshOverloaded, CodeMeshOverloaded},
		"failed at once":   {problem(502, CodeWorkerStreamFailed), "", "", ErrWorkerStream, CodeWorkerStreamFailed},
		"key":              {problem(401, CodeInvalidAPIKey), "", "", ErrAuthentication, CodeInvalidAPIKey},
		"dispatch refused": {problem(403, CodeDispatchRefused), "", "", ErrDispatchRefused, CodeDispatchRefused},
	} {
		client := fake(t, routes{"POST /api/execute": c.h})
		text, marker := "", ""
		s, err := client.Tasks.Stream(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p"})
		if err == nil {
			for chunk, e := range s.All() {
				switch err = e; chunk.Kind {
				case ChunkMarker:
					marker = chunk.Text
				case ChunkText:
					text += chunk.Text
				}
			}
		}
		if text != c.text || marker != c.marker {
			t.Errorf("%s: %q, %q", name, text, marker)
		}
		if e, ok := errors.AsType[*Error](err); (c.kind != "") != ok || ok && (e.Kind != c.kind || e.Code != c.code || e.RequestID != "req-1") {
			t.Errorf("%s: %+v", name, err)
		}
	}
}

// broken breaks off in the middle.
func broken(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-Request-Id", "req-1")
	_, _ = io.WriteString(w, "hal")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// TestStreamClose wants the gateway to see that a stream is closed: by break, by Close, and
// by its context.
func TestStreamClose(t *testing.T) {
	gone := make(chan struct{})
	c := fake(t, routes{"POST /api/execute": func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first ")
		flush(t, w)
		<-r.Context().Done()
		gone <- struct{}{}
	}})
	for name, end := range map[string]func(s *Stream[Chunk], cancel func()) error{
		"break": func(s *Stream[Chunk], _ func()) error {
			for range s.All() {
				break
			}
			return nil
		},
		"close": func(s *Stream[Chunk], _ func()) error { return errors.Join(s.Close(), s.Close()) },
		"context": func(s *Stream[Chunk], cancel func()) error {
			var last error
			for _, last = range s.All() {
				cancel()
			}
			if !errors.Is(last, ErrContext) || !errors.Is(last, context.Canceled) {
				return last
			}
			return nil
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.Tasks.Stream(ctx, RunRequest{WorkerID: "12D3", Prompt: "p"})
		if err == nil {
			err = end(s, cancel)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-gone
		cancel()
	}
}

func TestRun(t *testing.T) {
	var got map[string]any
	exec := func(output string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Error(err)
			}
			execution(output, "ok")(w, r)
		}
	}
	zip := func(content []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }
	}
	good := zipOf(t, map[string]string{"policy.md": "# Leave", "data/a.csv": "1,2"})
	c := fake(t, routes{"POST /api/execute": exec("done\n[AGENTFM: FILES_INCOMING]\n"), "GET /api/tasks/task-1/artifacts": zip(good)})
	dir := t.TempDir()
	var r *Result
	r, err := c.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p", TaskID: "task-1", ArtifactsDir: dir})
	if err != nil || r.Text != "done\n" || r.WorkerID != "12D3" || r.TaskID != "task-1" || !r.HasFiles || r.Duration <= 0 {
		t.Fatal(r, err)
	}
	slices.Sort(r.Artifacts)
	if want := []string{filepath.Join(dir, "task-1", "data", "a.csv"), filepath.Join(dir, "task-1", "policy.md")}; !slices.Equal(r.Artifacts, want) {
		t.Error(r.Artifacts)
	}
	if b, err := os.ReadFile(r.Artifacts[1]); err != nil || string(b) != "# Leave" {
		t.Errorf("%q, %v", b, err)
	}
	if got["worker_id"] != "12D3" || got["prompt"] != "p" || got["task_id"] != "task-1" || len(got) != 3 {
		t.Error(got)
	}
	own, _ := c.With(WithArtifactsDir(filepath.Join(dir, "own")))
	if r, err := own.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p"}); err != nil || len(r.Artifacts) != 2 {
		t.Error(r, err)
	}
	if r, err := c.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p"}); err != nil || r.Artifacts != nil || !r.HasFiles {
		t.Error(r, err)
	}
	bad := fake(t, routes{"POST /api/execute": exec("done\n[AGENTFM: FILES_INCOMING]\n"), "GET /api/tasks/task-1/artifacts": zip(zipOf(t, map[string]string{"../x": ""}))})
	r, err = bad.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p", ArtifactsDir: dir + "/bad"})
	if !errors.Is(err, ErrArtifact) || r == nil || r.Text != "done\n" || r.Artifacts != nil {
		t.Error(r, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bad", "task-1")); !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, r := range []RunRequest{{Prompt: "p"}, {WorkerID: "w"}} {
		if _, err := c.Tasks.Run(t.Context(), r); !errors.Is(err, ErrInvalidRequest) {
			t.Error(err)
		}
	}
}

// TestRunFilesError wants the cause of missing files to be there.
func TestRunFilesError(t *testing.T) {
	c := fake(t, routes{"POST /api/execute": execution("done\n[AGENTFM: FILES_INCOMING]\n", "ok"), "GET /api/tasks/task-1/artifacts": problem(404, CodeTaskNotFound)})
	r, err := c.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p", ArtifactsDir: t.TempDir()})
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != ErrArtifact || e.Code != CodeTaskNotFound || e.Status != 404 || e.RequestID != "req-1" || !errors.Is(err, ErrNotFound) || !strings.Contains(e.Message, "it is") {
		t.Errorf("%+v", err)
	}
	if r == nil || r.Text != "done\n" || r.Duration <= 0 {
		t.Error(r)
	}
}

// TestForeignTaskID wants no answer to choose where files go: what is not the id of a task is
// an error, and nothing is written.
func TestForeignTaskID(t *testing.T) {
	var id string
	good := zipOf(t, map[string]string{"evil": "x"})
	c := fake(t, routes{
		"POST /api/execute": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-AgentFM-Task", id)
			_, _ = io.WriteString(w, "done\n[AGENTFM: FILES_INCOMING]\n")
		},
		"POST /v1/chat/completions": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-AgentFM-Task", id)
			answer(200, `{"choices":[]}`)(w, r)
		},
		"POST /api/execute/async": func(w http.ResponseWriter, r *http.Request) { answer(202, map[string]string{"task_id": id})(w, r) },
		"/":                       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) },
	})
	for _, id = range []string{"../../x", "..", ".", "a/b", `a\b`, "/x", "-x", "a b", "a:b", strings.Repeat("a", 129)} {
		root := t.TempDir()
		dir := filepath.Join(root, "one", "two")
		if _, err := c.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p", ArtifactsDir: dir}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: run: %v", id, err)
		}
		if _, err := c.OpenAI.Chat(t.Context(), ChatRequest{Model: "m", Messages: []ChatMessage{{"user", "hi"}}}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: chat: %v", id, err)
		}
		if _, err := c.Tasks.Submit(t.Context(), SubmitRequest{WorkerID: "12D3", Prompt: "p"}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: submit: %v", id, err)
		}
		if _, err := c.Tasks.Artifacts(t.Context(), id, filepath.Join(dir, id)); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%q: artifacts: %v", id, err)
		}
		if _, err := c.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p", TaskID: id, ArtifactsDir: dir}); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%q: own id: %v", id, err)
		}
		if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
			t.Errorf("%q: %v, %v", id, left, err)
		}
	}
}

// TestRunOutputLimit wants no program to run out of memory by what an agent says.
func TestRunOutputLimit(t *testing.T) {
	c := fake(t, routes{"/": func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20+1))
	}})
	defer func(n int64) { maxOutput = n }(maxOutput)
	maxOutput = 1 << 20
	if _, err := c.Tasks.Run(t.Context(), RunRequest{WorkerID: "12D3", Prompt: "p"}); !errors.Is(err, ReasonOutputTooLarge) {
		t.Error(err)
	}
}
