// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Files that a task has left wait for its gateway.
const (
	keepTime = 10 * time.Minute // without being asked for

	// Of one agent.
	maxKept      = 256
	maxKeptBytes = 4 * wire.MaxArtifact
	maxKeptFiles = 200_000 // whose names are in memory
)

// kept are the files of a task that are waiting for its gateway.
type kept struct {
	*zipped
	gateway peer.ID
	since   time.Time
	fetched bool          // the gateway has asked; under the agent's mutex
	asked   chan struct{} // gets a value when it does
	drop    chan struct{} // closed when it has all, or wants none

	sending sync.Mutex // over breakOff
	// breakOff ends the answer under way: the zip is made for one at a time.
	breakOff context.CancelFunc
}

// errTooManyKept says that the files of a task found no place.
var errTooManyKept = errors.New("the files of too many tasks wait for their gateways")

// keep keeps the files of a task for its gateway, and their folder. When too much
// waits, the oldest that its gateway has not asked for makes room; false when there is
// none. An agent that is leaving waits until the gateway has it.
func (a *agent) keep(id string, gateway peer.ID, z *zipped, dir string) bool {
	k := &kept{zipped: z, gateway: gateway, since: time.Now(), asked: make(chan struct{}, 1), drop: make(chan struct{})}
	a.mu.Lock()
	_, taken := a.kept[id]
	room := !taken
	for room && !a.hasRoom(z) {
		room = a.evictKept()
	}
	if !room {
		a.mu.Unlock()
		return false
	}
	a.kept[id] = k
	a.mu.Unlock()
	metrics.ArtifactBuilt()
	go func() {
		defer a.done()
		defer a.remove(dir)
		defer z.free()
		defer func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.kept[id] == k { // and not the next of that id
				delete(a.kept, id)
			}
		}()
		if err := z.prune(a.base); err != nil {
			a.log().Warn("files of a task that were left out could not be removed", zap.String("task", id), zap.Error(err))
		}
		for wait := keepTime; ; wait = mesh.ArtifactTimeout {
			select {
			case <-k.asked:
			case <-k.drop:
				return
			case <-a.base.Done():
				return
			case <-time.After(wait):
				return
			}
		}
	}()
	return true
}

// hasRoom reports whether one more can be kept. The caller holds a.mu.
func (a *agent) hasRoom(z *zipped) bool {
	bytes, files := z.bytes, len(z.files)
	for _, k := range a.kept {
		bytes += k.bytes
		files += len(k.files)
	}
	return len(a.kept) < maxKept && bytes <= maxKeptBytes && files <= maxKeptFiles
}

// evictKept drops the files that have waited the longest without being asked for. The
// caller holds a.mu.
func (a *agent) evictKept() bool {
	oldest := ""
	for id, k := range a.kept {
		if !k.fetched && (oldest == "" || k.since.Before(a.kept[oldest].since)) {
			oldest = id
		}
	}
	if oldest == "" {
		return false
	}
	close(a.kept[oldest].drop)
	delete(a.kept, oldest)
	return true
}

// dropKept drops the files of a task of a gateway; false when there are none.
func (a *agent) dropKept(id string, gateway peer.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.kept[id]
	if k == nil || k.gateway != gateway {
		return false
	}
	delete(a.kept, id)
	close(k.drop)
	return true
}

// keptFor returns the files of a task of a gateway; nil when there are none.
func (a *agent) keptFor(id string, gateway peer.ID) *kept {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := a.kept[id]; k != nil && k.gateway == gateway {
		k.fetched = true
		return k
	}
	return nil
}

// artifact serves the zip of a task to the gateway of that task, or a part of it.
func (c *call) artifact(id string) {
	k := c.a.keptFor(id, c.gateway)
	if k == nil {
		c.fail(http.StatusNotFound, "task_not_found", "There are no files of this task.")
		return
	}
	select {
	case k.asked <- struct{}{}:
	default:
	}
	ctx, end := k.begin(c)
	defer end()
	if k.held != nil {
		if !k.held.use() { // they have gone just now
			c.fail(http.StatusNotFound, "task_not_found", "There are no files of this task.")
			return
		}
		defer k.held.release()
	} else { // it is made
		giveBack, ok := c.a.packing.take(ctx, c.gateway)
		if !ok {
			panic(http.ErrAbortHandler)
		}
		defer giveBack()
	}
	if strings.Contains(c.r.Header.Get("Range"), ",") {
		c.r.Header.Del("Range") // the zip would be made once for each part
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("ETag", wire.ArtifactTag(hex.EncodeToString(k.sum[:])))
	zip := &zipReader{ctx: ctx, of: k.zipped}
	defer zip.stop()
	http.ServeContent(&fileWriter{c.w, c.rc}, c.r, "", time.Time{}, zip)
	switch {
	case zip.err == nil:
		return
	case ctx.Err() == nil:
		metrics.StreamError(metrics.Artifacts, metrics.Local)
		c.a.log().Error("files of a task could not be sent", zap.String("task", id), zap.Error(zip.err))
		c.a.dropKept(id, c.gateway) // nor will they be: so the gateway need not try again
	}
	panic(http.ErrAbortHandler)
}

// begin breaks off the answer under way, should there be one: whoever asks again has
// given it up. It returns the context of the new one, and what to call at its end.
func (k *kept) begin(c *call) (context.Context, func()) {
	ctx, cancel := context.WithCancel(c.r.Context())
	over := false
	k.sending.Lock()
	defer k.sending.Unlock()
	if k.breakOff != nil {
		k.breakOff()
	}
	k.breakOff = func() { // under k.sending
		if !over {
			cancel()
			_ = c.stream.Reset() // it may be writing
		}
	}
	return ctx, func() {
		cancel()
		k.sending.Lock()
		defer k.sending.Unlock()
		over = true
	}
}

// fileWriter writes a zip, each piece in its time.
type fileWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

// Write implements io.Writer.
func (w *fileWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := w.ResponseWriter.Write(p)
	metrics.ArtifactSent(int64(n))
	return n, err
}
