// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"
)

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

	before string // the order of that task
}

// wants reports whether a task is one of those.
func (q Query) wants(r *Record) bool {
	switch {
	case q.State != "" && r.State != q.State, q.before != "" && r.order() >= q.before:
		return false
	case q.Webhook != "":
		return r.Webhook != nil && r.Webhook.State == q.Webhook
	}
	return true
}

// page is a part of a list, newest first.
type page struct {
	Query
	records []*Record
	more    bool
}

// add puts a record into the page, in place of an older form of it.
func (p *page) add(r *Record) {
	i, old := slices.BinarySearchFunc(p.records, r.order(), func(a *Record, order string) int { return cmp.Compare(order, a.order()) })
	if old {
		p.records = slices.Delete(p.records, i, i+1)
	}
	if !p.wants(r) {
		return
	}
	if p.records = slices.Insert(p.records, i, r); len(p.records) > p.Limit {
		p.records, p.more = p.records[:p.Limit], true
	}
}

// list returns tasks of an owner, newest first, and whether there are more. It holds no
// more than a page of them. Of those that nobody has begun it looks at as many; of the
// others at all.
func (s *store) list(ctx context.Context, owner string, q Query) ([]*Record, bool, error) {
	if q.before = q.Before; q.before != "" && !ValidID(q.before) {
		r, _, err := s.getCall(ctx, keyOf(owner, q.Before))
		if err != nil {
			return nil, false, err
		}
		q.before = r.order()
	}
	p := &page{Query: q}
	if (q.State == "" || q.State == Queued) && (q.Webhook == "" || q.Webhook == WebhookPending) {
		if err := s.listQueue(ctx, owner, p); err != nil {
			return nil, false, fmt.Errorf("%w: listing the queue: %w", ErrStore, err)
		}
	}
	newest, err := s.eachRecord(ctx, ownerKey(owner)+".*", func(r *Record, _ uint64) { p.add(r) })
	if err != nil {
		return nil, false, fmt.Errorf("%w: listing tasks: %w", ErrStore, err)
	}
	if err := s.sync(recordName, newest); err != nil {
		return nil, false, s.failedTo(ctx, err)
	}
	if q.Webhook == "" && q.State != Queued {
		if err := s.listCalls(ctx, owner, p); err != nil {
			return nil, false, fmt.Errorf("%w: listing tasks: %w", ErrStore, err)
		}
	}
	return p.records, p.more, nil
}

// eachRecord calls look with each record that there is below a key, and returns the newest
// revision. One that changes meanwhile may come in its old form and in its new one.
func (s *store) eachRecord(ctx context.Context, keys string, look func(*Record, uint64)) (newest uint64, err error) {
	begun, err := s.lastMessage(ctx, recordName)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.watch(ctx, keys, jetstream.IgnoreDeletes())
	if err != nil {
		return 0, err
	}
	defer endWatch(w)
	for {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case entry, ok := <-w.Updates():
			if !ok || entry == nil { // all that there were, or almost
				return s.eachChange(ctx, keys, min(begun, newest), look)
			}
			newest = entry.Revision()
			if r, err := decode(entry.Value()); err == nil {
				look(r, newest)
			}
		}
	}
}

// eachChange goes on after a revision, up to the newest. A watcher goes through the records
// in the order of their revisions, but it may not say of one that changes while it looks,
// and says that there are no more when there are.
func (s *store) eachChange(ctx context.Context, keys string, after uint64, look func(*Record, uint64)) (newest uint64, err error) {
	stream, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, recordName) })
	if err != nil {
		return 0, err
	}
	end := stream.CachedInfo().State.LastSeq // as it was a moment ago
	for newest = after; newest < end; {
		msg, err := s.next(ctx, stream, newest+1, "$KV."+bucket+"."+keys)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return newest, nil
		}
		if err != nil {
			return 0, err
		}
		newest = msg.Sequence
		if r, err := decode(msg.Data); err == nil {
			look(r, newest)
		}
	}
	return newest, nil
}

// listQueue adds the newest tasks of the queue to a page. It reads backwards, by parts of
// the queue that become larger where there are few of the owner's.
func (s *store) listQueue(ctx context.Context, owner string, p *page) error {
	end, err := s.lastMessage(ctx, queueName)
	if err != nil {
		return err
	}
	subject := queueSubject + "*." + ownerKey(owner) + ".*"
	if end++; p.before != "" {
		if end, err = s.positionOf(ctx, subject, p.before, end); err != nil {
			return err
		}
	}
	for size := uint64(2 * p.Limit); end > 1 && !p.more; size *= 4 {
		begin := end - min(size, end-1)
		for at := begin; at < end; at++ {
			msg, err := s.next(ctx, s.queue, at, subject)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				return err
			}
			if at = msg.Sequence; at >= end {
				break
			}
			r, err := decodeHeader(msg.Header)
			if err != nil {
				continue
			}
			if now, _, err := s.kept(ctx, r.key()); err == nil {
				r = now
			}
			p.add(r)
		}
		end = begin
	}
	return nil
}

// idTime is the part of an id that has the time.
const idTime = len("task_") + 12

// positionOf returns where in the queue the tasks begin that were submitted well after a
// task.
func (s *store) positionOf(ctx context.Context, subject, id string, end uint64) (uint64, error) {
	if len(id) < idTime {
		return end, nil
	}
	ms, err := strconv.ParseUint(id[len("task_"):idTime], 16, 48)
	if err != nil {
		return end, nil
	}
	after := fmt.Sprintf("task_%012x", ms+uint64(callTimeout.Milliseconds())) // they may have overtaken each other
	low, high := uint64(1), end
	for low < high {
		middle := low + (high-low)/2
		msg, err := s.next(ctx, s.queue, middle, subject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			high = middle
		case err != nil:
			return 0, err
		case taskID(msg.Subject) < after:
			low = msg.Sequence + 1
		default:
			high = middle
		}
	}
	return min(low, end), nil
}
