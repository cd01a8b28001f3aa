// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// ownSync says that this package syncs what the server has written. Elsewhere the server
// does, after each write: a file that another has open cannot be removed there.
const ownSync = runtime.GOOS != "windows"

// tail makes what the server has written to a stream durable. JetStream (nats-server 2.12)
// writes a message to the newest file of its stream before it acknowledges it. With
// SyncAlways it would also sync each by itself, and not look at whether that went; so it
// is left to this: those who wait at one time share a sync, and hear how it went.
type tail struct {
	dir string // of the stream's files

	turn   sync.Mutex // of the one who syncs
	file   *os.File   // the newest, as far as is known
	number int        // of it
	broken error      // of a sync: what was written before it may be gone, and a later one does not tell

	safe atomic.Uint64 // what is known to be on disk: the messages up to this one
	mu   sync.Mutex
	next *round // the one that can still be joined
}

// round is one sync.
type round struct {
	last uint64 // the newest message of those who wait
	done chan struct{}
	err  error // once done
}

// sync returns nil when a message that the server has acknowledged, and all before it, are
// on disk. The nil tail has nothing to sync.
func (t *tail) sync(message uint64) error {
	if t == nil || message <= t.safe.Load() {
		return nil
	}
	t.mu.Lock()
	r := t.next
	lead := r == nil
	if lead {
		r = &round{done: make(chan struct{})}
		t.next = r
	}
	r.last = max(r.last, message)
	t.mu.Unlock()
	if lead {
		t.lead(r)
	}
	<-r.done
	return r.err
}

// force syncs what is not awaited: that messages are gone.
func (t *tail) force() error {
	if t == nil {
		return nil
	}
	t.turn.Lock()
	defer t.turn.Unlock()
	return t.flushOnce()
}

// lead makes the sync of a round, after the one that is under way.
func (t *tail) lead(r *round) {
	defer close(r.done)
	t.turn.Lock()
	defer t.turn.Unlock()
	t.mu.Lock()
	t.next = nil // who comes now is too late for this one
	t.mu.Unlock()
	if r.err = t.flushOnce(); r.err == nil {
		t.safe.Store(max(t.safe.Load(), r.last))
	}
}

// flushOnce flushes, unless that has failed before.
func (t *tail) flushOnce() error {
	if t.broken == nil {
		if err := t.flush(); err != nil {
			t.broken = fmt.Errorf("the disk does not take writes: %w", err)
		}
	}
	return t.broken
}

// flush syncs the files that may have been written since the last time: the one that was
// the newest, and those that followed. One stays open, so that no failure is missed.
func (t *tail) flush() error {
	numbers, err := t.files()
	if err != nil {
		return err
	}
	more := false
	for _, n := range numbers {
		if t.file == nil || n != t.number {
			f, err := os.OpenFile(filepath.Join(t.dir, strconv.Itoa(n)+blockSuffix), os.O_RDWR, 0)
			if errors.Is(err, fs.ErrNotExist) { // nothing that was in it is there any more
				continue
			}
			if err != nil {
				return err
			}
			_ = t.file.Close()
			t.file, t.number, more = f, n, true
		}
		if err := t.file.Sync(); err != nil {
			return err
		}
	}
	if more {
		return syncFile(t.dir)
	}
	return nil
}

// blockSuffix ends the names of a stream's files, which are numbered.
const blockSuffix = ".blk"

// files returns the numbers of the stream's files from the one that was the newest.
func (t *tail) files() ([]int, error) {
	dir, err := os.Open(t.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, blockSuffix)
		if n, err := strconv.Atoi(digits); ok && err == nil && n >= t.number {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) == 0 {
		return nil, fmt.Errorf("%s: there is no file from number %d on", t.dir, t.number)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// close closes the file that is open.
func (t *tail) close() {
	t.turn.Lock()
	defer t.turn.Unlock()
	_ = t.file.Close()
}

// syncTree syncs all that is in a folder: what a process that was killed has left may be
// read, and yet not be on disk.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && (entry.IsDir() || entry.Type().IsRegular()) {
			err = syncFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) { // the server tidies up
			return nil
		}
		return err
	})
}

// syncFile syncs a file or a folder.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// followTails syncs all that there is, and from then on what is written.
func (s *store) followTails(ctx context.Context, dir string) error {
	s.tails = make(map[string]*tail)
	for _, name := range []string{recordName, queueName, hookName, outputName, keyName, answerName} {
		last, err := s.lastMessage(ctx, name)
		if err != nil {
			return err
		}
		s.tails[name] = &tail{dir: filepath.Join(streamDir(dir, name), "msgs")}
		s.tails[name].safe.Store(last)
		if err := safeRename(s.tails[name].dir); err != nil {
			return err
		}
	}
	return syncTree(dir)
}

// sync returns nil when a message of a stream, and all before it, are on disk. What a
// cluster acknowledges, more than one server has.
func (s *store) sync(stream string, message uint64) error {
	_, err := step(s, "sync", stream, func() (any, error) { return nil, s.tails[stream].sync(message) })
	return err
}

// force returns nil when what is gone from a stream is gone on disk.
func (s *store) force(stream string) error {
	_, err := step(s, "sync", stream, func() (any, error) { return nil, s.tails[stream].force() })
	return err
}
