// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Limits of those who follow tasks.
const (
	maxFollowers      = 1024 // of all clients together
	maxFollowersOfOne = 64   // of one client

	// followPause is how long a follower waits without looking, whether it is woken or not.
	followPause = 2 * time.Second
)

// Errors of those who follow tasks. Test with errors.Is.
var (
	// ErrFollowers says that there are all the followers that there may be.
	ErrFollowers = errors.New("too many tasks are followed")
	// ErrFollowing says that one client follows all the tasks that it may.
	ErrFollowing = errors.New("too many tasks are followed by one client")
	// ErrOver says that following ends: the store closes, or Caddy exits.
	ErrOver = errors.New("the task is not followed any more")
	// ErrRestarted says that the output of a task begins anew: the attempt whose output was
	// read is lost.
	ErrRestarted = errors.New("the output begins anew")
)

// followers are those who follow tasks. Whoever changes a task wakes them and never waits;
// they read from the store, each at its own pace.
type followers struct {
	over chan struct{} // closed when following ends
	end  func()        // closes it

	mu       sync.Mutex
	total    int
	byClient map[string]int
	byKey    map[string]map[*Follower]bool // of the task
}

// newFollowers returns none.
func newFollowers() *followers {
	f := &followers{over: make(chan struct{}), byClient: make(map[string]int), byKey: make(map[string]map[*Follower]bool)}
	f.end = sync.OnceFunc(func() { close(f.over) })
	return f
}

// add counts a follower in.
func (f *followers) add(w *Follower) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.total >= maxFollowers:
		return ErrFollowers
	case f.byClient[w.client] >= maxFollowersOfOne:
		return ErrFollowing
	}
	f.total++
	f.byClient[w.client]++
	if f.byKey[w.key] == nil {
		f.byKey[w.key] = make(map[*Follower]bool)
	}
	f.byKey[w.key][w] = true
	return nil
}

// remove counts a follower out.
func (f *followers) remove(w *Follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total--
	if f.byClient[w.client]--; f.byClient[w.client] == 0 {
		delete(f.byClient, w.client)
	}
	if delete(f.byKey[w.key], w); len(f.byKey[w.key]) == 0 {
		delete(f.byKey, w.key)
	}
}

// wake wakes those who follow a task.
func (f *followers) wake(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.byKey[key] {
		select {
		case w.news <- struct{}{}:
		default: // it is awake
		}
	}
}

// Follower follows a task. It is for one goroutine.
type Follower struct {
	// Record is the task as it was when following began.
	Record *Record

	part    *Part
	service *service
	client  string
	key     string
	news    chan struct{}
	once    sync.Once
	out     *Output
}

// Follow begins to follow a task of an owner. client is whose follower it is: one client
// may have 64 of the 1,024 that there may be. The caller must Close it.
func (p *Part) Follow(ctx context.Context, client, owner, id string) (*Follower, error) {
	r, err := p.Get(ctx, owner, id)
	if err != nil {
		return nil, err
	}
	f := &Follower{Record: r, part: p, service: p.service.Load(), client: client, key: r.key(), news: make(chan struct{}, 1)}
	if err := f.service.followers.add(f); err != nil {
		return nil, err
	}
	return f, nil
}

// Close ends the following. It may be called more than once.
func (f *Follower) Close() { f.once.Do(func() { f.service.followers.remove(f) }) }

// Events returns what is told of the steps after the one of a number, once there is
// something. The error is io.EOF when all has been told of a task that has ended.
func (f *Follower) Events(ctx context.Context, after int) ([]Event, error) {
	for {
		var r *Record
		err := f.read(ctx, func(s *session) (err error) { r, _, err = s.store.get(ctx, f.key); return })
		if err != nil {
			return nil, err
		}
		if events := r.Events(after); len(events) > 0 {
			return events, nil
		}
		if r.State.Ended() {
			return nil, io.EOF
		}
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// Seek goes to an offset of the output. The error is [ErrOffset] when it has not come so
// far.
func (f *Follower) Seek(ctx context.Context, offset int64) error {
	return f.read(ctx, func(s *session) (err error) { f.out, err = s.store.outputAt(ctx, f.Record, offset); return })
}

// Output returns the next piece of the output, once there is one, after [Follower.Seek]. The
// error is io.EOF at the end of a task's output; [ErrRestarted] when it begins anew, and
// [ErrExpired] when it is kept no more.
func (f *Follower) Output(ctx context.Context) (piece []byte, err error) {
	for {
		ended := f.Record.State.Ended() // then all of the output is there
		err = f.read(ctx, func(s *session) (err error) {
			f.out.store, f.out.stream = s.store, s.store.output
			piece, err = f.out.Next()
			return err
		})
		switch {
		case err != io.EOF:
			return piece, err
		case ended && f.out.size < f.Record.Bytes:
			return nil, ErrExpired
		case ended:
			return nil, io.EOF
		}
		if err := f.look(ctx); err != nil {
			return nil, err
		}
	}
}

// look looks how far the task is, after it has waited for news.
func (f *Follower) look(ctx context.Context) error {
	if err := f.wait(ctx); err != nil {
		return err
	}
	return f.read(ctx, func(s *session) error {
		r, _, err := s.store.get(ctx, f.key)
		if err == nil && r.Lost != f.Record.Lost {
			err = ErrRestarted
		}
		if err == nil {
			f.Record = r
		}
		return err
	})
}

// read reads from the store; and again, when that is being opened anew.
func (f *Follower) read(ctx context.Context, do func(*session) error) error {
	for {
		s, release, err := f.part.use()
		if err == nil {
			err = do(s)
			release()
		}
		if !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrStore) {
			return err
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
}

// wait waits until there may be something new.
func (f *Follower) wait(ctx context.Context) error {
	timer := time.NewTimer(followPause)
	defer timer.Stop()
	select {
	case <-f.news:
	case <-timer.C:
	case <-f.service.followers.over:
		return ErrOver
	case <-f.service.ctx.Done():
		return ErrOver
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// EndFollowing ends all following, now and to come, when Caddy exits: it waits for open
// requests, and these would not end.
func (p *Part) EndFollowing() {
	if s := p.service.Load(); s != nil {
		s.followers.end()
	}
}
