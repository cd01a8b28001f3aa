// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
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

	// ErrTooLarge says that what is kept of a task is more than can be kept.
	ErrTooLarge = errors.New("the task is too large to be kept: its client may use too many models, or excludes too many workers")

	errConflict = errors.New("the record has changed meanwhile")
	errDamaged  = errors.New("the record of a task is damaged")
)

// get returns a record and its revision. That of a task that nobody has begun is in the
// queue, with the revision 0.
func (s *store) get(ctx context.Context, key string) (*Record, uint64, error) {
	if isCall(key) {
		return s.getCall(ctx, key)
	}
	r, revision, err := s.kept(ctx, key)
	if !errors.Is(err, ErrNotFound) {
		return r, revision, err
	}
	msg, err := s.queued(ctx, key)
	if errors.Is(err, ErrNotFound) { // or its end was stored meanwhile
		return s.kept(ctx, key)
	}
	if err != nil {
		return nil, 0, err
	}
	r, err = decodeHeader(msg.Header)
	return r, 0, err
}

// queued returns the message of a task in the queue. The error is [ErrNotFound] when it is
// not there any more.
func (s *store) queued(ctx context.Context, key string) (*jetstream.RawStreamMsg, error) {
	msg, err := s.last(ctx, s.queue, inQueue(key))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, ErrNotFound
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	return msg, nil
}

// kept returns the record of a task that was begun, or has ended.
func (s *store) kept(ctx context.Context, key string) (*Record, uint64, error) {
	entry, err := patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValueEntry, error) { return s.records.Get(ctx, key) })
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
		return nil, 0, ErrNotFound
	case err != nil:
		return nil, 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	if err := s.sync(recordName, entry.Revision()); err != nil {
		return nil, 0, s.failedTo(ctx, err)
	}
	r, err := decode(entry.Value())
	return r, entry.Revision(), err
}

// put writes a record, when its revision is still that one; 0 is for one that is not
// there yet. It returns the new revision, which is on disk. A record goes away [Keep]
// after it was last written.
func (s *store) put(ctx context.Context, r *Record, revision uint64) (uint64, error) {
	b, err := r.encode()
	if err != nil {
		return 0, err
	}
	if err := s.sync(recordName, revision); err != nil { // this write removes the one before
		return 0, s.failedTo(ctx, err)
	}
	message, err := s.publish(ctx, &nats.Msg{Subject: "$KV." + bucket + "." + r.key(), Data: b},
		jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithMsgTTL(Keep))
	if hasChanged(err) {
		if message, err = s.holds(ctx, r.key(), b); err != nil {
			return 0, err
		}
	}
	if err == nil {
		err = s.sync(recordName, message)
	}
	if err != nil {
		s.records.index.failed()
		return 0, s.failedTo(ctx, err)
	}
	s.records.index.note(r, message)
	s.changed(r.key())
	return message, nil
}

// changed wakes those who follow a task. In a cluster they hear of changes anyway.
func (s *store) changed(key string) {
	if s.wake != nil && !s.shared {
		s.wake(key)
	}
}

// publish stores a message, and returns its number in the stream. A cluster may be given it
// twice.
func (s *store) publish(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (uint64, error) {
	ack, err := step(s, "write", msg.Subject, func() (*jetstream.PubAck, error) {
		return patiently(ctx, s, func(ctx context.Context) (*jetstream.PubAck, error) { return s.js.PublishMsg(ctx, msg, opts...) })
	})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// holds returns the revision of a record, or errConflict when it is not this one. It is when
// a cluster took it, and the answer was lost.
func (s *store) holds(ctx context.Context, key string, b []byte) (uint64, error) {
	if !s.shared {
		return 0, errConflict
	}
	entry, err := patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValueEntry, error) { return s.records.Get(ctx, key) })
	if err == nil && bytes.Equal(entry.Value(), b) {
		return entry.Revision(), nil
	}
	return 0, errConflict
}

// maxConflicts bounds how often a change is tried: two sides change a record, and
// seldom at one time.
const maxConflicts = 20

// update changes a record. The change sees its newest form and may refuse with an error,
// which is returned with the record as it is. A change of a lost answer may be seen twice.
func (s *store) update(ctx context.Context, key string, change func(*Record) error) (*Record, error) {
	r, _, err := s.updateFrom(ctx, key, nil, 0, change)
	return r, err
}

// updateFrom does so from a record of which the caller has a revision; nil for none. The
// record stays as it is.
func (s *store) updateFrom(ctx context.Context, key string, known *Record, revision uint64, change func(*Record) error) (*Record, uint64, error) {
	for range maxConflicts {
		r := known
		if r == nil {
			var err error
			if r, revision, err = s.get(ctx, key); err != nil {
				return nil, 0, err
			}
		} else {
			r = r.clone()
		}
		before := *r
		if r.Webhook != nil {
			webhook := *r.Webhook
			before.Webhook = &webhook
		}
		if err := change(r); err != nil {
			return r, revision, err
		}
		r.note(&before)
		next, err := s.put(ctx, r, revision)
		if err == nil {
			return r, next, nil
		}
		if !errors.Is(err, errConflict) {
			return nil, 0, err
		}
		known = nil
	}
	return nil, 0, fmt.Errorf("%w: %w", ErrStore, errConflict)
}

// submit puts a new task into the queue, with its record as the header has it. When it returns nil, it is on disk.
func (s *store) submit(ctx context.Context, r *Record, header nats.Header, prompt string) error {
	err := s.enqueue(ctx, s.queue, queueName, &nats.Msg{Subject: inQueue(r.key()), Header: header, Data: []byte(prompt)})
	if err == nil {
		return nil
	}
	// The client hears that the task was not accepted. Should it have been, all the same,
	// it must not run.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_ = r.end(Failed, ReasonNotAccepted, "the task could not be queued")
	_, _ = s.put(ctx, r, 0)
	return s.failedTo(ctx, err)
}

// enqueue puts a message into a queue, unless it is there. When it returns nil, it is on
// disk.
func (s *store) enqueue(ctx context.Context, queue jetstream.Stream, name string, msg *nats.Msg) error {
	message, err := s.publish(ctx, msg)
	if err != nil {
		there, lerr := s.last(ctx, queue, msg.Subject)
		if lerr != nil {
			return err
		}
		message = there.Sequence // the answer was lost, or it was another's
	}
	return s.sync(name, message)
}

// inQueue is the subject of a task in the queue: that of its lane, which ends its id.
func inQueue(key string) string { return queueSubject + key[len(key)-1:] + "." + key }

// maxHeader is the size of a record that fits into a header: nats-server takes 64 KiB of
// base64, and its own.
const maxHeader = 45 << 10

// recordHeader has the record of a task in the queue.
const recordHeader = "Agentfm-Task"

// encodeHeader returns the record as it stands in the queue.
func (r *Record) encodeHeader() (nats.Header, error) {
	b, err := r.encode()
	if err == nil && len(b) > maxHeader {
		err = ErrTooLarge
	}
	return nats.Header{recordHeader: {base64.RawStdEncoding.EncodeToString(b)}}, err
}

// decodeHeader reads the record of a task in the queue.
func decodeHeader(h nats.Header) (*Record, error) {
	b, err := base64.RawStdEncoding.DecodeString(h.Get(recordHeader))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return decode(b)
}

// syncQueued returns when a task that is in the queue is there on disk.
func (s *store) syncQueued(ctx context.Context, key string) error {
	msg, err := s.queued(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound): // it has a record by now
		return nil
	case err != nil:
		return err
	}
	if err := s.sync(queueName, msg.Sequence); err != nil {
		return s.failedTo(ctx, err)
	}
	return nil
}

// dequeue takes a task that has ended out of the queue.
func (s *store) dequeue(ctx context.Context, key string) {
	msg, err := s.queued(ctx, key)
	if err == nil {
		err = s.sync(queueName, msg.Sequence) // as in acknowledge
	}
	if err == nil {
		_ = s.queue.DeleteMsg(ctx, msg.Sequence)
	}
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

// queue has the task wait for a worker again.
func (r *Record) queue(reason, message string) {
	r.State, r.Reason, r.Message, r.Started = Queued, reason, message, time.Time{}
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

// next returns the first message of a subject from a number on.
func (s *store) next(ctx context.Context, stream jetstream.Stream, from uint64, subject string) (*jetstream.RawStreamMsg, error) {
	return patiently(ctx, s, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(subject))
	})
}

// endWatch ends a watch. What was on its way is taken: the library would wait for that for
// ever, with a goroutine. For a server that is away it waits longer than this does.
func endWatch(w jetstream.KeyWatcher) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = w.Stop()
	}()
	late := time.NewTimer(flushWait)
	defer late.Stop()
	for updates := w.Updates(); updates != nil; {
		select {
		case _, ok := <-updates:
			if !ok {
				updates = nil
			}
		case <-late.C:
			return
		}
	}
	select {
	case <-stopped:
	case <-late.C:
	}
}

// watch begins to look at the records of a shelf and their changes, until ctx ends. It does not wait for
// a server that is going.
func (s *store) watch(ctx context.Context, of *shelf, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	limit := callTimeout
	if s.shared {
		limit = tryTimeout
	}
	return patiently(ctx, s, func(context.Context) (jetstream.KeyWatcher, error) {
		ctx, cancel := context.WithCancel(ctx) // the end of what the library is given would end the watch
		late := time.AfterFunc(limit, cancel)
		w, err := of.WatchAll(ctx, opts...)
		if !late.Stop() && err == nil {
			endWatch(w)
			err = context.DeadlineExceeded
		}
		return w, err
	})
}

// length returns how many messages are in a queue, and how many bytes they have.
func (s *store) length(ctx context.Context, queue string) (messages int, bytes int64, err error) {
	// A handle must not be used at the same time as its Info.
	handle, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, queue) })
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	info := handle.CachedInfo() // as it was a moment ago
	return int(info.State.Msgs), int64(info.State.Bytes), nil
}

// lastMessage returns the number of the newest message of a stream.
func (s *store) lastMessage(ctx context.Context, stream string) (uint64, error) {
	handle, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, stream) })
	if err != nil {
		return 0, err
	}
	return handle.CachedInfo().State.LastSeq, nil // as it was a moment ago
}
