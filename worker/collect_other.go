// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package worker

import "io/fs"

// openDir opens a folder and nothing else.
const openDir = 0

// fileID is not known here.
type fileID struct{ device, inode uint64 }

func idOf(fs.FileInfo) fileID { return fileID{} }

func namesOf(fs.FileInfo) int { return 1 }

func diskOf(fi fs.FileInfo) int64 { return fi.Size() }
