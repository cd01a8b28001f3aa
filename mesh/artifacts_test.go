// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// TestLargeArtifact wants large files of a worker of protocol 1 to reach the disk
// through little memory. Those of protocol 2 do so in e2e.
func TestLargeArtifact(t *testing.T) {
	size := int64(64 << 20)
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		size = 2 << 30
	}
	a := newTestApp(t, nil)
	var m runtime.MemStats
	var before, most uint64
	var w *peerHost
	w = newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		_, _ = io.WriteString(s, "\n"+wire.MarkerFiles+"\n")
		to, err := w.NewStream(context.Background(), a.node.Load().host.ID(), wire.ArtifactProtocol)
		if err != nil {
			t.Error(err)
			return
		}
		err = wire.WriteArtifactHeader(to, wire.ArtifactHeader{Size: size, TaskID: req.TaskID})
		runtime.GC()
		runtime.ReadMemStats(&m)
		before = m.HeapInuse
		piece := make([]byte, 1<<20)
		for n := int64(0); n < size && err == nil; n += int64(len(piece)) {
			if n%(64<<20) == 0 {
				w.publish(t) // it is online still
			}
			_, err = to.Write(piece)
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
		}
		if err = errors.Join(err, to.CloseWrite()); err != nil {
			t.Error(err)
		}
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the gateway has refused them: %v", err)
		}
		_ = s.Close()
	})
	c := call("m")
	c.TaskID = "large"
	run, err := lease(t, a).Dispatch(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, run); err != nil || !run.HasFiles() {
		t.Fatalf("files: %v, %v", run.HasFiles(), err)
	}
	_ = run.Close()
	if left := run.Artifact(); left.Size != size || len(left.SHA256) != 64 {
		t.Errorf("it says %+v", left)
	}
	fi, err := os.Stat(filepath.Join(a.artifacts.dir, "large.zip"))
	if err != nil || fi.Size() != size {
		t.Errorf("stored: %v, %v", fi, err)
	}
	grown := (int64(most) - int64(before)) >> 20
	t.Logf("%d MiB; the heap of both ends grew by %d MiB at most", size>>20, grown)
	if grown > 32 {
		t.Error("too much memory")
	}
}
