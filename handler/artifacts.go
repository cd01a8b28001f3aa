// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"net/http"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
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
	f, err := x.filesOf(l)
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
	_ = x.rc.SetReadDeadline(time.Time{}) // a download outlasts the time for a body
	w := &fileWriter{ResponseWriter: x.w, send: sender{x}}
	http.ServeContent(w, x.r, "", info.ModTime(), f)
	if w.refused {
		h.Del("Content-Disposition")
		return &problem{status: http.StatusRequestedRangeNotSatisfiable, code: "invalid_request_error",
			message: "the file has no such range"}
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
