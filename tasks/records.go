// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Errors of the store. Test with errors.Is.
var (
	// ErrNotFound says that there is no such task of that owner.
	ErrNotFound = errors.New("no such task")
	// ErrEnded says that the task has ended already.
	ErrEnded = errors.New("the task has ended")
	// ErrFull says that too many tasks are queued or running.
	ErrFull = errors.New("too many tasks are queued or running")
	// ErrNotRunning says that the store is not open: it is starting or closing.
	ErrNotRunning = errors.New("task store is not running")
	// ErrStore says that the store does not take what is to be kept.
	ErrStore = errors.New("task store failed")

	errConflict = errors.New("the record has changed meanwhile")
)

// get returns a record and its revision.
func (s *store) get(ctx context.Context, key string) (*Record, uint64, error) {
	entry, err := patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValueEntry, error) { return s.records.Get(ctx, key) })
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
		return nil, 0, ErrNotFound
	case err != nil:
		return nil, 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	r, err := decode(entry.Value())
	return r, entry.Revision(), err
}

// put writes a record, when its revision is still that one; 0 is for one that is not
// there yet. The record of a task that has ended goes away after [Keep].
func (s *store) put(ctx context.Context, r *Record, revision uint64) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	opts := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(revision)}
	if r.State.Ended() {
		opts = append(opts, jetstream.WithMsgTTL(Keep))
	}
	err = s.publish(ctx, &nats.Msg{Subject: "$KV." + bucket + "." + r.key(), Data: b}, opts...)
	if apiErr, ok := errors.AsType[*jetstream.APIError](err); ok && apiErr.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		if err = s.holds(ctx, r.key(), b); err != nil {
			return err
		}
	}
	if err == nil && r.State.Ended() { // what is told of it does not change any more
		err = s.witness.sync()
	}
	if err != nil {
		return s.failedTo(ctx, err)
	}
	return nil
}

// publish stores a message. A cluster may be given it twice.
func (s *store) publish(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) error {
	_, err := patiently(ctx, s, func(ctx context.Context) (*jetstream.PubAck, error) { return s.js.PublishMsg(ctx, msg, opts...) })
	return err
}

// holds returns errConflict when a record is not this one. It is when a cluster took it,
// and the answer was lost.
func (s *store) holds(ctx context.Context, key string, b []byte) error {
	if !s.shared {
		return errConflict
	}
	entry, err := patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValueEntry, error) { return s.records.Get(ctx, key) })
	if err == nil && bytes.Equal(entry.Value(), b) {
		return nil
	}
	return errConflict
}

// maxConflicts bounds how often a change is tried: two sides change a record, and
// seldom at one time.
const maxConflicts = 20

// update changes a record. The change sees its newest form and may refuse with an error,
// which is returned with the record as it is. A change of a lost answer may be seen twice.
func (s *store) update(ctx context.Context, key string, change func(*Record) error) (*Record, error) {
	for range maxConflicts {
		r, revision, err := s.get(ctx, key)
		if err != nil {
			return nil, err
		}
		if err := change(r); err != nil {
			return r, err
		}
		err = s.put(ctx, r, revision)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, errConflict) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrStore, errConflict)
}

// watch begins to look at records and their changes, until ctx ends. It does not wait for
// a server that is going.
func (s *store) watch(ctx context.Context, keys string, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	limit := callTimeout
	if s.shared {
		limit = tryTimeout
	}
	return patiently(ctx, s, func(context.Context) (jetstream.KeyWatcher, error) {
		ctx, cancel := context.WithCancel(ctx) // the end of what the library is given would end the watch
		late := time.AfterFunc(limit, cancel)
		w, err := s.records.Watch(ctx, keys, opts...)
		if !late.Stop() && err == nil {
			_ = w.Stop()
			err = context.DeadlineExceeded
		}
		return w, err
	})
}

// Query says which tasks of an owner are listed.
type Query struct {
	// State is the one that they are in; empty for any.
	State State
	// Webhook is the state of their webhooks; empty for any, and for tasks without.
	Webhook WebhookState
	// Before is the id of a task: those that were submitted before it are listed.
	Before string
	// Limit is how many there may be.
	Limit int
}

// list returns tasks of an owner, newest first, and whether there are more. It looks at
// all of the owner's, and holds no more than a page of them.
func (s *store) list(ctx context.Context, owner string, q Query) (page []*Record, more bool, err error) {
	w, err := s.watch(ctx, ownerKey(owner)+".*", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrStore, err)
	}
	defer w.Stop()
	newestFirst := func(a, b *Record) int { return cmp.Compare(b.ID, a.ID) }
	for {
		select {
		case <-ctx.Done():
			return nil, false, fmt.Errorf("%w: listing tasks: %w", ErrStore, context.Cause(ctx))
		case entry, ok := <-w.Updates():
			if !ok || entry == nil { // all that there are
				return page, more, nil
			}
			r, err := decode(entry.Value())
			if err != nil || !q.wants(r) {
				continue
			}
			i, _ := slices.BinarySearchFunc(page, r, newestFirst)
			if page = slices.Insert(page, i, r); len(page) > q.Limit {
				page, more = page[:q.Limit], true
			}
		}
	}
}

// wants reports whether a task is one of those.
func (q Query) wants(r *Record) bool {
	switch {
	case q.State != "" && r.State != q.State, q.Before != "" && r.ID >= q.Before:
		return false
	case q.Webhook != "":
		return r.Webhook != nil && r.Webhook.State == q.Webhook
	}
	return true
}

// submit stores a new task: first its record, and then what makes it run. When it
// returns nil, both are on disk.
func (s *store) submit(ctx context.Context, r *Record, prompt string) error {
	if err := s.put(ctx, r, 0); err != nil {
		return err
	}
	err := s.enqueue(ctx, s.queue, queueSubject+r.key(), []byte(prompt))
	if err == nil {
		err = s.witness.sync()
	}
	if err == nil {
		return nil
	}
	// The client hears that the task was not accepted. Should it have been, all the same,
	// it must not run; should this fail as well, the sweep after the next start does it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_, _ = s.update(ctx, r.key(), func(r *Record) error { return r.end(Failed, ReasonNotAccepted, "the task could not be queued") })
	return s.failedTo(ctx, err)
}

// enqueue puts a message into a queue, unless it is there.
func (s *store) enqueue(ctx context.Context, queue jetstream.Stream, subject string, data []byte) error {
	err := s.publish(ctx, &nats.Msg{Subject: subject, Data: data})
	if err != nil {
		if there, _ := s.waiting(ctx, queue, subject); there { // the answer was lost, or it was another's
			return nil
		}
	}
	return err
}

// end takes the task to its end, unless it has ended.
func (r *Record) end(state State, reason, message string) error {
	if r.State.Ended() {
		return ErrEnded
	}
	r.State, r.Reason, r.Message, r.Ended = state, reason, message, time.Now().UTC()
	if r.Ended.Before(r.Created) { // the clock was set back
		r.Ended = r.Created
	}
	return nil
}

// waiting reports whether a queue has a message of a subject.
func (s *store) waiting(ctx context.Context, queue jetstream.Stream, subject string) (bool, error) {
	_, err := s.last(ctx, queue, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// last returns the last message of a subject.
func (s *store) last(ctx context.Context, stream jetstream.Stream, subject string) (*jetstream.RawStreamMsg, error) {
	return patiently(ctx, s, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return stream.GetLastMsgForSubject(ctx, subject)
	})
}

// length returns how many messages are in a queue, and how many bytes they have.
func (s *store) length(ctx context.Context, queue string) (messages int, bytes uint64, err error) {
	// A handle must not be used at the same time as its Info.
	handle, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, queue) })
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	info := handle.CachedInfo() // as it was a moment ago
	return int(info.State.Msgs), info.State.Bytes, nil
}

// prompt returns the prompt of a task in the queue. The error is [ErrNotFound] when it is
// not there any more.
func (s *store) prompt(ctx context.Context, key string) (string, error) {
	msg, err := s.last(ctx, s.queue, queueSubject+key)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return "", ErrNotFound
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrStore, err)
	}
	return string(msg.Data), nil
}

// lastRevision returns the newest revision of any record.
func (s *store) lastRevision(ctx context.Context) (uint64, error) {
	stream, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, "KV_"+bucket) })
	if err != nil {
		return 0, err
	}
	return stream.CachedInfo().State.LastSeq, nil // as it was a moment ago
}
