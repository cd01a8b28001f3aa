// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"slices"

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

	before order // of that task; zero for none
}

// wants reports whether a task is one of those.
func (q Query) wants(r *Record) bool {
	switch {
	case q.State != "" && r.State != q.State, q.before != (order{}) && r.order().compare(q.before) >= 0:
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
	i, old := slices.BinarySearchFunc(p.records, r.order(), func(a *Record, o order) int { return o.compare(a.order()) })
	if old {
		p.records = slices.Delete(p.records, i, i+1)
	}
	if !p.wants(r) {
		if old && p.more { // what was left out comes next, and nothing older before it
			p.Limit = len(p.records)
		}
		return
	}
	if p.records = slices.Insert(p.records, i, r); len(p.records) > p.Limit {
		p.records, p.more = p.records[:p.Limit], true
	}
}

// full reports whether no task of an order, nor an older one, can become part of the page.
func (p *page) full(o order) bool {
	return p.more && len(p.records) == p.Limit && (p.Limit == 0 || o.compare(p.records[p.Limit-1].order()) < 0)
}

// beginList waits until a list of an owner can be made, and returns what ends that. One that
// waits for others of its owner keeps no place from those of others.
func (s *session) beginList(ctx context.Context, owner string) (end func(), err error) {
	own, leave := s.lists.join(owner)
	if err = take(ctx, own); err == nil {
		if err = take(ctx, s.listing); err == nil {
			return func() { <-s.listing; <-own; leave() }, nil
		}
		<-own
	}
	leave()
	return nil, err
}

// take takes one of the places for lists.
func take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: too many lists are asked for", ErrStore)
	}
}

// list returns tasks of an owner, newest first, and whether there are more. It reads about
// as many as it returns.
func (s *store) list(ctx context.Context, owner string, q Query) ([]*Record, bool, error) {
	switch {
	case ValidID(q.Before):
		q.before = orderOf(q.Before)
	case q.Before != "":
		r, _, err := s.getCall(ctx, keyOf(owner, q.Before))
		before, known := s.calls.index.orderOf(ownerKey(owner), q.Before)
		switch {
		case err == nil:
			q.before = r.order()
		case errors.Is(err, ErrNotFound) && known: // it went while its owner was turning the pages
			q.before = before
		default:
			return nil, false, err
		}
	}
	for {
		p := &page{Query: q}
		if err := s.fill(ctx, owner, p); err != nil {
			return nil, false, err
		}
		if len(p.records) > 0 || !p.more { // else all of them have changed meanwhile
			return p.records, p.more, nil
		}
	}
}

// fill makes a page of the tasks of an owner.
func (s *store) fill(ctx context.Context, owner string, p *page) error {
	q := p.Query
	if (q.State == "" || q.State == Queued) && (q.Webhook == "" || q.Webhook == WebhookPending) {
		if err := s.listQueue(ctx, owner, p); err != nil {
			return fmt.Errorf("%w: listing the queue: %w", ErrStore, err)
		}
	}
	// After the queue: what leaves it is in its bucket by then.
	if err := s.listShelf(ctx, &s.records, owner, p); err != nil {
		return fmt.Errorf("%w: listing tasks: %w", ErrStore, err)
	}
	if q.Webhook == "" && q.State != Queued {
		if err := s.listShelf(ctx, &s.calls, owner, p); err != nil {
			return fmt.Errorf("%w: listing tasks: %w", ErrStore, err)
		}
	}
	return nil
}

// listShelf adds the newest tasks of a shelf to a page.
func (s *store) listShelf(ctx context.Context, from *shelf, owner string, p *page) error {
	if err := s.upToDate(ctx, from); err != nil {
		return err
	}
	owner = ownerKey(owner)
	most := p.Limit + 1
	read := make(map[string]bool) // a call whose id was used again has an entry for each time
	for before := p.before; ; {
		entries := from.index.before(owner, before, p.Query, most)
		for _, e := range entries {
			if p.full(e.order) {
				return nil
			}
			key := e.key(owner, from.index.calls)
			if read[key] {
				continue
			}
			read[key] = true
			r, err := s.read(ctx, key)
			switch {
			case errors.Is(err, ErrNotFound): // another gateway may have dropped it
				from.index.drop(ownedEntry{e, owner})
			case err != nil:
				return err
			default:
				p.add(r)
			}
		}
		if len(entries) < most {
			return nil
		}
		before = entries[most-1].order
	}
}

// read returns the record of a task that is in a bucket.
func (s *store) read(ctx context.Context, key string) (r *Record, err error) {
	if isCall(key) {
		r, _, err = s.getCall(ctx, key)
	} else {
		r, _, err = s.kept(ctx, key)
	}
	return r, err
}

// listQueue adds the newest tasks of the queue to a page. It reads backwards, by parts of
// the queue that become larger where there are few of the owner's.
func (s *store) listQueue(ctx context.Context, owner string, p *page) error {
	end, err := s.lastMessage(ctx, queueName)
	if err != nil {
		return err
	}
	subject := queueSubject + "*." + ownerKey(owner) + ".*"
	if end++; p.before != (order{}) {
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

// positionOf returns where in the queue the tasks begin that were submitted well after one.
func (s *store) positionOf(ctx context.Context, subject string, before order, end uint64) (uint64, error) {
	after := fmt.Sprintf("task_%012x", before.milliseconds()+uint64(callTimeout.Milliseconds())) // they may have overtaken each other
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
