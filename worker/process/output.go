// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// output is the pipe of a command's output. It ends when nobody can write to it any
// more, or, where a child has fled from the command's group and holds it, when reads have
// waited for the grace period since the command's end. How long the output takes to be
// passed on between the reads does not count: what the command has written is all read.
type output struct {
	pipe  *os.File
	ctx   context.Context // of the task; when it has ended, the grace is not extended
	ended atomic.Bool     // the command has
	grace time.Duration   // what is left of it
}

// end says that the command has ended.
func (o *output) end() {
	o.ended.Store(true)
	_ = o.pipe.SetReadDeadline(time.Now().Add(drainGrace))
}

// Read implements io.Reader.
func (o *output) Read(p []byte) (int, error) {
	ended := o.ended.Load()
	if ended && o.ctx.Err() == nil {
		_ = o.pipe.SetReadDeadline(time.Now().Add(o.grace))
	}
	begun := time.Now()
	n, err := o.pipe.Read(p)
	if ended {
		o.grace -= time.Since(begun)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	return n, err
}
