// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"io"
)

// zipReader reads a zip from anywhere. To begin in the middle, what is before that is
// made and thrown away.
type zipReader struct {
	ctx  context.Context
	of   *zipped
	at   int64
	pipe *io.PipeReader // from at on; nil before the first byte
	done chan struct{}  // closed when nothing writes to the pipe any more
	err  error          // that ended the reading
}

// Read implements io.Reader.
func (r *zipReader) Read(b []byte) (int, error) {
	if r.at >= r.of.size {
		return 0, io.EOF
	}
	if held := r.of.held; held != nil {
		n := held.read(b, r.at)
		r.at += int64(n)
		return n, nil
	}
	if r.pipe == nil {
		from, to := io.Pipe()
		r.pipe, r.done = from, make(chan struct{})
		go func(skip int64, done chan<- struct{}) {
			defer close(done)
			_ = to.CloseWithError(r.of.write(r.ctx, &tail{to, skip}))
		}(r.at, r.done)
	}
	n, err := r.pipe.Read(b)
	r.at += int64(n)
	if errors.Is(err, io.EOF) && r.at < r.of.size {
		err = errChanged // shorter than it was
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// Seek implements io.Seeker.
func (r *zipReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.of.size
	}
	if offset < 0 {
		return 0, errors.New("seeking to before the beginning")
	}
	if offset != r.at {
		r.stop()
	}
	r.at = offset
	return offset, nil
}

// stop ends the making of the zip, if it is being made.
func (r *zipReader) stop() {
	if r.pipe != nil {
		_ = r.pipe.Close()
		<-r.done
		r.pipe = nil
	}
}

// tail writes all but the first bytes.
type tail struct {
	w    io.Writer
	skip int64
}

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	n := min(t.skip, int64(len(b)))
	t.skip -= n
	if n == int64(len(b)) {
		return len(b), nil
	}
	k, err := t.w.Write(b[n:])
	return int(n) + k, err
}
