// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestArtifacts(t *testing.T) {
	f := &fakeMesh{dir: t.TempDir()}
	const zip = "PK\x03\x04 pretends to be a zip"
	file := filepath.Join(f.dir, "task_1.zip")
	if err := os.WriteFile(file, []byte(zip), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	g := serve(t, f)
	const path = "/api/tasks/task_1/artifacts"
	a := g.do(t, "GET", path, "")
	if a.status != 200 || a.body != zip {
		t.Errorf("got %d %q", a.status, a.body)
	}
	a.hasRequestID(t)
	for name, want := range map[string]string{
		"Content-Type":            "application/zip",
		"Content-Disposition":     `attachment; filename="task_1.zip"`,
		"X-Content-Type-Options":  "nosniff",
		"Content-Security-Policy": "sandbox; default-src 'none'",
		"Content-Length":          "25",
		"Accept-Ranges":           "bytes",
		"Last-Modified":           "Tue, 14 Nov 2023 22:13:20 GMT",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	etag := a.header.Get("ETag")
	if a := g.do(t, "HEAD", path, ""); a.status != 200 || a.body != "" || a.header.Get("ETag") != etag {
		t.Errorf("HEAD: got %d %q %v", a.status, a.body, a.header)
	}
	if a := g.do(t, "GET", path, "", "Range", "bytes=2-3"); a.status != 206 || a.body != zip[2:4] {
		t.Errorf("a range: got %d %q", a.status, a.body)
	}
	if a := g.do(t, "GET", path, "", "Range", "bytes=20-", "If-Range", etag); a.status != 206 || a.body != zip[20:] {
		t.Errorf("resumed: got %d %q", a.status, a.body)
	}
	if a := g.do(t, "GET", path, "", "Range", "bytes=20-", "If-Range", `"other"`); a.status != 200 || a.body != zip {
		t.Errorf("resumed, another file: got %d %q", a.status, a.body)
	}
	if a := g.do(t, "GET", path, "", "If-None-Match", etag); a.status != 304 || a.body != "" {
		t.Errorf("unchanged: got %d %q", a.status, a.body)
	}
	a = g.do(t, "GET", path, "", "Range", "bytes=100-200")
	a.failed(t, 416, invalidRequest)
	if a.header.Get("Content-Range") != "bytes */25" || a.header.Get("Content-Disposition") != "" {
		t.Errorf("no such range: %v", a.header)
	}
}

func TestArtifactsThatAreNotThere(t *testing.T) {
	f := &fakeMesh{dir: t.TempDir()}
	g := serve(t, f)
	g.do(t, "GET", "/api/tasks/task_1/artifacts", "").failed(t, 404, "task_not_found")
	for _, id := range []string{"..", "%2e%2e", ".hidden", "-x", "a%20b", "a%00", "a%5cb", "%C3%A9", strings.Repeat("a", 129)} {
		g.do(t, "GET", "/api/tasks/"+id+"/artifacts", "").failed(t, 400, invalidRequest)
	}
	// A folder, or no right to read, is our own fault and no news for clients.
	if err := os.Symlink("loop.zip", filepath.Join(f.dir, "loop.zip")); err != nil {
		t.Fatal(err)
	}
	a := g.do(t, "GET", "/api/tasks/loop/artifacts", "")
	a.failed(t, 500, "internal_error")
	if strings.Contains(a.body, f.dir) {
		t.Errorf("got %s", a.body)
	}
}
