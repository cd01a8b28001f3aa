// SPDX-License-Identifier: Apache-2.0

//go:build linux

package lifecycle

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// volume returns the folder of a file system of a size, such as 64m.
func volume(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("mounting a file system takes root: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	return dir
}

// fill takes all room of a file system, until the function that it returns is called.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for piece := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(piece)
	}
	if pathErr, ok := err.(*os.PathError); !ok || pathErr.Err != syscall.ENOSPC {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// While the disks of its tasks and of their files are full, a gateway takes no tasks and
// says so; those that it has accepted have an end that can be read, and it goes on by
// itself when there is room.
func TestFullDisks(t *testing.T) {
	store, files := volume(t, "64m"), volume(t, "32m")
	leaves := counted(t)
	leaves.runtime = strings.Replace(leaves.runtime, "counted.sh", "leaves.sh", 1)
	c := config{
		name: "run", app: "tasks {\n\t\t\tin_flight 64\n\t\t\tstore " + filepath.Join(store, "tasks") + "\n\t\t}",
		files: filepath.Join(files, "artifacts"), env: []string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"},
		agents: []agent{leaves},
	}
	a := newAccountant(t)
	p := start(t, newPlace(t), c)
	p.awaitWorker("counted")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for n := range 4 {
		clients.Go(func() { a.submit(ctx, p.gateway, n) })
	}
	accepted := a.count
	health := func() int {
		var v any
		return a.call(ctx, p.gateway, "GET", "/health", nil, &v)
	}
	for range 2 {
		before := accepted()
		await(t, "tasks are accepted", func() bool { return accepted() > before+20 })
		emptyStore, emptyFiles := fill(t, store), fill(t, files)
		await(t, "the gateway is not well", func() bool { return health() == http.StatusServiceUnavailable })
		wantNoRoom(t, p.gateway)
		sleep(ctx, time.Second) // tasks end meanwhile
		emptyStore()
		emptyFiles()
		freed := time.Now()
		await(t, "the gateway is well", func() bool { return health() == http.StatusOK })
		t.Logf("well %s after there was room", time.Since(freed).Round(time.Millisecond))
	}
	before := accepted()
	await(t, "tasks are accepted", func() bool { return accepted() > before+20 })
	stop()
	clients.Wait()
	a.settle(p.gateway)
	a.verdict(p.gateway)
	p.terminate()
	p.awaitExit()
}

// wantNoRoom wants a submission to be refused for now.
func wantNoRoom(t *testing.T, g gateway) {
	t.Helper()
	resp, err := client.Post(g.place.url("/api/execute/async"), "application/json", strings.NewReader(`{"model":"counted","prompt":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Error struct{ Code string } }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusServiceUnavailable ||
		answer.Error.Code != "task_store_unavailable" && answer.Error.Code != "artifact_storage_full" || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %+v, Retry-After %q, %v", resp.StatusCode, answer, resp.Header.Get("Retry-After"), err)
	}
}
