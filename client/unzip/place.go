// SPDX-License-Identifier: Apache-2.0

package unzip

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// place lets fill write below a new folder, and then moves what it has written into dir.
// After an error, dir is as it was.
func place(dir string, fill func(*os.Root) error) (err error) {
	made, err := makeFolder(dir)
	if err != nil {
		return err
	}
	if made {
		defer func() {
			if err != nil {
				_ = os.Remove(dir) // others may have put something there
			}
		}()
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	stage := ".unzip-" + rand.Text()
	if err := root.Mkdir(stage, 0o700); err != nil {
		return err
	}
	defer func() {
		if e := root.RemoveAll(stage); err == nil && e != nil {
			err = fmt.Errorf("removing %s: %w", stage, e)
		}
	}()
	inner, err := root.OpenRoot(stage)
	if err != nil {
		return err
	}
	defer inner.Close()
	if err := fill(inner); err != nil {
		return err
	}
	return move(root, inner, stage)
}

// makeFolder makes dir and the folders above it. made says that dir was not there.
func makeFolder(dir string) (made bool, err error) {
	if _, err := os.Stat(dir); err == nil {
		return false, nil
	}
	return true, os.MkdirAll(dir, folderMode)
}

// move moves all that is in the folder stage, which inner is, up to root. After an error,
// all of it is in stage again.
func move(root, inner *os.Root, stage string) error {
	top, err := fs.ReadDir(inner.FS(), ".")
	if err != nil {
		return err
	}
	for i, entry := range top {
		name := entry.Name()
		_, err := root.Lstat(name)
		switch {
		case err == nil:
			err = fmt.Errorf("%s: %w", name, fs.ErrExist)
		case errors.Is(err, fs.ErrNotExist):
			err = root.Rename(stage+"/"+name, name)
		}
		if err == nil {
			continue
		}
		for _, moved := range top[:i] {
			if back := root.Rename(moved.Name(), stage+"/"+moved.Name()); back != nil {
				err = errors.Join(err, back)
			}
		}
		return err
	}
	return nil
}
