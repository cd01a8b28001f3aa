// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// fillEnded puts tasks that have ended into the store, as fast as that goes.
func fillEnded(t testing.TB, s *store, n int, change ...func(i int, r *Record)) {
	t.Helper()
	js, err := jetstream.New(s.conn, jetstream.WithPublishAsyncMaxPending(4000))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now().UTC().Add(-time.Hour)
	for i := range n {
		now := begun.Add(time.Duration(i) * time.Millisecond)
		r := &Record{ID: newID(now, 0), Owner: "ann", Site: "site", Target: Target{Model: "model"}, State: Queued, Created: now}
		r.note(nil)
		before := *r
		r.State, r.Worker, r.Attempts, r.Started = Running, testWorker, 1, now
		r.note(&before)
		before = *r
		_ = r.end(Completed, "", "")
		r.note(&before)
		for _, c := range change {
			c(i, r)
		}
		b, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := js.PublishMsgAsync(&nats.Msg{Subject: "$KV." + bucket + "." + r.key(), Data: b}, jetstream.WithMsgTTL(Keep), jetstream.WithStallWait(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-js.PublishAsyncComplete()
}

// TestIndex compares the index with all that it was told, in whatever order that came.
func TestIndex(t *testing.T) {
	type written struct {
		*Record
		revision uint64
	}
	x, all := newIndex(false), make(map[order]written)
	var revision uint64
	write := func(i int) {
		at := time.UnixMilli(int64(i))
		r := &Record{ID: fmt.Sprintf("task_%012x%024x", i, i%7), Owner: "ann", State: States[rand.N(len(States))], Created: at}
		if i%3 == 0 {
			r = &Record{ID: fmt.Sprint("call", i), Sync: true, Owner: "ann", State: Running, Created: at}
		}
		if r.State.Ended() && i%2 == 0 {
			r.Webhook = &Webhook{State: WebhookStates[rand.N(len(WebhookStates))]}
		}
		revision++
		all[r.order()] = written{r, revision}
		x.note(r, revision)
		x.note(&Record{ID: r.ID, Sync: r.Sync, Owner: "ann", State: Failed, Created: at}, revision-1) // of late
	}
	for range 300 {
		write(1 + rand.N(200))
	}
	x.load(revision)
	for i := range 300 {
		write(1 + rand.N(300))
		if i == 150 {
			first := revision - 200
			x.forget(first)
			maps.DeleteFunc(all, func(_ order, w written) bool { return w.revision < first })
		}
	}
	for range 500 {
		q := Query{Limit: 1 + rand.N(20), before: (&Record{ID: newID(time.UnixMilli(rand.N[int64](400)), 0)}).order()}
		if rand.N(2) == 0 {
			q.State = States[rand.N(len(States))]
		}
		if rand.N(3) == 0 {
			q.Webhook = WebhookStates[rand.N(len(WebhookStates))]
		}
		if rand.N(5) == 0 {
			q.before = order{}
		}
		p := page{Query: q}
		for _, w := range all {
			if q.Webhook == "" || w.Webhook != nil {
				p.add(w.Record)
			}
		}
		var want, got []string
		for _, r := range p.records {
			want = append(want, r.key())
		}
		for _, e := range x.before(ownerKey("ann"), q.before, q, q.Limit) {
			got = append(got, e.key(ownerKey("ann"), all[e.order].Sync))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%+v:\ngot  %q\nwant %q", q, got, want)
		}
	}
	for _, key := range x.unfinished(revision) {
		w := all[orderOf(taskID(key))]
		if w.Record != nil && w.State.Ended() && (w.Webhook == nil || w.Webhook.State != WebhookPending) {
			t.Errorf("%s is finished", w.ID)
		}
	}
	x.forget(revision + 1)
	if len(x.owners) != 0 {
		t.Errorf("%d owners stay", len(x.owners))
	}
}

// TestListLate wants a list that is asked for before all was read to wait for that, and not
// to be half of one; and what is not kept any more not to be listed.
func TestListLate(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(t.Context(), place{dir: dir}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	fillEnded(t, s, n)
	s.close()
	gate, waits := make(chan struct{}), make(chan struct{}, 10)
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.fault = func(when, verb, what string) error {
		if when == "before" && verb == "read" && what == recordName {
			waits <- struct{}{}
			<-gate
		}
		return nil
	}
	p := open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	<-waits
	newest := submit(t, p, "")
	ctx, cancel := context.WithTimeout(t.Context(), short)
	if page, _, err := p.List(ctx, "ann", Query{Limit: 2 * n}); !errors.Is(err, ErrStore) {
		t.Errorf("too early: %d tasks, %v", len(page), err)
	}
	cancel()
	close(gate)
	if page, more, err := p.List(t.Context(), "ann", Query{Limit: 2 * n}); err != nil || more || len(page) != n+1 || page[0].ID != newest {
		t.Errorf("%d tasks, %v, %v", len(page), more, err)
	}
	s = p.service.Load().current.Load().store
	page, _, err := p.List(t.Context(), "ann", Query{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range page[2:5] {
		if err := s.records.Purge(t.Context(), r.key()); err != nil {
			t.Fatal(err)
		}
	}
	if after, more, err := p.List(t.Context(), "ann", Query{Limit: 7}); err != nil || !more || len(after) != 7 || after[6].ID != page[9].ID {
		t.Errorf("got %d, %v, %v", len(after), more, err)
	}
	for _, e := range s.records.index.before(ownerKey("ann"), order{}, Query{}, 10) {
		if r := page[3]; e.order == r.order() {
			t.Errorf("%s is in the index still", r.ID)
		}
	}
}

// TestPageChanges wants no task to be left out of a page and the next because another, which
// was in the page, is none of it any more.
func TestPageChanges(t *testing.T) {
	task := func(i int, s State) *Record {
		return &Record{ID: fmt.Sprintf("task_%012x%024x", i, 0), Owner: "ann", State: s}
	}
	for limit := 1; limit <= 3; limit++ {
		p := page{Query: Query{State: Queued, Limit: limit}}
		for i := 9; i > 9-limit-1; i-- {
			p.add(task(i, Queued))
		}
		p.add(task(9, Running))
		older := task(1, Queued)
		if !p.more || !p.full(older.order()) {
			t.Errorf("%d: nothing older can come in", limit)
		}
		if p.add(older); len(p.records) != limit-1 || limit > 1 && p.records[limit-2].ID != task(9-limit+1, Queued).ID {
			t.Errorf("%d: got %+v", limit, p.records)
		}
	}
}

// TestListFromGone wants a list to go on from a call that is kept no more since its page.
func TestListFromGone(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	async := submit(t, p, "")
	ended(t, p, async)
	for _, id := range []string{"job.1", "job.2", "job.3"} {
		time.Sleep(2 * time.Millisecond) // the order is by milliseconds
		c, _ := begin(p, id)
		c.End(nil, completed)
	}
	s := p.service.Load().current.Load().store
	second := keyOf("ann", "job.2")
	_, revision, err := s.getCall(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.calls.Purge(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, p, "ann", Query{Limit: 1, Before: "job.2"}); got != "true job.1:completed" {
		t.Errorf("got %s", got)
	}
	s.calls.index.forget(revision + 1) // also what is older
	for range 2 {
		if got := listed(t, p, "ann", Query{Limit: 1, Before: "job.2"}); got != "false "+async+":completed" {
			t.Errorf("got %s", got)
		}
		s.calls.index.mu.Lock()
		for i := range maxGone - 1 { // of others, until these are the earlier ones
			s.calls.index.gone[goneCall{fmt.Sprint(i), token{}}] = order{1}
		}
		s.calls.index.remember("bob", []entry{{}}, 1)
		s.calls.index.mu.Unlock()
	}
	if len(s.calls.index.goneEarlier) < maxGone || len(s.calls.index.gone) != 1 {
		t.Errorf("it knows %d and %d", len(s.calls.index.goneEarlier), len(s.calls.index.gone))
	}
	for owner, before := range map[string]string{"ann": "job.4", "bob": "job.2"} {
		if _, _, err := p.List(t.Context(), owner, Query{Limit: 1, Before: before}); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of %s: %v", before, owner, err)
		}
	}
}

// TestListsOfOne wants the lists of one owner to leave places for those of others.
func TestListsOfOne(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	s := p.service.Load().current.Load()
	gone, cancel := context.WithCancel(t.Context())
	var ends []func()
	for range maxOwnLists {
		end, err := s.beginList(t.Context(), "ann")
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	var waiting sync.WaitGroup
	for range 2 * maxLists {
		waiting.Go(func() {
			if _, _, err := p.List(gone, "ann", Query{Limit: 1}); !errors.Is(err, ErrStore) {
				t.Errorf("one too many: %v", err)
			}
		})
	}
	await.Until(t, "lists that wait", func() bool {
		s.lists.mu.Lock()
		defer s.lists.mu.Unlock()
		return s.lists.all["ann"].joined == maxOwnLists+2*maxLists
	})
	if got := listed(t, p, "bob", Query{Limit: 1}); got != "false" {
		t.Errorf("got %s", got)
	}
	cancel()
	waiting.Wait()
	for _, end := range ends {
		end()
	}
	if got := listed(t, p, "ann", Query{Limit: 1}); got != "false" || len(s.listing) != 0 || len(s.lists.all) != 0 {
		t.Errorf("got %s; left: %d, %v", got, len(s.listing), s.lists.all)
	}
}

// TestIndexAgain wants what is noted once more to be there once.
func TestIndexAgain(t *testing.T) {
	x := newIndex(false)
	for range 3 {
		for i := range 10 {
			x.note(&Record{ID: fmt.Sprintf("task_%036x", i), Owner: "ann", State: Completed}, uint64(100+i))
		}
		x.again()
		if n := len(x.owners[ownerKey("ann")]); n != 10 {
			t.Errorf("there are %d", n)
		}
	}
}

// BenchmarkList asks for pages of an owner's tasks, of which there are many.
func BenchmarkList(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			s, err := openStore(b.Context(), place{dir: dir}, zap.NewNop())
			if err != nil {
				b.Fatal(err)
			}
			fillEnded(b, s, n)
			s.close()
			p, err := New(Options{Dir: dir, Logger: zap.NewNop()})
			if err != nil {
				b.Fatal(err)
			}
			p.Register("site", &fakeRunner{run: says("done", nil)})
			if err := p.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = p.Cleanup() }()
			begun := time.Now()
			<-p.service.Load().current.Load().store.records.index.loaded
			loaded := time.Since(begun)
			for b.Loop() {
				page, more, err := p.List(context.Background(), "ann", Query{Limit: 50})
				if err != nil || len(page) != 50 || !more {
					b.Fatal(len(page), more, err)
				}
			}
			b.ReportMetric(float64(loaded.Milliseconds()), "ms-after-start")
		})
	}
}
