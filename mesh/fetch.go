// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// fetchTries is how often the fetching of an artifact may break without a byte
// having come.
const fetchTries = 4

// errHash says that an artifact is not what the worker announced.
var errHash = errors.New("its hash is not the one that was announced")

// fetchArtifact stores the files of a task that a worker announced: whole, with
// the hash that it told, or not at all. A transfer that breaks goes on where it
// was.
func (r *Run) fetchArtifact(id peer.ID, a *wire.Artifact) error {
	ctx, cancel := context.WithTimeout(r.ctx, ArtifactTimeout)
	defer cancel()
	if a.Skipped > 0 {
		r.node.log().Info("a worker has left out files of a task", zap.Stringer("peer", id), zap.String("task", r.task.id),
			zap.Int("count", a.Skipped), zap.Any("files", a.SkippedFiles))
	}
	f := &fetch{run: r, worker: id, artifact: a, sum: sha256.New()}
	err := f.store(ctx)
	if err != nil && r.ctx.Err() == nil {
		metrics.StreamError(metrics.Artifacts, StreamFailure(err))
	}
	r.node.running.Go(func() { r.node.forgetTask(id, r.task.id) }) // the client need not wait for that
	return err
}

// forgetTask tells a worker that nobody needs any more what a task has left. A
// worker that does not hear it forgets it by itself.
func (n *node) forgetTask(id peer.ID, task string) {
	ctx, cancel := context.WithTimeout(context.Background(), FrameTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	x, err := n.streams.exchange(ctx, id,
		&httpRequest{method: http.MethodDelete, target: wire.PathTasks + "/" + task, idempotent: true}, deadline)
	if err != nil {
		return
	}
	x.rest()
}

// fetch is an artifact on its way.
type fetch struct {
	run      *Run
	worker   peer.ID
	artifact *wire.Artifact
	sum      hash.Hash
	got      int64
}

// store fetches the artifact into its file.
func (f *fetch) store(ctx context.Context) error {
	t := f.run.task
	return t.folder.store(t.id, f.artifact.Size, func(file *os.File) error {
		for broken := 0; f.got < f.artifact.Size; {
			before := f.got
			err := f.part(ctx, file)
			switch {
			case err == nil:
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, wire.ErrRefused), errors.Is(err, wire.ErrBadFrame), StreamFailure(err) == metrics.Local:
				return err
			case f.got > before:
				broken = 0
			default:
				if broken++; broken >= fetchTries {
					return err
				}
				select { // the connection may come back
				case <-ctx.Done():
				case <-time.After(time.Duration(broken) * 250 * time.Millisecond):
				}
			}
		}
		if hex.EncodeToString(f.sum.Sum(nil)) != f.artifact.SHA256 {
			return fmt.Errorf("%w: %w", wire.ErrBadFrame, errHash)
		}
		return nil
	}, func(commit func() error) error { return commit() })
}

// part fetches what is missing, or as much of it as comes.
func (f *fetch) part(ctx context.Context, file io.Writer) error {
	path := wire.ArtifactPath(f.run.task.id)
	header := http.Header{}
	if f.got > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(f.got, 10)+"-")
		header.Set("If-Range", wire.ArtifactTag(f.artifact.SHA256))
	}
	deadline, _ := ctx.Deadline()
	x, err := f.run.node.streams.exchange(ctx, f.worker,
		&httpRequest{method: http.MethodGet, target: path, header: header, idempotent: true}, within(FrameTimeout, deadline))
	if err != nil {
		return err
	}
	whole := false
	defer func() { x.end(whole) }()
	want := http.StatusOK
	if f.got > 0 {
		want = http.StatusPartialContent
	}
	if x.resp.StatusCode != want {
		return fmt.Errorf("%w: status %d instead of %d", wire.ErrRefused, x.resp.StatusCode, want)
	}
	if left := f.artifact.Size - f.got; x.resp.ContentLength != left {
		return fmt.Errorf("%w: %d bytes instead of %d", wire.ErrBadFrame, x.resp.ContentLength, left)
	}
	n, err := io.Copy(io.MultiWriter(file, f.sum), &pacedBody{x, deadline})
	f.got += n
	whole = err == nil && f.got == f.artifact.Size
	return err
}

// pacedBody reads a body of which something comes every now and then.
type pacedBody struct {
	x        *exchange
	deadline time.Time
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	b.x.limit(within(FrameTimeout, b.deadline))
	return b.x.Read(p)
}
