// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"archive/zip"
	"context"
	"crypto/sha256"
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

// maxFiles bounds the entries of an artifact.
const maxFiles = 100_000

// answerFiles ends the answer of a task that succeeded: with the marker for no
// files when there is no zip, or with the other and the zip, which it closes.
func answerFiles(ctx context.Context, h host.Host, s network.Stream, taskID string, zipped *zipped) error {
	if zipped == nil {
		return answer(s, "\n"+wire.MarkerNoFiles+"\n")
	}
	defer zipped.Close()
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
		var sent int64
		sent, err = io.Copy(s, zipped.File)
		metrics.ArtifactSent(sent)
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

// zipFiles zips the regular files and folders below dir into file. It returns
// nil when there are none. Whatever else an agent left is passed over: a link
// leads out, a FIFO blocks its reader for ever. What cannot be read, because a
// container has made it as another user, is counted as skipped.
func zipFiles(ctx context.Context, file, dir string) (*zipped, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	sum, skipped := sha256.New(), 0
	z := zip.NewWriter(io.MultiWriter(f, sum))
	entries, budget := 0, int64(wire.MaxArtifact)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist):
			skipped++
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case name == "." || !d.IsDir() && !d.Type().IsRegular():
			return nil
		}
		if entries++; entries > maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		if d.IsDir() {
			_, err := z.Create(name + "/")
			return err
		}
		switch err := zipFile(ctx, z, root, name, &budget); {
		case errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist):
			skipped++
			return nil
		default:
			return err
		}
	})
	left := &zipped{File: f, skipped: skipped}
	if err = errors.Join(err, z.Close()); err == nil {
		left.size, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil || entries == 0 {
		_ = f.Close()
		return nil, err
	}
	sum.Sum(left.sum[:0])
	return left, nil
}

// zipFile adds one regular file. By now the name may be a link, which root keeps
// within the folder, or a FIFO, for which the opening must not wait.
func zipFile(ctx context.Context, z *zip.Writer, root *os.Root, name string, budget *int64) error {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return nil
	}
	w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: fi.ModTime()})
	if err != nil {
		return err
	}
	_, err = io.Copy(w, &budgetedReader{ctx, f, budget})
	return err
}

// budgetedReader ends with the context, and fails when all files together are too
// large: a sparse file costs its agent nothing, and us the reading.
type budgetedReader struct {
	ctx    context.Context
	r      io.Reader
	budget *int64 // bytes that may still be read
}

// Read implements io.Reader.
func (b *budgetedReader) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.r.Read(p)
	if *b.budget -= int64(n); *b.budget < 0 {
		return 0, fmt.Errorf("the files are over %d bytes", int64(wire.MaxArtifact))
	}
	return n, err
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
