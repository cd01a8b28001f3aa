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
	"syscall"
)

// RemoveFolder removes a folder that an agent has written to; see [Agent].
func RemoveFolder(dir string) error { return removeAll(dir) }

// removeAll removes a folder, also where an agent took away our right to. However
// deep an agent has made it, few files are open: [os.RemoveAll] has one for each level.
func removeAll(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	if err := removeIn(root, "."); err != nil {
		return err
	}
	return os.Remove(dir)
}

// removeIn removes what is in a folder, until nothing is left or nothing more can be
// removed.
func removeIn(root *os.Root, dir string) error {
	for moved := 0; ; {
		removed := 0
		failed := eachIn(root, dir, func(path string) error {
			if root.Remove(path) != nil { // a folder with something in it
				_ = root.Chmod(path, 0o700)
				if err := emptyInto(root, path, dir, &moved); err != nil {
					return err
				}
				if err := root.Remove(path); err != nil {
					return err
				}
			}
			removed++
			return nil
		})
		if removed == 0 {
			return failed
		}
	}
}

// emptyInto removes what is in a folder, and moves those folders of it that are not
// empty to another.
func emptyInto(root *os.Root, dir, to string, moved *int) error {
	return eachIn(root, dir, func(path string) error {
		if root.Remove(path) == nil {
			return nil
		}
		_ = root.Chmod(path, 0o700) // else it cannot be moved
		for tries := 0; ; tries++ {
			*moved++
			err := root.Rename(path, below(to, fmt.Sprintf(".removed-%d", *moved)))
			if err == nil || tries == 100 { // a name can be taken
				return err
			}
		}
	})
}

// openFolder opens a folder, and waits for nothing that has come into its place.
func openFolder(root *os.Root, dir string) (*os.File, error) {
	return root.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK|openDir, 0)
}

// eachIn calls a function with the path of each entry of a folder, and returns the
// first error that there was.
func eachIn(root *os.Root, dir string, f func(path string) error) error {
	d, err := openFolder(root, dir)
	if errors.Is(err, fs.ErrPermission) {
		_ = root.Chmod(dir, 0o700)
		d, err = openFolder(root, dir)
	}
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(walkBatch)
		var failed error
		for _, name := range names {
			failed = cmp.Or(failed, f(below(dir, name)))
		}
		if failed != nil || errors.Is(err, io.EOF) {
			return failed
		}
		if err != nil {
			return err
		}
	}
}

// prune removes from the folder of a task whatever is not in its zip: what waits for a
// gateway takes no more room than it has.
func (z *zipped) prune(ctx context.Context) error {
	if len(z.skipped) == 0 {
		return nil
	}
	root, err := os.OpenRoot(z.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	wanted := make(map[string]bool, len(z.files)) // those that are folders
	for _, f := range z.files {
		wanted[f.path] = f.dir
	}
	return pruneIn(ctx, root, ".", wanted)
}

// pruneIn does so in one folder and those below it.
func pruneIn(ctx context.Context, root *os.Root, dir string, wanted map[string]bool) error {
	return eachIn(root, dir, func(path string) error {
		isDir, ok := wanted[path]
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx) // all goes
		case isDir:
			return pruneIn(ctx, root, path, wanted)
		case ok || root.Remove(path) == nil:
			return nil
		}
		if err := removeIn(root, path); err != nil {
			return err
		}
		return root.Remove(path)
	})
}
