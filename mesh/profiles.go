// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Limits of asking workers for their profiles.
const (
	// profileTimeout is how long a worker may take to give its profile. It is not
	// among those that serve until then, for nobody knows what it serves.
	profileTimeout = 5 * time.Second
	// profileAgain is when a worker is asked again that did not give it; later each
	// time, until profileAgainMax: those that never do must not keep others waiting.
	profileAgain    = 10 * time.Second
	profileAgainMax = 5 * time.Minute
	maxProfiles     = 64 // asked for at one time: a part of the streams that may be being opened
	// A worker that took longer than profileSoon to answer is asked again after profileShare
	// times as long.
	profileSoon  = time.Second / 2
	profileShare = 10
)

// profiles asks workers for what their telemetry does not say.
type profiles struct {
	ctx     context.Context
	streams *streamPool
	took    func(peer, tag string, p wire.Profile, err error)
	slots   chan struct{}
	asking  sync.WaitGroup
}

func newProfiles(ctx context.Context, s *streamPool, took func(peer, tag string, p wire.Profile, err error)) *profiles {
	return &profiles{ctx: ctx, streams: s, took: took, slots: make(chan struct{}, maxProfiles)}
}

// ask asks a worker for the profile of a tag, and reports whether it did: when too
// many are being asked, the next telemetry will do. It does not block.
func (p *profiles) ask(worker, tag string) bool {
	select {
	case p.slots <- struct{}{}:
	default:
		return false
	}
	p.asking.Go(func() {
		defer func() { <-p.slots }()
		profile, err := p.get(worker)
		p.took(worker, tag, profile, err)
	})
	return true
}

// get asks a worker and waits for the answer.
func (p *profiles) get(worker string) (wire.Profile, error) {
	id, err := peer.Decode(worker)
	if err != nil {
		return wire.Profile{}, err
	}
	ctx, cancel := context.WithTimeout(p.ctx, profileTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	x, err := p.streams.exchange(ctx, id, &httpRequest{method: http.MethodGet, target: wire.PathProfile, idempotent: true}, deadline)
	if err != nil {
		return wire.Profile{}, err
	}
	x.resp.Close = true // with thousands of workers, most of the idle streams would be these
	body, err := io.ReadAll(io.LimitReader(x, wire.MaxProfile+1))
	x.end(err == nil && len(body) <= wire.MaxProfile)
	if err != nil {
		return wire.Profile{}, err
	}
	if x.resp.StatusCode != http.StatusOK {
		return wire.Profile{}, fmt.Errorf("status %d: %s", x.resp.StatusCode, wire.ErrorMessage(body))
	}
	profile, err := wire.ParseProfile(body)
	if err == nil && profile.PeerID != worker {
		err = fmt.Errorf("%w: the profile is that of another worker", wire.ErrBadFrame)
	}
	return profile, err
}

// wait returns when nobody is being asked any more.
func (p *profiles) wait() { p.asking.Wait() }

// profileState is what the directory knows of a worker's profile.
type profileState struct {
	tag    string        // of the one that it has
	asking bool          // for another
	ended  time.Time     // when the last asking ended
	asked  time.Time     // when it was asked last
	failed time.Time     // when the last asking was in vain; zero when it was not
	again  time.Duration // how long after the last the next may be
}

// learn asks for a worker's profile when it has changed, and reports whether the
// worker can serve meanwhile: by what was known of it, or, when it does not give
// its profile, as one that takes a text.
func (d *directory) learn(w *entry) bool {
	p := &w.profile
	if w.Protocol < wire.ProtocolHTTP || w.ProfileTag == "" {
		p.tag, w.Models, w.Routes = "", nil, 0
		return true
	}
	if p.tag == w.ProfileTag {
		return true
	}
	if !p.asking && d.now().Sub(p.ended) >= p.again && d.ask != nil {
		p.asking, p.asked = d.ask(w.PeerID, w.ProfileTag), d.now()
	}
	return p.tag != "" || !p.failed.IsZero()
}

// tookProfile takes in the profile that was asked for with a tag, or that there was
// none to be had.
func (d *directory) tookProfile(peer, tag string, p wire.Profile, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.workers[peer]
	if !ok {
		return
	}
	w.renew()
	if w.profile.asking = false; err != nil {
		w.profile.failed, w.profile.ended = d.now(), d.now()
		w.profile.again = min(max(2*w.profile.again, profileAgain), profileAgainMax)
		d.log().Warn("worker does not give its profile", zap.String("peer", peer), zap.Error(err))
		return // its next telemetry will make it one that takes a text
	}
	if w.ProfileTag == "" {
		return // it has none any more
	}
	took := d.now().Sub(w.profile.asked)
	w.profile = profileState{tag: tag, ended: d.now()}
	if took > profileSoon {
		w.profile.again = profileShare * took
	}
	w.Routes, w.Models = routeSet(p.Routes), p.Models
	if d.now().Sub(w.LastSeen) <= workerStale {
		d.serves(w)
	}
}
