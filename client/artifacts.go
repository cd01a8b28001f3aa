// SPDX-License-Identifier: Apache-2.0

package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/client/unzip"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// MaxArtifact is the largest zip of a task's files that is fetched, in bytes; a gateway has
// no larger ones.
const MaxArtifact = 5 << 30

// Artifacts fetches the files that a task left and unpacks them into the folder dir, which
// it makes where it is not there. It returns their paths. What the zip may hold is what
// the package unzip takes, with its own limits; after an error nothing is left in dir. A
// task without files is one of [CodeTaskNotFound].
func (s *TaskService) Artifacts(ctx context.Context, id, dir string) (paths []string, err error) {
	if id != "" && !validTaskID(id) { // nor is it in the name of the folder
		return nil, invalid("task_id", "%q is not the id of a task", openai.Clip(id, maxText))
	}
	f, err := os.CreateTemp("", "agentfm-*.zip")
	if err != nil {
		return nil, artifactError(err, "making room for the files")
	}
	defer func() {
		f.Close()
		os.Remove(f.Name())
	}()
	download, err := s.Download(ctx, id, f)
	if err != nil {
		return nil, err
	}
	return extract(ctx, f, download.Size, dir)
}

// Unpack unpacks a zip file into the folder dir as [TaskService.Artifacts] does.
func Unpack(ctx context.Context, zipFile, dir string) ([]string, error) {
	f, err := os.Open(filepath.Clean(zipFile))
	if err != nil {
		return nil, artifactError(err, "opening the zip file")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, artifactError(err, "opening the zip file")
	}
	return extract(ctx, f, info.Size(), dir)
}

// extract unpacks a zip.
func extract(ctx context.Context, r io.ReaderAt, size int64, dir string) ([]string, error) {
	paths, err := unzip.Extract(ctx, r, size, dir, unzip.Limits{})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil, transportError(ctx, err, "unpacking the files")
	}
	if err != nil {
		return nil, artifactError(err, "unpacking the files")
	}
	return paths, nil
}

// Download is a zip that was fetched.
type Download struct {
	Size   int64
	SHA256 string // in hex
}

// Download fetches the zip of the files that a task left, and writes it to w. When the
// connection breaks, it goes on where it was. Where the gateway says the SHA-256 of the
// zip, another one is an error of [ErrArtifact].
func (s *TaskService) Download(ctx context.Context, id string, w io.Writer) (*Download, error) {
	path, err := taskPath(id, "/artifacts")
	if err != nil {
		return nil, err
	}
	d := download{w: w, hash: sha256.New(), size: -1}
	for idle := 0; ; idle++ {
		last := d.got
		err := d.fetch(ctx, s.c, path)
		if err == nil {
			return d.finish()
		}
		if last != d.got {
			idle = 0
		}
		if e, ok := errors.AsType[*Error](err); !ok || !e.broken() || d.got > 0 && d.etag == "" || idle >= s.c.retries {
			return nil, err
		}
		if !pause(ctx, s.c.wait(idle, 0)) {
			return nil, transportError(ctx, ctx.Err(), "fetching the files")
		}
	}
}

// download is a zip on its way.
type download struct {
	w    io.Writer
	hash hash.Hash
	etag string // of the first answer
	got  int64  // bytes that w has
	size int64  // of the whole; -1 where nobody says
}

// fetch reads one answer.
func (d *download) fetch(ctx context.Context, c *Client, path string) error {
	r := request{method: http.MethodGet, path: path, accept: "application/zip", again: true}
	if d.got > 0 {
		r.set("Range", fmt.Sprintf("bytes=%d-", d.got))
		r.set("If-Range", d.etag)
	}
	r.set("Accept-Encoding", "identity")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.open(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := d.begin(resp); err != nil {
		return withID(err, resp)
	}
	n, err := io.Copy(&sink{d}, io.LimitReader(resp.Body, MaxArtifact+1-d.got))
	if failed, ok := errors.AsType[*sinkError](err); ok {
		return artifactError(failed.error, "writing the files")
	}
	switch {
	case err != nil:
		return withID(transportError(ctx, err, r.doing()), resp)
	case d.got > MaxArtifact:
		return withID(&Error{Kind: ErrArtifact, Message: "the files are larger than a gateway's may be"}, resp)
	case d.size >= 0 && d.got != d.size:
		return withID(&Error{Kind: ErrConnection, Message: fmt.Sprintf("%s: the answer ended after %d bytes more", r.doing(), n), Err: io.ErrUnexpectedEOF}, resp)
	}
	return nil
}

// begin checks that an answer begins where the last one ended.
func (d *download) begin(resp *http.Response) *Error {
	if d.got == 0 {
		d.etag, d.size = resp.Header.Get("ETag"), resp.ContentLength
		if strings.HasPrefix(d.etag, "W/") {
			d.etag = ""
		}
		return nil
	}
	if resp.StatusCode != http.StatusPartialContent {
		return &Error{Kind: ErrArtifact, Message: "the files have changed while they were fetched"}
	}
	var first, last, size int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil || first != d.got || d.size >= 0 && size != d.size {
		return protocolError(nil, "the gateway answers with another part of the files than was asked for")
	}
	return nil
}

// finish checks the whole.
func (d *download) finish() (*Download, error) {
	sum := hex.EncodeToString(d.hash.Sum(nil))
	if want := strings.Trim(d.etag, `"`); isSHA256(want) && !strings.EqualFold(want, sum) {
		return nil, &Error{Kind: ErrArtifact, Message: "the files are not those that the gateway has: their SHA-256 is another"}
	}
	return &Download{Size: d.got, SHA256: sum}, nil
}

// isSHA256 reports whether s is a SHA-256 in hex.
func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// sink takes what is fetched.
type sink struct{ d *download }

// sinkError is an error of who is written to, not of the connection.
type sinkError struct{ error }

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	n, err := s.d.w.Write(p)
	s.d.hash.Write(p[:max(0, min(n, len(p)))])
	s.d.got += int64(n)
	if err != nil {
		return n, &sinkError{cmp.Or(err, io.ErrShortWrite)}
	}
	return n, nil
}
