// SPDX-License-Identifier: Apache-2.0

//go:build unix

package worker

import (
	"io/fs"
	"syscall"
)

// openDir opens a folder and nothing else.
const openDir = syscall.O_DIRECTORY

// fileID tells a file from every other that is there at the same time.
type fileID struct{ device, inode uint64 }

// idOf returns the identity of a file.
func idOf(fi fs.FileInfo) fileID {
	st := fi.Sys().(*syscall.Stat_t)
	return fileID{uint64(st.Dev), st.Ino}
}

// namesOf returns how many names (hard links) a file has.
func namesOf(fi fs.FileInfo) int {
	return int(fi.Sys().(*syscall.Stat_t).Nlink)
}

// diskOf returns how much of the disk a file takes, in bytes.
func diskOf(fi fs.FileInfo) int64 {
	return int64(fi.Sys().(*syscall.Stat_t).Blocks) * 512
}
