// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Names of events.
const (
	// WorkerOnline says that a worker announced itself, or is back.
	WorkerOnline = "worker_online"
	// WorkerOffline says that a worker fell silent, or its connection ended.
	WorkerOffline = "worker_offline"
	// EntryAppended says that an entry of the reputation ledger speaks of a known worker.
	EntryAppended = "entry_appended"
)

// Limits of the events.
const (
	// keptEvents is how many events can be replayed, and how far a subscriber
	// may fall behind.
	keptEvents = 1024
	// maxSubscribers bounds the subscribers of one node.
	maxSubscribers = 1024
	// maxSubscriptions bounds those of one owner.
	maxSubscriptions = 64
)

// Errors of events. Test with errors.Is.
var (
	// ErrSlow says that a subscriber fell behind by more events than are kept.
	ErrSlow = errors.New("the subscriber did not keep up with the events")
	// ErrEventsOver says that there will be no more events for a subscriber:
	// the node closes, or Caddy exits.
	ErrEventsOver = errors.New("the events are over")
	// ErrSubscribers says that the node has all the subscribers that it may have.
	ErrSubscribers = errors.New("too many subscribers to events")
	// ErrSubscriptions says that one owner has all the subscriptions that it
	// may have.
	ErrSubscriptions = errors.New("too many subscriptions to events by one client")
)

// Event is something that happened on the mesh.
type Event struct {
	// ID names the event, and tells its place among those of this process.
	ID string
	// Name says what happened: [WorkerOnline], [WorkerOffline] or [EntryAppended].
	Name string
	// Peer, Agent and Model are those of the worker. Of a peer that is not known as one
	// there is no agent and no model.
	Peer, Agent, Model string
	// Kind is that of an entry.
	Kind string
}

// Events keeps the latest events and gives them to any number of subscribers.
// Whoever publishes never waits: subscribers read from what is kept, each at its
// own pace, and one that falls too far behind is told so.
type Events struct {
	epoch string // tells the ids of this process from those of an earlier one

	mu      sync.Mutex
	kept    [keptEvents]Event // event n is at n % keptEvents; the first is 1
	last    uint64            // number of the newest event; 0 for none
	news    chan struct{}     // closed, and replaced, with every change
	cuts    int               // counts the calls of Cut
	closed  bool
	total   int
	byOwner map[string]int
}

// NewEvents returns Events without any.
func NewEvents() *Events {
	return &Events{
		epoch:   strconv.FormatInt(time.Now().UnixMicro(), 36),
		news:    make(chan struct{}),
		byOwner: make(map[string]int),
	}
}

// Publish adds an event and gives it its id. It never blocks.
func (e *Events) Publish(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	ev.ID = fmt.Sprintf("%s-%d", e.epoch, e.last)
	e.kept[e.last%keptEvents] = ev
	e.wake()
}

// wake tells all who wait that there is a change.
func (e *Events) wake() {
	close(e.news)
	e.news = make(chan struct{})
}

// Cut ends all subscriptions that there are. Others may follow.
func (e *Events) Cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cuts++
	e.wake()
}

// Close ends all subscriptions, and those to come.
func (e *Events) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.wake()
}

// first is the number of the oldest event that is kept.
func (e *Events) first() uint64 {
	if e.last <= keptEvents {
		return 1
	}
	return e.last - keptEvents + 1
}

// Subscribe begins a subscription for an owner, who may have 64 of the 1,024
// that there may be. It begins with the next event; or, when lastID is not
// empty, with the event after the one of that id. When that is not kept any
// more, or the id is none of this process's, it begins with the oldest event
// that is kept: better twice than never. The caller must Close the subscription.
func (e *Events) Subscribe(owner, lastID string) (*Subscription, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return nil, ErrEventsOver
	case e.total >= maxSubscribers:
		return nil, ErrSubscribers
	case e.byOwner[owner] >= maxSubscriptions:
		return nil, ErrSubscriptions
	}
	e.total++
	e.byOwner[owner]++
	return &Subscription{events: e, owner: owner, next: e.after(lastID), cuts: e.cuts}, nil
}

// after returns the number of the first event for who has seen the one of lastID.
func (e *Events) after(lastID string) uint64 {
	if lastID == "" {
		return e.last + 1
	}
	epoch, number, _ := strings.Cut(lastID, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || epoch != e.epoch || n > e.last || n+1 < e.first() {
		return e.first()
	}
	return n + 1
}

// Subscription is one reader of the events. It is for one goroutine.
type Subscription struct {
	events *Events
	owner  string
	next   uint64 // number of the next event
	cuts   int    // of the events, when this began
	once   sync.Once
}

// Next returns the next event, once there is one. The error is [ErrSlow],
// [ErrEventsOver] or that of ctx.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		ev, news, err := s.take()
		if news == nil {
			return ev, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// take returns the next event, or what tells that there may be one.
func (s *Subscription) take() (Event, <-chan struct{}, error) {
	e := s.events
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed || s.cuts != e.cuts:
		return Event{}, nil, ErrEventsOver
	case s.next < e.first():
		return Event{}, nil, ErrSlow
	case s.next > e.last:
		return Event{}, e.news, nil
	}
	s.next++
	return e.kept[(s.next-1)%keptEvents], nil, nil
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.once.Do(func() {
		e := s.events
		e.mu.Lock()
		defer e.mu.Unlock()
		e.total--
		if e.byOwner[s.owner]--; e.byOwner[s.owner] == 0 {
			delete(e.byOwner, s.owner)
		}
	})
}

// Events begins a subscription to the node's events; see [Events.Subscribe]. It
// outlives the lease, and ends with the node.
func (l *Lease) Events(owner, lastID string) (*Subscription, error) {
	return l.node.directory.events.Subscribe(owner, lastID)
}
