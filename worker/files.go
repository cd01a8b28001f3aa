// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"archive/zip"
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

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// maxFiles bounds the entries of an artifact.
const maxFiles = 100_000

// answerFiles ends the answer of a task that succeeded: with the marker for no
// files, or with the other and the files. scratch is a folder for the zip.
func answerFiles(ctx context.Context, h host.Host, s network.Stream, taskID, scratch, dir string) error {
	zipped, err := zipFiles(ctx, filepath.Join(scratch, "artifact.zip"), dir)
	if err != nil {
		return err
	}
	if zipped == nil {
		return answer(s, "\n"+wire.MarkerNoFiles+"\n")
	}
	defer zipped.Close()
	if err := answer(s, "\n"+wire.MarkerFiles+"\n"); err != nil {
		return err
	}
	return sendFiles(ctx, h, s, taskID, zipped)
}

// sendFiles sends a zip to the gateway of the task and waits until it has it.
func sendFiles(ctx context.Context, h host.Host, task network.Stream, taskID string, zipped *os.File) error {
	fi, err := zipped.Stat()
	if err != nil {
		return err
	}
	dialCtx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "agentfm"), mesh.DialTimeout)
	defer cancel()
	s, err := h.NewStream(dialCtx, task.Conn().RemotePeer(), wire.ArtifactProtocol)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	_ = s.SetDeadline(time.Now().Add(mesh.ArtifactTimeout))
	err = wire.WriteArtifactHeader(s, wire.ArtifactHeader{Size: fi.Size(), TaskID: taskID})
	if err == nil {
		_, err = io.Copy(s, zipped)
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
	return fmt.Errorf("the gateway did not take them: %w", err)
}

// zipFiles zips the regular files and folders below dir into file. It returns
// nil when there are none. Whatever else an agent left is passed over: a link
// leads out, a FIFO blocks its reader for ever.
func zipFiles(ctx context.Context, file, dir string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	z := zip.NewWriter(&limitedWriter{f, wire.MaxArtifact})
	entries := 0
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
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
		return zipFile(ctx, z, root, name)
	})
	if err = errors.Join(err, z.Close()); err == nil && entries > 0 {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil || entries == 0 {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// zipFile adds one regular file. By now the name may be a link, which root keeps
// within the folder, or a FIFO, for which the opening must not wait.
func zipFile(ctx context.Context, z *zip.Writer, root *os.Root, name string) error {
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
	_, err = io.Copy(w, readerWithContext{ctx, f})
	return err
}

// readerWithContext ends with the context.
type readerWithContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWithContext) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// limitedWriter fails beyond n bytes.
type limitedWriter struct {
	w io.Writer
	n int64
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > l.n {
		return 0, errors.New("the files are too large")
	}
	l.n -= int64(len(p))
	return l.w.Write(p)
}
