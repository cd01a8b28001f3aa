// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses between looks whether an agent reads its prompt.
const (
	minPipePause = 500 * time.Microsecond
	maxPipePause = 50 * time.Millisecond
)

// placePipe makes a named pipe in place of a file: the agent that opens it waits until
// somebody writes. It may be written to by us alone, or else by an agent who then has
// itself to wait for.
func (s *spec) placePipe(name string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	if err := unix.Mkfifo(name, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: name, Err: err}
	}
	if s.give(name) {
		return os.Chmod(name, 0o400) // root writes all the same
	}
	return os.Chmod(name, 0o644)
}

// feedPipe writes a prompt to a named pipe as soon as the agent has opened it, and ends
// it, unless ctx ends before. An agent need not read it: then nothing comes of it.
func feedPipe(ctx context.Context, name, prompt string) error {
	f, err := openPipe(ctx, name)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })()
	_, _ = f.WriteString(prompt)
	return nil
}

// openPipe opens a named pipe that somebody reads; nil when ctx ends before.
func openPipe(ctx context.Context, name string) (*os.File, error) {
	for pause := minPipePause; ; pause = min(2*pause, maxPipePause) {
		f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.ENXIO): // nobody reads yet
			return nil, fmt.Errorf("giving the agent its prompt: %w", err)
		}
		if sleep(ctx, pause); ctx.Err() != nil {
			return nil, nil
		}
	}
}
