// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// safeRename makes renames in a folder keep what the files have, on file systems that may
// lose that when they were not synced before. JetStream (nats-server 2.12, filestore.go,
// compactWithFloor) replaces the files of a stream of which much was removed, and syncs
// them minutes later. On ext4 that is safe, on XFS it is not: there, files that are made in
// the folder from now on have each write on disk at once.
func safeRename(dir string) error {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil || s.Type != unix.XFS_SUPER_MAGIC {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		const syncFlag = 0x8 // FS_SYNC_FL, as of chattr +S
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|syncFlag))
	}
	if err != nil {
		return fmt.Errorf("on XFS, files of %s must have the attribute S (chattr +S), or a power cut may lose what is in them: %w", dir, err)
	}
	return nil
}
