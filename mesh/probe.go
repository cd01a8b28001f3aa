// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

// A worker from which nothing has come for a while, though it has come from others, is asked
// whether it is there: a process that is frozen keeps its connections, and the requests that
// were given to it. One that works hard answers, if late.
const (
	// workerQuiet is how long a worker may say nothing before it is asked. It announces
	// itself every two seconds.
	workerQuiet = 3 * time.Second
	// probeTries is how many questions in a row it must leave without an answer. The first
	// may have been late here, and not there: when this process was frozen itself.
	probeTries = 2
	// maxProbes bounds the workers that are asked at one time.
	maxProbes = 256
	// probeTimeout is how long each answer may take.
	probeTimeout = 2500 * time.Millisecond
	// probeEvery is how long after the beginning of its last probe a worker is asked again.
	probeEvery = probeTries*probeTimeout + workerQuiet
)

// probe asks the workers that have fallen silent, until ctx ends, and takes out those that
// do not answer until their next telemetry.
func (n *node) probe(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	slots := make(chan struct{}, maxProbes)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range n.directory.quiet(cap(slots) - len(slots)) {
			slots <- struct{}{}
			asking.Go(func() {
				defer func() { <-slots }()
				begun := n.directory.now()
				if n.frozen(ctx, id) {
					n.directory.mute(id.String(), begun)
				}
			})
		}
	}
}

// frozen reports whether a worker with a connection leaves all questions without an answer.
func (n *node) frozen(ctx context.Context, id peer.ID) bool {
	for range probeTries {
		if n.answers(ctx, id) {
			return false
		}
	}
	return ctx.Err() == nil
}

// answers reports whether a peer answers in time, be it that it refuses. Of one without a
// connection nothing is known, and it is not dialled.
func (n *node) answers(ctx context.Context, id peer.ID) bool {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "probe"), probeTimeout)
	defer cancel()
	<-ping.Ping(ctx, n.host.Host, id)
	return ctx.Err() == nil
}

// quiet returns up to most of the workers that are online and have said nothing for
// workerQuiet, and were not asked for probeEvery.
func (d *directory) quiet(most int) (ids []peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	for _, w := range d.workers {
		if len(ids) >= most {
			break
		}
		if w.Online && w.ID != "" && now.Sub(w.LastSeen) >= workerQuiet && now.Sub(w.probed) >= probeEvery {
			w.probed = now
			ids = append(ids, w.ID)
		}
	}
	return ids
}

// mute takes a worker out until its next telemetry, unless there was some meanwhile. When
// there was none of any worker since a time, it may be that this gateway hears nobody.
func (d *directory) mute(peer string, since time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w, ok := d.workers[peer]; ok && w.Online && d.now().Sub(w.LastSeen) >= workerQuiet && d.heard.After(since) {
		d.setOffline(w, "it does not answer")
	}
}
