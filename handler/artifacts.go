// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// artifacts serves GET /api/tasks/{id}/artifacts: the files that a task left.
// They are a stranger's, so that no browser may show them.
func (x *exchange) artifacts() error {
	if !wire.ValidTaskID(x.param) {
		return badRequest("task_id", "the path does not hold a task id")
	}
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	f, known, err := x.filesOf(l)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("opening artifact: %w", err)
	}
	h := x.w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", x.param+".zip"))
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	if known != nil && known.Bytes == info.Size() {
		h.Set("ETag", strconv.Quote(known.SHA256))
		if sum, err := hex.DecodeString(known.SHA256); err == nil {
			h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
		}
	}
	_ = x.rc.SetReadDeadline(time.Time{}) // a download outlasts the time for a body
	w := &fileWriter{ResponseWriter: x.w, send: sender{x}}
	http.ServeContent(w, x.r, "", info.ModTime(), f)
	if w.refused {
		h.Del("Content-Disposition")
		h.Del("Repr-Digest")
		return &problem{status: http.StatusRequestedRangeNotSatisfiable, code: "invalid_request_error",
			message: "the file has no such range"}
	}
	return nil
}

// filesOf opens the files of a task, and says what is known of them. They are its owner's.
// Where nothing is kept of a task of POST /api/execute, they are whose who knows the id.
func (x *exchange) filesOf(l lease) (*os.File, *tasks.Artifact, error) {
	var r *tasks.Record
	var err error
	if tasks.Reserved(x.param) {
		r, err = x.h.tasks.Get(x.r.Context(), x.identity.ID, x.param)
	} else {
		r, err = x.h.tasks.Left(x.r.Context(), x.identity.ID, x.param)
	}
	switch {
	case err != nil:
		return nil, nil, taskStoreProblem(err)
	case r == nil, r.Sync && r.Result.Artifact == nil: // not kept, or not yet
		f, err := l.OpenArtifact(x.param)
		return f, nil, err
	case r.Result.Artifact == nil:
		return nil, nil, noFiles(r.State)
	}
	f, err := l.OpenArtifact(r.RunID()) // until they have the task's own id
	if errors.Is(err, fs.ErrNotExist) {
		f, err = l.OpenArtifact(r.ID)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &problem{status: http.StatusGone, code: "artifacts_expired",
			message: "the files of this task are not in the gateway's folder: they are not kept any more, or the gateway that stored them has another folder"}
	}
	return f, r.Result.Artifact, err
}

// noFiles is the answer where a task has none.
func noFiles(state tasks.State) error {
	message := "the task left no files"
	if !state.Ended() {
		message = "the task has not ended yet: its files are there when it has"
	}
	return &problem{status: http.StatusNotFound, code: "task_not_found", message: message}
}

// roomFor refuses tasks while there is no room for the files that they may leave.
func roomFor(l lease) error {
	if err := l.Roomy(); err != nil {
		return &problem{status: http.StatusServiceUnavailable, code: codeNoRoom, retryAfter: roomRetryAfter,
			message: "the gateway has no room for files of tasks", cause: err}
	}
	return nil
}

// fileWriter gives each write its time, and holds an error of ServeContent back,
// which would be plain text.
type fileWriter struct {
	http.ResponseWriter
	send    sender
	refused bool
}

// WriteHeader implements http.ResponseWriter.
func (w *fileWriter) WriteHeader(status int) {
	if status == http.StatusRequestedRangeNotSatisfiable {
		w.refused = true
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *fileWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.send.Write(p)
}
