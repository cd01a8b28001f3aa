// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// leaveFiles leaves a file of the size that the prompt says.
func leaveFiles(_ context.Context, task Task) (Exit, error) {
	var size int
	_, err := fmt.Sscan(task.Prompt, &size)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	return Exit{}, errors.Join(err, os.WriteFile(filepath.Join(task.OutputDir, "f"), content, 0o600))
}

// keptCount returns how many zips wait.
func keptCount(a *agent) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.kept)
}

// TestKeptFiles wants the files of a task to be there for its gateway, whole and in
// parts, and for nobody else, until it deletes them.
func TestKeptFiles(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g, other := newGateway(t, a), newGateway(t, a)
	_, files, err := g.run(t, "t1", "300000")
	if err != nil || files == nil {
		t.Fatal(files, err)
	}
	path := wire.ArtifactPath("t1")
	whole := g.do(t, "GET", path, "")
	sum := sha256.Sum256([]byte(whole.body))
	if whole.err != nil || int64(len(whole.body)) != files.Size || hex.EncodeToString(sum[:]) != files.SHA256 ||
		whole.Header.Get("ETag") != wire.ArtifactTag(files.SHA256) {
		t.Errorf("got %d bytes, %v, of %+v", len(whole.body), whole.err, files)
	}
	for rng, want := range map[string]string{"bytes=100-": whole.body[100:], "bytes=0-9": whole.body[:10]} {
		if got := g.do(t, "GET", path, "", "Range", rng, "If-Range", wire.ArtifactTag(files.SHA256)); got.StatusCode != 206 || got.body != want {
			t.Errorf("%s: got %d, %d bytes", rng, got.StatusCode, len(got.body))
		}
	}
	if got := g.do(t, "GET", path, "", "Range", "bytes="+strings.Repeat("0-,", 5000)+"0-"); len(got.body) > len(whole.body) {
		t.Errorf("5,000 parts that are the whole: got %d bytes", len(got.body))
	}
	if got := g.do(t, "GET", path, "", "Range", "bytes=100-", "If-Range", `"sha256:other"`); got.StatusCode != 200 || got.body != whole.body {
		t.Errorf("part of another: got %d, %d bytes", got.StatusCode, len(got.body))
	}
	for _, method := range []string{"GET", "DELETE"} {
		target := path
		if method == "DELETE" {
			target = wire.PathTasks + "/t1"
		}
		if got := other.do(t, method, target, ""); got.StatusCode != 404 {
			t.Errorf("%s by another gateway: got %d", method, got.StatusCode)
		}
	}
	if got := g.do(t, "DELETE", wire.PathTasks+"/t1", ""); got.StatusCode != 204 {
		t.Errorf("got %d", got.StatusCode)
	}
	if got := g.do(t, "GET", path, ""); got.StatusCode != 404 {
		t.Errorf("after it was deleted: got %d", got.StatusCode)
	}
	await.Until(t, "the folders are gone", func() bool { return len(leftovers(t)) == 0 })
	// The id is free again, and the end of the first does not take the second.
	for range 20 {
		if _, files, err := g.run(t, "t1", "10"); err != nil || files == nil {
			t.Fatal(files, err)
		}
		if got := g.do(t, "GET", path, ""); got.StatusCode != 200 {
			t.Fatalf("got %d", got.StatusCode)
		}
		g.do(t, "DELETE", wire.PathTasks+"/t1", "")
	}
}

// TestKeptBound has one gateway leave more files than are kept: those that nobody
// asked for make room, so that another gateway's tasks still succeed.
func TestKeptBound(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g, other := newGateway(t, a), newGateway(t, a)
	for i := range maxKept + 10 {
		if _, files, err := g.run(t, fmt.Sprintf("t%d", i), "1"); err != nil || files == nil {
			t.Fatal(i, files, err)
		}
	}
	if n := keptCount(a); n > maxKept {
		t.Errorf("%d are kept, at most %d", n, maxKept)
	}
	if _, files, err := other.run(t, "mine", "1"); err != nil || files == nil {
		t.Errorf("another gateway: %v, %v", files, err)
	}
	if got := other.do(t, "GET", wire.ArtifactPath("mine"), ""); got.StatusCode != 200 {
		t.Errorf("another gateway: got %d", got.StatusCode)
	}
	await.Until(t, "the folders of those that are gone", func() bool { return len(leftovers(t)) <= maxKept })
	a.mu.Lock()
	for range maxKept {
		a.evictKept() // or the agent's end waits for gateways to ask
	}
	a.mu.Unlock()
	other.do(t, "DELETE", wire.PathTasks+"/mine", "")
}

// TestKeptAndLeaving wants an agent that was taken out to wait for a gateway that
// has its files to fetch.
func TestKeptAndLeaving(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g := newGateway(t, a)
	if _, files, err := g.run(t, "t1", "1000"); err != nil || files == nil {
		t.Fatal(files, err)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := g.do(t, "GET", wire.ArtifactPath("t1"), ""); got.StatusCode != 200 {
		t.Errorf("got %d", got.StatusCode)
	}
	g.do(t, "POST", wire.PathTasks, frame(t, "t2", "1")).refused(t, "a task", wire.RefusalCapacity, 503)
	if got := g.do(t, "DELETE", wire.PathTasks+"/t1", ""); got.StatusCode != 204 {
		t.Errorf("got %d", got.StatusCode)
	}
	await.Until(t, "the agent has gone", func() bool {
		live.Lock()
		defer live.Unlock()
		return live.byKey["a"] == nil
	})
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
