// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/flate"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// zipBuffer is how much is read, and written, at a time.
const zipBuffer = 64 << 10

// errChanged says that a zip came out otherwise than when it was measured.
var errChanged = errors.New("the files have changed since they were collected")

// zipped is what a task left. Of the zip there is no copy, unless it is small: it is made
// whenever it is read, and is each time the same, or an error.
type zipped struct {
	dir     string
	files   []file
	skipped skipped
	bytes   int64 // of all files
	size    int64 // of the zip
	sum     [sha256.Size]byte

	held *holder // of the zip, where it is small
}

// collect collects the files that a task has left in dir; nil when there are none.
func (a *agent) collect(ctx context.Context, g *generation, taskID, dir string) (*zipped, error) {
	z, err := collect(ctx, dir, limits{entries: g.config.MaxFiles, size: g.config.MaxFilesSize})
	if err != nil {
		return nil, err
	}
	if len(z.skipped) > 0 {
		a.log().Warn("files of a task were left out", zap.String("task", taskID),
			zap.Int("count", z.skipped.count()), zap.Strings("files", z.skipped.lines()))
	}
	if len(z.files) == 0 {
		z.free()
		return nil, nil
	}
	return z, nil
}

// collect finds the files of a task in dir and measures their zip, for which it makes
// that once. What cannot or must not be collected is left out.
func collect(ctx context.Context, dir string, l limits) (*zipped, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	w, err := look(ctx, root, l)
	if err != nil {
		return nil, err
	}
	z := &zipped{dir: dir, files: w.found[:0], skipped: w.skipped}
	m := &meter{sum: sha256.New()}
	h := new(holder)
	defer func() {
		if z.held == nil {
			h.free()
		}
	}()
	p := newPacker(ctx, root, io.MultiWriter(m, h))
	for _, f := range w.found {
		switch n, why, err := p.add(f); {
		case err != nil:
			return nil, err
		case why != "":
			z.skipped.add(why, f.path)
		default:
			f.size = n
			z.bytes += n
			z.files = append(z.files, f)
		}
	}
	if err := p.close(z.skipped); err != nil {
		return nil, err
	}
	z.size = m.n
	m.sum.Sum(z.sum[:0])
	z.held = h.whole()
	return z, nil
}

// write writes the zip. An error is [errChanged] when the files are not what they were;
// the last byte is then not written.
func (z *zipped) write(ctx context.Context, w io.Writer) error {
	if z.held != nil {
		return z.held.writeTo(w)
	}
	root, err := os.OpenRoot(z.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	defer root.Close()
	p := newPacker(ctx, root, &checked{w: w, meter: meter{sum: sha256.New()}, of: z})
	for _, f := range z.files {
		n, why, err := p.add(f)
		if err != nil {
			return err
		}
		if why != "" || n != f.size {
			return errChanged
		}
	}
	return p.close(z.skipped)
}

// free forgets a zip that nobody will read any more.
func (z *zipped) free() {
	if z.held != nil {
		z.held.free()
	}
}

// artifact is what the gateway is told of the zip.
func (z *zipped) artifact() wire.Artifact {
	return wire.Artifact{Size: z.size, SHA256: hex.EncodeToString(z.sum[:]), Files: z.count(), Skipped: z.skipped.count(), SkippedFiles: z.skipped}
}

// count returns how many files there are, folders aside.
func (z *zipped) count() int {
	n := 0
	for _, f := range z.files {
		if !f.dir {
			n++
		}
	}
	return n
}

// packer makes a zip. Of the same files it is always the same: each zip has a
// compressor of its own, which has seen nothing before.
type packer struct {
	ctx    context.Context
	root   *os.Root
	zip    *zip.Writer
	buffer []byte
}

func newPacker(ctx context.Context, root *os.Root, w io.Writer) *packer {
	p := &packer{ctx: ctx, root: root, zip: zip.NewWriter(bufio.NewWriterSize(w, zipBuffer)), buffer: make([]byte, zipBuffer)}
	var compressor *flate.Writer
	p.zip.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		if compressor != nil {
			compressor.Reset(w)
			return compressor, nil
		}
		var err error
		// What does not get smaller is stored, at the speed of a copy.
		compressor, err = flate.NewWriter(w, flate.BestSpeed)
		return compressor, err
	})
	return p
}

// add adds a file, and returns how many bytes of it there were: no more than when it
// was found, should it grow. It says why the file is left out.
func (p *packer) add(f file) (n int64, why string, err error) {
	if p.ctx.Err() != nil {
		return 0, "", context.Cause(p.ctx)
	}
	h := &zip.FileHeader{Name: zipName(f.path), Method: zip.Deflate, Modified: time.Unix(f.mtime, 0).UTC()}
	if f.dir {
		h.Name, h.Method = h.Name+"/", zip.Store
		_, err := p.zip.CreateHeader(h)
		return 0, "", err
	}
	from, why, err := openFile(p.root, f)
	if from == nil {
		return 0, why, err
	}
	defer from.Close()
	w, err := p.zip.CreateHeader(h)
	if err != nil {
		return 0, "", err
	}
	for n < f.size {
		k, err := io.ReadFull(from, p.buffer[:min(zipBuffer, f.size-n)])
		if _, werr := w.Write(p.buffer[:k]); werr != nil {
			return n, "", werr
		}
		n += int64(k)
		switch {
		case p.ctx.Err() != nil:
			return n, "", context.Cause(p.ctx)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return n, "", nil
		case err != nil:
			return n, "", err
		}
	}
	return n, "", nil
}

// close ends the zip. Its comment tells what was left out.
func (p *packer) close(s skipped) error {
	var b bytes.Buffer
	for _, line := range s.lines() {
		fmt.Fprintf(&b, "left out: %s\n", line)
	}
	if err := p.zip.SetComment(b.String()); err != nil {
		return err
	}
	return p.zip.Close()
}

// meter measures what is written to it.
type meter struct {
	sum hash.Hash
	n   int64
}

// Write implements io.Writer.
func (m *meter) Write(b []byte) (int, error) {
	if m.n += int64(len(b)); m.n > wire.MaxArtifact {
		return 0, fmt.Errorf("the zip is over %d bytes", int64(wire.MaxArtifact))
	}
	return m.sum.Write(b)
}

// checked writes a zip that is what it was, and of another one not the end.
type checked struct {
	meter
	w  io.Writer
	of *zipped
}

// Write implements io.Writer.
func (c *checked) Write(b []byte) (int, error) {
	if _, err := c.meter.Write(b); err != nil {
		return 0, err
	}
	if c.n > c.of.size || c.n == c.of.size && !bytes.Equal(c.sum.Sum(nil), c.of.sum[:]) {
		return 0, errChanged
	}
	return c.w.Write(b)
}
