// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// KeepKey is how long a key means the request that it was first sent with.
const KeepKey = 24 * time.Hour

const (
	// keyBytes bounds the records of keys, of which [keyRoom] gives each owner a share.
	keyBytes = 2 << 30
	// answerBytes bounds what is kept of larger answers; the oldest go first.
	answerBytes = 2 << 30

	// keyWait is how long a request waits for the answer to the one before it.
	keyWait    = time.Second
	keyPoll    = 20 * time.Millisecond
	maxKeyPoll = 200 * time.Millisecond
)

// Names in the store.
const (
	keyName       = "AGENTFM_KEYS"
	keySubject    = "agentfm.key."
	answerName    = "AGENTFM_ANSWERS"
	answerSubject = "agentfm.answer."
)

// Errors of keys. Test with errors.Is.
var (
	// ErrKeyInUse says that the request of the key is being served.
	ErrKeyInUse = errors.New("the request with this key is being served")
	// ErrKeyReused says that the key belongs to another request.
	ErrKeyReused = errors.New("the key was used for another request")
)

// layOutKeys makes what keys are kept in.
func (s *store) layOutKeys(ctx context.Context) error {
	var err error
	s.keys, err = s.stream(ctx, jetstream.StreamConfig{
		Name: keyName, Subjects: []string{keySubject + ">"}, MaxBytes: keyBytes,
		MaxMsgsPerSubject: 2, Discard: jetstream.DiscardNew, AllowMsgTTL: true, // as of records
	})
	if err != nil {
		return err
	}
	s.answers, err = s.stream(ctx, jetstream.StreamConfig{
		Name: answerName, Subjects: []string{answerSubject + ">"},
		MaxBytes: answerBytes, MaxAge: KeepKey, Discard: jetstream.DiscardOld, Compression: jetstream.S2Compression,
	})
	return err
}

// getKey returns the record of a key and its revision; 0 and no record when there is none.
func (s *store) getKey(ctx context.Context, subject string) (*keyRecord, uint64, error) {
	msg, err := s.last(ctx, s.keys, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, 0, nil
	case err != nil:
		return nil, 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	if err := s.sync(keyName, msg.Sequence); err != nil {
		return nil, 0, s.failedTo(ctx, err)
	}
	r, err := decodeKey(msg.Data)
	return r, msg.Sequence, err
}

// hasChanged reports whether a write was refused because what it replaces is no more as it was
// read.
func hasChanged(err error) bool {
	apiErr, ok := errors.AsType[*jetstream.APIError](err)
	return ok && apiErr.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// putKey writes the record of a key, when its revision is still that one, and returns the
// new one. When it succeeds, it is on disk. The record is read until the ttl is over, and not
// the one before it, which may have a longer one: that one is over by itself then.
func (s *store) putKey(ctx context.Context, subject string, r *keyRecord, revision uint64, ttl time.Duration) (uint64, error) {
	b, err := r.encode()
	if err != nil {
		return 0, err
	}
	if err := s.sync(keyName, revision); err != nil { // as in put
		return 0, s.failedTo(ctx, err)
	}
	message, err := s.publish(ctx, &nats.Msg{Subject: subject, Data: b},
		jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithMsgTTL(max(ttl, time.Second)))
	if hasChanged(err) {
		if s.shared { // it may be there, and the answer was lost
			if msg, err := s.last(ctx, s.keys, subject); err == nil && bytes.Equal(msg.Data, b) {
				return msg.Sequence, nil
			}
		}
		return 0, errConflict
	}
	if err == nil {
		err = s.sync(keyName, message)
	}
	if err != nil {
		return 0, s.failedTo(ctx, err)
	}
	return message, nil
}

// flights are the keys whose requests this process serves.
type flights struct {
	mu   sync.Mutex
	keys map[string]int // how many claims there are: a key can have been given to another
}

func (f *flights) begin(subject string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		f.keys = make(map[string]int)
	}
	f.keys[subject]++
}

func (f *flights) end(subject string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[subject]--; f.keys[subject] == 0 {
		delete(f.keys, subject)
	}
}

func (f *flights) under(subject string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys[subject] > 0
}

// Begin takes a key for a request. Of requests with one key, one gets a claim, which it
// must end. The others get its answer by a call of replay, whose error is returned, and no
// claim. The error is [ErrKeyInUse], [ErrKeyReused], [ErrManyKeys], a [*LostError],
// [ErrNotRunning] or an [ErrStore].
func (p *Part) Begin(ctx context.Context, k Key, replay func(*Kept) error) (*KeyClaim, error) {
	begun := time.Now()
	for wait := keyPoll; ; wait = min(2*wait, maxKeyPoll) {
		c, err := p.begin(ctx, k, replay)
		if !errors.Is(err, ErrKeyInUse) || time.Since(begun) > keyWait || ctx.Err() != nil {
			return c, err
		}
		pause(ctx, wait) // most often the answer is being stored
	}
}

// begin is Begin without waiting.
func (p *Part) begin(ctx context.Context, k Key, replay func(*Kept) error) (*KeyClaim, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, err
	}
	defer release()
	// The client's going away does not undo half of it.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	for range maxConflicts {
		r, revision, err := s.store.getKey(call, k.subject())
		switch {
		case errors.Is(err, errKeyDamaged):
			return nil, &LostError{LostStore}
		case err != nil:
			return nil, err
		case r == nil, s.over(r, k.subject()):
		case r.Print != hex.EncodeToString(k.Print[:]):
			return nil, ErrKeyReused
		case r.State == keyLost:
			return nil, &LostError{r.Lost}
		case r.State == keyAnswered:
			kept, err := s.store.openKept(ctx, r)
			if err != nil {
				return nil, err
			}
			return nil, replay(kept)
		default:
			c, err := s.takeOver(call, p, k, r, revision)
			if errors.Is(err, errConflict) {
				continue
			}
			return c, err
		}
		c, err := s.claimKey(call, p, k, revision)
		if errors.Is(err, errConflict) {
			continue
		}
		return c, err
	}
	return nil, fmt.Errorf("%w: %w", ErrStore, errConflict)
}

// claimKey takes a key that nobody has. The error is errConflict when somebody has now.
func (s *session) claimKey(ctx context.Context, p *Part, k Key, revision uint64) (*KeyClaim, error) {
	if err := s.roomy(); err != nil {
		return nil, err
	}
	if revision == 0 { // else it has a record, which this one takes the place of
		if err := s.keyRoom.take(ctx, s.store, k.Owner, s.limits.keys); err != nil {
			return nil, err
		}
	}
	now := s.limits.now().UTC()
	return s.take(ctx, p, k, revision, &keyRecord{
		State: keyBegun, Print: hex.EncodeToString(k.Print[:]), Created: now, Holder: s.id, Until: now.Add(k.Limit),
		Serial: rand.Text(), Task: k.Task,
	})
}

// take writes the claim of a key: nothing is begun that is not on disk.
func (s *session) take(ctx context.Context, p *Part, k Key, revision uint64, r *keyRecord) (_ *KeyClaim, err error) {
	c := &KeyClaim{Task: r.Task, part: p, flights: &s.flights, subject: k.subject(), record: *r}
	s.flights.begin(c.subject)
	defer func() {
		if err != nil {
			s.flights.end(c.subject)
		}
	}()
	if c.revision, err = s.store.putKey(ctx, c.subject, r, revision, KeepKey+k.Limit); err != nil {
		return nil, err
	}
	c.answer = outputWriter{
		store: s.store, ctx: context.WithoutCancel(ctx), limit: MaxOutput,
		subject: answerSubject + c.subject[len(keySubject):] + "." + r.Serial,
	}
	return c, nil
}

// takeOver decides about a key whose request was begun. The error is [ErrKeyInUse] while
// it may be under way, and errConflict when its record has changed.
func (s *session) takeOver(ctx context.Context, p *Part, k Key, r *keyRecord, revision uint64) (*KeyClaim, error) {
	if s.mayBeServed(r, k.subject()) {
		return nil, ErrKeyInUse
	}
	// It may have ended between the two looks.
	if _, now, err := s.store.getKey(ctx, k.subject()); err != nil || now != revision {
		return nil, cmp.Or(err, errConflict)
	}
	if r.Task == "" {
		return nil, &LostError{LostGateway}
	}
	accepted, err := s.accepted(ctx, k.Owner, r)
	if err != nil {
		return nil, err
	}
	if !accepted {
		return s.claimKey(ctx, p, k, revision)
	}
	next := *r
	next.Holder, next.Until, next.Serial = s.id, s.limits.now().UTC().Add(k.Limit), rand.Text()
	c, err := s.take(ctx, p, k, revision, &next)
	if c != nil {
		c.Accepted = true
	}
	return c, err
}

// over reports whether the time of a key is over.
func (s *session) over(r *keyRecord, subject string) bool {
	return !s.limits.now().Before(r.Created.Add(KeepKey)) && (r.State != keyBegun || !s.mayBeServed(r, subject))
}

// mayBeServed reports whether a request that was begun is under way. Where the store is
// this process's alone, it is nobody else's.
func (s *session) mayBeServed(r *keyRecord, subject string) bool {
	if r.Holder == s.id || !s.store.shared {
		return r.Holder == s.id && s.flights.under(subject)
	}
	return s.limits.now().Before(r.Until)
}

// accepted reports whether the task of a key was accepted, whose client had no answer. One
// that was not will not be.
func (s *session) accepted(ctx context.Context, owner string, of *keyRecord) (bool, error) {
	task := &Record{ID: of.Task, Owner: owner, Keyed: true, State: Queued, Created: of.Created}
	for range maxConflicts {
		r, revision, err := s.store.get(ctx, task.key())
		switch {
		case err == nil && revision == 0: // it is in the queue
			return true, s.store.syncQueued(ctx, task.key())
		case err == nil:
			return !r.State.Ended() || r.Reason != ReasonNotAccepted, nil
		case !errors.Is(err, ErrNotFound):
			return false, err
		case !s.store.shared && of.Holder != s.id: // who submitted it is dead, and its server
			return false, nil
		}
		// It may be on its way to the queue, and must not run when it comes there.
		_ = task.end(Failed, ReasonNotAccepted, "the task could not be queued")
		if _, err := s.store.put(ctx, task, 0); !errors.Is(err, errConflict) {
			return false, err
		}
	}
	return false, fmt.Errorf("%w: %w", ErrStore, errConflict)
}
