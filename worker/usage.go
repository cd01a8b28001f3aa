// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/docker/go-units"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Limits of what an agent may have in its output folder while it works. What is collected
// in the end has tighter ones.
const (
	// diskFactor is how many times its `max_files_size` a task may take of the disk.
	diskFactor = 2
	// maxUsageDepth is how many names the path of a folder may have.
	maxUsageDepth = 512
	// usageStep is after how many levels a folder is held open, so that what is below it
	// is found from there: a path is followed from its beginning, for each folder anew.
	usageStep = 8
	// usagePause is the shortest time between two looks at a folder. It is longer where a
	// look takes long, so that looking takes a third of a processor at most.
	usagePause = time.Second
	// usageFew is how many entries may take as long as they like: then it is the disk
	// that is slow. More than that are too many where a look takes longer than walkTime,
	// in which nothing would be seen of what is written meanwhile.
	usageFew = 10_000
)

// errUsage says that a folder is over its limits.
var errUsage = errors.New("too much")

// Guard calls stop when a folder of an agent takes more than so many bytes of the disk, or
// has too many files, until ctx ends. The tasks that a runtime has are guarded.
func Guard(ctx context.Context, dir string, most int64, stop context.CancelCauseFunc) {
	guard(ctx, dir, most, stop)
}

// guard ends a task whose files take too much of the disk, or are too many, until ctx
// ends. It looks every second, so that for a second there may be more, or for some
// seconds where there are very many files.
func guard(ctx context.Context, dir string, most int64, stop context.CancelCauseFunc) {
	timer := time.NewTimer(usagePause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		u := usage{ctx: ctx, most: most, end: began.Add(walkTime)}
		if errors.Is(u.look(dir), errUsage) {
			stop(&Failure{wire.CauseOutputLimit, fmt.Errorf("killed: its files are too many or too large (limits: %s of the disk, %d files, folders %d deep)",
				units.BytesSize(float64(most)), maxLooked, maxUsageDepth)})
			return
		}
		timer.Reset(max(usagePause, 2*time.Since(began)))
	}
}

// guarded runs a task whose files are guarded.
func (g *generation) guarded(ctx context.Context, stop context.CancelCauseFunc, task Task) (Exit, error) {
	guarding, done := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		guard(guarding, task.OutputDir, diskFactor*g.config.MaxFilesSize, stop)
	}()
	exit, err := g.runtime.Run(ctx, task)
	done()
	<-ended
	return exit, err
}

// usage is what a folder takes.
type usage struct {
	ctx     context.Context
	most    int64     // bytes of the disk
	end     time.Time // of the look, where there is much to see
	bytes   int64
	entries int
}

// look looks through a folder; its error is errUsage when there is too much in it.
func (u *usage) look(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return u.folder(root, ".", 0)
}

// folder looks through one folder. What goes away meanwhile, and what cannot be read,
// takes nothing.
func (u *usage) folder(root *os.Root, dir string, depth int) error {
	if depth > maxUsageDepth {
		return errUsage
	}
	if depth > 0 && depth%usageStep == 0 {
		held, err := root.OpenRoot(dir)
		if err != nil {
			return nil
		}
		defer held.Close()
		root, dir = held, "."
	}
	d, err := openFolder(root, dir)
	if err != nil {
		return nil
	}
	var folders []string
	err = u.entriesOf(d, func(name string) {
		path := below(dir, name)
		fi, err := root.Lstat(path) // by a short path: a long one would be an error, and take nothing
		if err != nil {
			return
		}
		u.bytes += diskOf(fi)
		if fi.IsDir() {
			folders = append(folders, path)
		}
	})
	_ = d.Close()
	for _, path := range folders {
		if err != nil {
			break
		}
		err = u.folder(root, path, depth+1)
	}
	return err
}

// entriesOf calls take with the names of what is in a folder.
func (u *usage) entriesOf(d *os.File, take func(name string)) error {
	for {
		names, err := d.Readdirnames(walkBatch)
		for _, name := range names {
			if u.entries++; u.entries > maxLooked {
				return errUsage
			}
			take(name)
		}
		switch {
		case u.bytes > u.most, u.entries > usageFew && time.Now().After(u.end):
			return errUsage
		case u.ctx.Err() != nil:
			return context.Cause(u.ctx)
		case err != nil: // io.EOF
			return nil
		}
	}
}
