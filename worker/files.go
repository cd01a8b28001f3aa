// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// answerFiles ends the answer of a task that succeeded: with the marker for no
// files when there is no zip, or with the other and the zip.
func answerFiles(ctx context.Context, h host.Host, s network.Stream, taskID string, zipped *zipped) error {
	if zipped == nil {
		return answer(s, "\n"+wire.MarkerNoFiles+"\n")
	}
	metrics.ArtifactBuilt()
	if err := answer(s, "\n"+wire.MarkerFiles+"\n"); err != nil {
		return err
	}
	return sendFiles(ctx, h, s, taskID, zipped)
}

// sendFiles sends a zip to the gateway of the task and waits until it has it.
func sendFiles(ctx context.Context, h host.Host, task network.Stream, taskID string, zipped *zipped) error {
	dialCtx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "agentfm"), mesh.DialTimeout)
	defer cancel()
	s, err := h.NewStream(dialCtx, task.Conn().RemotePeer(), wire.ArtifactProtocol)
	if err != nil {
		metrics.StreamError(metrics.Artifacts, metrics.Dial)
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	_ = s.SetDeadline(time.Now().Add(mesh.ArtifactTimeout))
	err = wire.WriteArtifactHeader(s, wire.ArtifactHeader{Size: zipped.size, TaskID: taskID})
	if err == nil {
		err = zipped.write(ctx, countSent{s})
	}
	if err == nil {
		err = s.CloseWrite()
	}
	if err == nil { // the gateway closes its side when it has stored the zip, and resets when it has not
		_, err = s.Read(make([]byte, 1))
	}
	if errors.Is(err, io.EOF) {
		return s.Close()
	}
	_ = s.Reset()
	if ctx.Err() == nil { // else it is the task that ended
		metrics.StreamError(metrics.Artifacts, mesh.StreamFailure(err))
	}
	return fmt.Errorf("the gateway did not take them: %w", err)
}

// countSent counts what is sent of a zip.
type countSent struct{ io.Writer }

// Write implements io.Writer.
func (w countSent) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	metrics.ArtifactSent(int64(n))
	return n, err
}

// prune removes from a folder whatever is not collected: what waits takes no more room
// than it has.
func (z *zipped) prune(ctx context.Context) error {
	if len(z.skipped) == 0 {
		return nil
	}
	root, err := os.OpenRoot(z.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	wanted := make(map[string]file, len(z.files))
	for _, f := range z.files {
		wanted[f.path] = f
	}
	return pruneFolder(ctx, root, ".", wanted)
}

// pruneFolder does so in one folder and those below it.
func pruneFolder(ctx context.Context, root *os.Root, dir string, wanted map[string]file) error {
	f, err := root.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK|openDir, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var failed error
	for {
		names, err := f.Readdirnames(walkBatch)
		for _, name := range names {
			path := filepath.Join(dir, name)
			switch found, ok := wanted[path]; {
			case ctx.Err() != nil:
				return nil // all goes
			case !ok:
				err := root.RemoveAll(path)
				failed = cmp.Or(failed, err)
			case found.dir:
				err := pruneFolder(ctx, root, path, wanted)
				failed = cmp.Or(failed, err)
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return cmp.Or(failed, err)
		}
	}
}

// removeAll removes a folder, also where an agent took away our right to.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) // before its entries are read
		}
		return nil
	})
	return os.RemoveAll(dir)
}
