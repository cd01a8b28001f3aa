// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// A call is a task whose client waits for it. What is kept of it serves to see it, and to
// cancel it: the newest of them, and without syncing the disk for each.
const (
	callBucket  = "agentfm_calls"
	callName    = "KV_" + callBucket
	callSubject = "$KV." + callBucket + "."
	callBytes   = 64 << 20
	callPrefix  = "call_" // of the last part of their keys

	// maxCallWrites is how many of them are written at one time. Of what begins while there
	// are as many, the beginning is not.
	maxCallWrites = 64
	// endWait bounds the storing of an end.
	endWait = 2 * time.Second
	// maxLateEnds is how many calls wait for their ends to be stored, which could not be.
	maxLateEnds = 256
)

// Reasons for the end of a call that this package gives.
const (
	// ReasonClientGone says that the client went away.
	ReasonClientGone = "client_gone"
)

// callID is the form of the ids that clients may give to calls.
var callID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// callToken is the part of a key for the id of a call, which may have dots.
func callToken(id string) string {
	sum := sha256.Sum256([]byte(id))
	return callPrefix + hex.EncodeToString(sum[:16])
}

// keyOf is the place of a task in the store.
func keyOf(owner, id string) string {
	return (&Record{Owner: owner, ID: id, Sync: !ValidID(id)}).key()
}

// isCall reports whether a key is that of a call.
func isCall(key string) bool { return strings.HasPrefix(taskID(key), callPrefix) }

// calls are those under way in this process, and those whose end is yet to be stored.
type calls struct {
	writing chan struct{}
	late    chan *Call // whose end could not be stored
	failing atomic.Bool

	mu    sync.Mutex
	byKey map[string]*Call
}

// newCalls returns none.
func newCalls() *calls {
	return &calls{writing: make(chan struct{}, maxCallWrites), late: make(chan *Call, maxLateEnds), byKey: make(map[string]*Call)}
}

// find returns the call of a key; nil when none is under way.
func (c *calls) find(key string) *Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byKey[key]
}

// forget notes that a call is over.
func (c *calls) forget(key string, call *Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[key] == call { // and not another with its id
		delete(c.byKey, key)
	}
}

// later has the end of a call stored when that goes. Of too many, the records are mended: see
// mendCall.
func (c *calls) later(call *Call) {
	select {
	case c.late <- call:
	default:
		c.forget(call.record.key(), call)
	}
}

// Call is a task whose client waits for it. Where its record cannot be stored, it goes on
// all the same.
type Call struct {
	part    *Part
	service *service
	cancel  context.CancelCauseFunc

	mu     sync.Mutex
	record Record
	begun  chan struct{} // closed when its beginning is stored, or is not; nil before it begins
	ended  chan struct{}
}

// NewCall returns a call that is about to be made for an owner. cancel is called with
// [ErrCancelled] when the owner cancels it.
func (p *Part) NewCall(owner string, target Target, prompt int, cancel context.CancelCauseFunc) *Call {
	c := &Call{part: p, cancel: cancel, ended: make(chan struct{})}
	if p != nil {
		c.service = p.service.Load()
	}
	c.record = Record{Sync: true, Owner: owner, Target: target, PromptSize: prompt, State: Running, Created: time.Now().UTC()}
	return c
}

// Begin notes that a worker is about to be given the call, by an id on the mesh. It does not
// wait for that to be stored.
func (c *Call) Begin(id string, w Worker) {
	if c.service == nil || ValidID(id) || !callID.MatchString(id) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.record
	r.Worker, r.Started = w, time.Now().UTC()
	r.Attempts++
	if c.begun != nil {
		return
	}
	r.ID, r.Holder, c.begun = id, c.service.id, make(chan struct{})
	r.note(nil)
	c.service.calls.mu.Lock()
	c.service.calls.byKey[r.key()] = c
	c.service.calls.mu.Unlock()
	select {
	case c.service.calls.writing <- struct{}{}:
		first := *r
		go func() {
			defer close(c.begun)
			_ = c.store(&first)
		}()
	default:
		close(c.begun)
	}
}

// End notes how the call ended, if it has begun; by its cancelling or as is said. It is
// called once.
func (c *Call) End(cause error, how func(*Record)) {
	c.mu.Lock()
	begun := c.begun
	c.mu.Unlock()
	if begun == nil {
		return
	}
	<-begun
	c.mu.Lock()
	before := c.record
	before.Steps = nil
	r := &c.record
	if how(r); r.State != Completed && errors.Is(cause, ErrCancelled) {
		r.State, r.Reason, r.Message = Cancelled, ReasonCancelled, "the task was cancelled"
	}
	r.Ended = time.Now().UTC()
	r.note(&before)
	last := *r
	c.mu.Unlock()
	switch {
	case c.service.calls.find(last.key()) != c: // but another with its id, that began meanwhile
	case c.storeEnd(&last) != nil:
		c.service.calls.later(c)
	default:
		c.service.calls.forget(last.key(), c)
	}
	close(c.ended)
}

// storeEnd writes the record of a call that has ended, when there is a place for that in time.
func (c *Call) storeEnd(r *Record) error {
	wait := time.NewTimer(endWait)
	defer wait.Stop()
	select {
	case c.service.calls.writing <- struct{}{}:
		return c.store(r)
	case <-wait.C:
		return fmt.Errorf("%w: too many tasks are being stored", ErrStore)
	}
}

// store writes the record, and gives the place for that back. Of many failures it says
// one.
func (c *Call) store(r *Record) error {
	defer func() { <-c.service.calls.writing }()
	s, release, err := c.part.use()
	if err == nil {
		defer release()
		ctx, cancel := context.WithTimeout(s.ctx, endWait)
		defer cancel()
		err = s.store.putCall(ctx, r)
	}
	if failing := err != nil; c.service.calls.failing.Swap(failing) != failing && failing {
		c.service.log().Warn("tasks of POST /api/execute are not stored", zap.Error(err))
	}
	return err
}

// cancelCall cancels a call of an owner, and returns what became of it.
func (s *session) cancelCall(ctx context.Context, key string) (*Record, error) {
	if c := s.calls.find(key); c != nil {
		c.cancel(ErrCancelled)
		select {
		case <-c.ended:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: the task does not end", ErrStore)
		}
		if r := c.record; r.State != Cancelled {
			return &r, ErrEnded
		}
		return &c.record, nil
	}
	r, revision, err := s.store.getCall(ctx, key)
	if err != nil {
		return nil, err
	}
	if !r.State.Ended() && !s.isGone(ctx, r) {
		return s.cancelElsewhere(ctx, key)
	}
	err = s.mendCall(r, revision)
	if hasChanged(err) {
		return s.cancelCall(ctx, key) // the sweep has just mended it, or it has begun anew
	}
	if err != nil {
		return nil, err
	}
	return r, ErrEnded
}

// cancelSubject is where gateways tell each other what is cancelled.
const cancelSubject = "agentfm.cancel."

// Left returns the record of an owner's call of an id, for who asks for the files that it
// left: nil where nothing is kept of any call of that id, and [ErrNotFound] where the files
// are another's, or there are none.
func (p *Part) Left(ctx context.Context, owner, id string) (*Record, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, nil // nothing is known of it
	}
	defer release()
	stream, err := patiently(ctx, s.store, func(ctx context.Context) (jetstream.Stream, error) { return s.store.js.Stream(ctx, callName) })
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	subject := callSubject + "*." + callToken(id)
	var own *Record
	known, others := false, false
	for at := uint64(1); ; {
		msg, err := s.store.next(ctx, stream, at, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStore, err)
		}
		at = msg.Sequence + 1
		r, err := decode(msg.Data)
		if err != nil { // it is none any more
			continue
		}
		known = true
		if r.Owner == owner {
			own = r
		} else {
			others = others || r.Result.Artifact != nil
		}
	}
	switch {
	case own == nil && known, own != nil && own.Result.Artifact == nil && (own.State.Ended() || others):
		return nil, ErrNotFound
	}
	return own, nil
}
