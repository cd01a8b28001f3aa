// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
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
	id     string
	folder *artifactFolder // for its files

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
	err     error          // once done
	files   *wire.Artifact // once done without an error
}

func newTaskTable() *taskTable { return &taskTable{byID: make(map[string]*task)} }

// begin reserves a task id. It returns [ErrTaskID] when a task of that id runs
// or has left files: one client must not overwrite another's.
func (tt *taskTable) begin(id string, folder *artifactFolder) (*task, error) {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	if _, ok := tt.byID[id]; ok {
		return nil, ErrTaskID
	}
	if _, err := os.Lstat(folder.file(id)); err == nil {
		return nil, ErrTaskID
	}
	t := &task{id: id, folder: folder}
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

// waitForFiles returns what the files are that the worker announced, when they are stored.
func (t *task) waitForFiles(ctx context.Context) (*wire.Artifact, error) {
	t.mu.Lock()
	d := t.delivery
	t.mu.Unlock()
	grace := time.NewTimer(filesGrace)
	defer grace.Stop()
	select {
	case <-d.begun:
	case <-grace.C:
		return nil, fmt.Errorf("%w: the worker announced files and sent none", ErrArtifact)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case <-d.done: // always comes: the stream has a deadline of its own
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrArtifact, d.err)
	}
	return d.files, nil
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
	sum := sha256.New()
	d.err = t.folder.store(t.id, h.Size, func(f *os.File) error { return copyWhole(io.MultiWriter(f, sum), s, h.Size) }, func(commit func() error) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.delivery != d {
			return errors.New("the task has ended, or gone to another worker")
		}
		return commit()
	})
	d.files = &wire.Artifact{Size: h.Size, SHA256: hex.EncodeToString(sum.Sum(nil))}
	close(d.done)
	return true, d.err
}

// copyWhole writes exactly size bytes of r to w, after which r must end.
func copyWhole(w io.Writer, r io.Reader, size int64) error {
	switch _, err := io.CopyN(w, r, size); {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF // for whom io.EOF is the good end
	case err != nil:
		return err
	}
	var more [1]byte
	switch k, err := r.Read(more[:]); {
	case k > 0:
		return fmt.Errorf("%w: more than the announced %d bytes", wire.ErrBadFrame, size)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
