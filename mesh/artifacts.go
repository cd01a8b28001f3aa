// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// filesGrace is how long after the end of a task's stream the stream with its
// files may begin. A variable for tests.
var filesGrace = 30 * time.Second

// taskTable holds the tasks under way: an artifact is accepted for one of them,
// from the worker that runs it, once. A task that has ended leaves nothing here.
type taskTable struct {
	mu   sync.Mutex
	byID map[string]*task
}

// task is a task under way.
type task struct {
	id  string
	dir string // folder for its files

	mu       sync.Mutex
	worker   peer.ID // who may deliver
	delivery *delivery
}

// delivery is the arrival of the files from one attempt at a task.
type delivery struct {
	stream  network.Stream
	begun   chan struct{} // closed when the stream with the files begins
	done    chan struct{} // closed when it has ended
	claimed bool
	err     error // once done
}

func newTaskTable() *taskTable { return &taskTable{byID: make(map[string]*task)} }

// begin reserves a task id. It returns [ErrTaskID] when a task of that id runs
// or has left files: one client must not overwrite another's.
func (tt *taskTable) begin(id, dir string) (*task, error) {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	if _, ok := tt.byID[id]; ok {
		return nil, ErrTaskID
	}
	if _, err := os.Lstat(artifactFile(dir, id)); err == nil {
		return nil, ErrTaskID
	}
	t := &task{id: id, dir: dir}
	tt.byID[id] = t
	return t, nil
}

// end forgets a task. What is still being delivered for it is not wanted any
// more: its id is free for another.
func (tt *taskTable) end(t *task) {
	t.deliver(nil)
	tt.mu.Lock()
	defer tt.mu.Unlock()
	if tt.byID[t.id] == t {
		delete(tt.byID, t.id)
	}
}

// claim returns the task for which a worker delivers files, and marks the
// delivery as begun.
func (tt *taskTable) claim(id string, worker peer.ID, s network.Stream) (*task, *delivery, error) {
	tt.mu.Lock()
	t, ok := tt.byID[id]
	tt.mu.Unlock()
	if !ok {
		return nil, nil, errors.New("no such task")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch d := t.delivery; {
	case d == nil || t.worker != worker:
		return nil, nil, errors.New("the task is not this worker's")
	case d.claimed:
		return nil, nil, errors.New("the task's files came already")
	default:
		d.claimed, d.stream = true, s
		close(d.begun)
		return t, d, nil
	}
}

// assign says which worker runs the task now. What an earlier attempt delivers
// is none of it.
func (t *task) assign(worker peer.ID) {
	t.mu.Lock()
	t.worker = worker
	t.mu.Unlock()
	t.deliver(&delivery{begun: make(chan struct{}), done: make(chan struct{})})
}

// deliver says whose files are wanted from now on, and ends what is not.
func (t *task) deliver(d *delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.delivery; old != nil && old.stream != nil {
		select {
		case <-old.done:
		default:
			_ = old.stream.Reset()
		}
	}
	t.delivery = d
}

// waitForFiles returns when the files that the worker announced are stored.
func (t *task) waitForFiles(ctx context.Context) error {
	t.mu.Lock()
	d := t.delivery
	t.mu.Unlock()
	grace := time.NewTimer(filesGrace)
	defer grace.Stop()
	select {
	case <-d.begun:
	case <-grace.C:
		return fmt.Errorf("%w: the worker announced files and sent none", ErrArtifact)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-d.done: // always comes: the stream has a deadline of its own
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if d.err != nil {
		return fmt.Errorf("%w: %w", ErrArtifact, d.err)
	}
	return nil
}

// receiveArtifact handles a stream of the artifact protocol.
func (n *node) receiveArtifact(s network.Stream) {
	claimed, err := n.storeArtifact(s)
	if err == nil {
		_ = s.Close()
		return
	}
	metrics.StreamError(metrics.Artifacts, StreamFailure(err))
	level := zapcore.DebugLevel // any stranger can have this written
	if claimed {
		level = zapcore.WarnLevel
	}
	n.log().Log(level, "artifact refused", zap.Stringer("peer", s.Conn().RemotePeer()), zap.Error(err))
	_ = s.Reset()
}

// storeArtifact reads an artifact into its file. claimed says that it was one of a
// task under way.
func (n *node) storeArtifact(s network.Stream) (claimed bool, err error) {
	_ = s.SetReadDeadline(time.Now().Add(FrameTimeout))
	h, err := wire.ReadArtifactHeader(s)
	if err != nil {
		return false, err
	}
	t, d, err := n.tasks.claim(h.TaskID, s.Conn().RemotePeer(), s)
	if err != nil {
		return false, fmt.Errorf("%w: task %s: %w", errUnwanted, h.TaskID, err)
	}
	_ = s.SetReadDeadline(time.Now().Add(ArtifactTimeout))
	d.err = writeArtifact(artifactFile(t.dir, t.id), s, h.Size, func(commit func() error) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.delivery != d {
			return errors.New("the task has ended, or gone to another worker")
		}
		return commit()
	})
	close(d.done)
	return true, d.err
}

// artifactFile is where the zip of a task is. The Python SDK of AgentFM looks there.
func artifactFile(dir, taskID string) string { return filepath.Join(dir, taskID+".zip") }

// writeArtifact writes exactly size bytes of r to file; see storeFile.
func writeArtifact(file string, r io.Reader, size int64, last func(commit func() error) error) error {
	return storeFile(file, func(f *os.File) error {
		if _, err := io.CopyN(f, r, size); err != nil {
			return err
		}
		var more [1]byte
		if k, err := r.Read(more[:]); k > 0 || !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: more than the announced %d bytes", wire.ErrBadFrame, size)
		}
		return nil
	}, last)
}

// storeFile has fill write a file, whole or not at all, and durably: the client is
// told that it is there. last is called with the last step and decides whether it
// is still wanted. A file is never replaced.
func storeFile(file string, fill func(*os.File) error, last func(commit func() error) error) error {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+partSuffix) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := last(func() error { return os.Link(f.Name(), file) }); err != nil {
		return err
	}
	return syncDir(dir)
}

// partSuffix ends the names of artifacts that are being received.
const partSuffix = ".*.part"

// removeParts removes what a process that was killed has left of deliveries.
func removeParts(dir string) {
	parts, _ := filepath.Glob(filepath.Join(dir, ".*.zip.*.part"))
	for _, p := range parts {
		if fi, err := os.Stat(p); err == nil && time.Since(fi.ModTime()) > ArtifactTimeout {
			_ = os.Remove(p)
		}
	}
}

// syncDir makes a change of the folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
