// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// ArtifactHeader precedes the zip on an artifact stream.
type ArtifactHeader struct {
	// Size of the zip in bytes: over 0 and at most [MaxArtifact].
	Size int64
	// TaskID names the task that left the files.
	TaskID string
}

// valid returns the header, or an error where a field is out of its range.
func (h ArtifactHeader) valid() error {
	if h.Size <= 0 || h.Size > MaxArtifact {
		return fmt.Errorf("%w: artifact of %d bytes, want 1 to %d", ErrBadFrame, h.Size, int64(MaxArtifact))
	}
	if !ValidTaskID(h.TaskID) {
		return fmt.Errorf("%w: task id %q", ErrBadFrame, h.TaskID)
	}
	return nil
}

// WriteArtifactHeader writes h to w: the size as a little-endian int64, the
// length of the task id in one byte, the task id.
func WriteArtifactHeader(w io.Writer, h ArtifactHeader) error {
	if err := h.valid(); err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(h.Size))
	b = append(b, byte(len(h.TaskID)))
	b = append(b, h.TaskID...)
	_, err := w.Write(b)
	return err
}

// ReadArtifactHeader reads the header, and not a byte more, from r.
func ReadArtifactHeader(r io.Reader) (ArtifactHeader, error) {
	var fixed [9]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return ArtifactHeader{}, fmt.Errorf("reading artifact header: %w", err)
	}
	id := make([]byte, fixed[8])
	if _, err := io.ReadFull(r, id); err != nil {
		return ArtifactHeader{}, fmt.Errorf("reading artifact header: %w", err)
	}
	h := ArtifactHeader{Size: int64(binary.LittleEndian.Uint64(fixed[:8])), TaskID: string(id)}
	return h, h.valid()
}
