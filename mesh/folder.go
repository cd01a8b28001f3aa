// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/shirou/gopsutil/v4/disk"
	"go.uber.org/zap"
)

// Defaults of the limits of a folder of artifacts.
const (
	defaultMaxSize = 50 << 30
	defaultMaxAge  = 7 * 24 * time.Hour
	defaultMinFree = 256 << 20 // or a twentieth of the disk, where that is less
)

// ArtifactLimits say how many of the files that agents leave are kept. The oldest go first.
// They are looked at every minute, and before there are more.
type ArtifactLimits struct {
	// How large the files of all tasks may be together, in bytes. Those of one task that
	// are larger are refused. Default: 50 GiB.
	MaxSize int64 `json:"max_size,omitempty"`

	// How long the files of a task are kept; a negative value is for ever.
	// Default: 7 days.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// How much of the disk must stay free, in bytes. Where it does not with all files gone,
	// tasks are refused. Default: 256 MiB, or a twentieth of the disk where that is less.
	MinFree int64 `json:"min_free,omitempty"`
}

// artifactFolder is where the zips of tasks are, within limits.
type artifactFolder struct {
	dir     string
	maxSize int64
	maxAge  time.Duration
	minFree uint64

	mu     sync.Mutex
	coming int64 // bytes of the zips that are being received
	size   int64 // of all zips, as far as is known
	looked time.Time
}

// newArtifactFolder returns a folder. It opens nothing. The limits may be nil.
func newArtifactFolder(dir string, l *ArtifactLimits) (*artifactFolder, error) {
	if l == nil {
		l = new(ArtifactLimits)
	}
	if l.MaxSize < 0 || l.MinFree < 0 {
		return nil, errors.New("max_size and min_free must not be negative")
	}
	return &artifactFolder{
		dir: dir, maxSize: cmp.Or(l.MaxSize, defaultMaxSize), maxAge: cmp.Or(time.Duration(l.MaxAge), defaultMaxAge), minFree: uint64(l.MinFree),
	}, nil
}

// zipSuffix ends the names of artifacts, and partSuffix those that are being received.
const (
	zipSuffix  = ".zip"
	partSuffix = ".*.part"
)

// file is where the zip of a task is. The Python SDK of AgentFM looks there.
func (f *artifactFolder) file(taskID string) string { return filepath.Join(f.dir, taskID+zipSuffix) }

// open makes the folder, and puts it in order.
func (f *artifactFolder) open() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("making the folder for artifacts: %w", err)
	}
	f.sweep()
	return nil
}

// free returns how much of the disk is free, and how much must be. A disk that does not
// tell has room.
func (f *artifactFolder) free() (free, want uint64) {
	usage, err := disk.Usage(f.dir)
	if err != nil {
		return 0, 0
	}
	return usage.Free, cmp.Or(f.minFree, min(defaultMinFree, usage.Total/20))
}

// lookAgain is how soon a folder is looked through again for what may go.
const lookAgain = time.Second

// roomy returns an [ErrNoRoom] when the disk is full of other things.
func (f *artifactFolder) roomy() error {
	free, want := f.free()
	if free >= want {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) > lookAgain {
		f.look()
		free, want = f.free()
	}
	if free < want {
		return fmt.Errorf("%w: of the disk of %s, %d MiB are free, and %d are needed", ErrNoRoom, f.dir, free>>20, want>>20)
	}
	return nil
}

// take makes room for a zip, until the function that it returns is called.
func (f *artifactFolder) take(size int64) (func(), error) {
	if size > f.maxSize {
		return nil, fmt.Errorf("%w: %d bytes, and at most %d are kept", ErrArtifactSize, size, f.maxSize)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.coming += size
	free, want := f.free()
	if f.size+f.coming > f.maxSize || want > 0 && free < want+uint64(f.coming) {
		f.look()
		if free, want = f.free(); want > 0 && free < want+uint64(size) {
			f.coming -= size
			return nil, fmt.Errorf("%w: of the disk of %s, %d MiB are free, for %d MiB of files and %d that must stay free", ErrNoRoom, f.dir, free>>20, size>>20, want>>20)
		}
	}
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.coming -= size
	}), nil
}

// sweep removes what is too old, or too much.
func (f *artifactFolder) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
}

// look looks through the folder, and removes what is too old or too much, the oldest first.
// It makes more room than is needed, so that it need not look for each zip. Whoever reads
// what is removed has it to the end.
func (f *artifactFolder) look() {
	f.looked = time.Now()
	entries, _ := os.ReadDir(f.dir)
	var zips []os.FileInfo
	missing := f.coming // and not on the disk yet
	f.size = 0
	for _, e := range entries {
		fi, err := e.Info()
		switch {
		case err != nil || !fi.Mode().IsRegular():
		case strings.HasSuffix(e.Name(), ".part") && f.looked.Sub(fi.ModTime()) > ArtifactTimeout: // of a process that was killed
			_ = os.Remove(filepath.Join(f.dir, e.Name()))
		case strings.HasSuffix(e.Name(), ".part"):
			missing -= fi.Size()
		case strings.HasSuffix(e.Name(), zipSuffix):
			zips = append(zips, fi)
			f.size += fi.Size()
		}
	}
	slices.SortFunc(zips, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	free, want := f.free()
	limit := f.maxSize - f.coming
	if f.size > limit {
		limit -= f.maxSize / 20
	}
	known := want > 0
	if want += uint64(max(missing, 0)); free < want {
		want += want / 20
	}
	for _, fi := range zips {
		old := f.maxAge > 0 && f.looked.Sub(fi.ModTime()) > f.maxAge
		if !old && f.size <= limit && (free >= want || !known) {
			return
		}
		if os.Remove(filepath.Join(f.dir, fi.Name())) == nil {
			f.size -= fi.Size()
			free += uint64(fi.Size())
		}
	}
}

// store has fill write the zip of a task, of that size: whole or not at all, and durably,
// for the client is told that it is there. last is called with the last step and decides
// whether it is still wanted. A file is never replaced.
func (f *artifactFolder) store(taskID string, size int64, fill func(*os.File) error, last func(commit func() error) error) error {
	done, err := f.take(size)
	if err != nil {
		return err
	}
	defer done()
	err = f.write(f.file(taskID), fill, last)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if err == nil {
		f.mu.Lock()
		f.size += size
		f.mu.Unlock()
	}
	return err
}

// write writes a file by way of another.
func (f *artifactFolder) write(file string, fill func(*os.File) error, last func(commit func() error) error) error {
	part, err := os.CreateTemp(f.dir, "."+filepath.Base(file)+partSuffix) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	err = fill(part)
	if err == nil {
		err = part.Sync()
	}
	if err = errors.Join(err, part.Close()); err != nil {
		return err
	}
	if err := last(func() error { return os.Link(part.Name(), file) }); err != nil {
		return err
	}
	return syncDir(f.dir)
}

// syncDir makes a change of the folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sweepEvery is how often the folder is put in order.
const sweepEvery = time.Minute

// sweepArtifacts puts the folder of the newest configuration in order, until ctx ends.
func (n *node) sweepArtifacts(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if a, ok := n.Newest(); ok {
			a.artifacts.sweep()
			if err := a.artifacts.roomy(); err != nil {
				a.logger.Error("tasks are refused", zap.Error(err))
			}
		}
	}
}
