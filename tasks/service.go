// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"crypto/rand"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/shirou/gopsutil/v4/disk"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
)

// services holds the one store of the process. It must outlive configurations: the folder
// can be open once, and tasks run on through a reload.
var services = caddy.NewUsagePool()

// serviceKey is the key of the store in the pool.
const serviceKey = "tasks"

// service is the task store of the process. What is open of it is a session, of which
// another follows when the store fails.
type service struct {
	*lifetime.Lifetime[*Part]
	id        string // of the process, as keys name it
	flights   flights
	place     place
	current   atomic.Pointer[session] // nil while the store cannot be used
	trouble   atomic.Pointer[error]   // why it cannot
	followers *followers
	calls     *calls

	ctx     context.Context // of the service
	cancel  context.CancelCauseFunc
	running sync.WaitGroup

	limits limits // others in tests
}

// limits are those of each task.
type limits struct {
	offline, pause time.Duration // [OfflineLimit] and minPause
	output         int64         // [MaxOutput]
	reserve        uint64        // minFree
	keys           int64         // keyBytes
	records        int64         // recordBytes
	evict          time.Duration // evictPause
	lease          time.Duration // [Lease]
	sweep          time.Duration // sweepPause

	now  func() time.Time // time.Now, for webhooks
	rest time.Duration    // restLimit

	fault func(when, verb, what string) error // see step
	post  time.Duration                       // postTimeout
}

// place is where a store is: a folder, or a cluster.
type place struct {
	dir     string
	cluster *Cluster
}

// String names the place.
func (p place) String() string {
	if p.cluster != nil {
		return p.cluster.String()
	}
	return p.dir
}

// is reports whether two places are the same.
func (p place) is(q place) bool { return reflect.DeepEqual(p, q) }

// defaultLimits are those outside of tests.
var defaultLimits = limits{offline: OfflineLimit, pause: minPause, output: MaxOutput, reserve: minFree, keys: keyBytes, records: recordBytes, evict: evictPause, lease: Lease, sweep: sweepPause, now: time.Now, rest: restLimit, post: postTimeout}

// openService opens the store of a place and begins to work. A cluster that is not there
// is looked for from now on.
func openService(at place, log *zap.Logger, l limits) (*service, error) {
	s := &service{place: at, id: rand.Text(), limits: l, followers: newFollowers(), calls: newCalls()}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.Lifetime = lifetime.New[*Part](s.shut)
	if at.cluster != nil {
		s.look(log)
		return s, nil
	}
	first, err := s.open(log)
	if err != nil {
		s.Close()
		return nil, err
	}
	s.current.Store(first)
	s.running.Go(func() { s.supervise(first) })
	return s, nil
}

// lookWait is how long the start of a gateway waits for its cluster.
const lookWait = 5 * time.Second

// look begins to look for the cluster. A gateway has more to do than tasks, and it can be
// told by its health when these can be taken.
func (s *service) look(log *zap.Logger) {
	ctx, done := context.WithTimeout(s.ctx, lookWait)
	s.running.Go(func() {
		first, err := s.open(log)
		if err != nil {
			s.trouble.Store(&err)
			log.Error("the task store cannot be opened yet", zap.Error(err))
		} else {
			s.current.Store(first)
		}
		done()
		s.supervise(first)
	})
	<-ctx.Done()
}

// shut closes the store. Tasks that run are stopped; they are taken up when it is opened
// again. It runs once, through the Lifetime.
func (s *service) shut() {
	s.cancel(errClosing)
	s.running.Wait()
	s.current.Store(nil)
}

// Destruct implements caddy.Destructor. Requests that use the store finish.
func (s *service) Destruct() error {
	s.Drain(stopWait)
	return nil
}

// supervise closes a session whose store has failed, and opens another as soon as that
// goes: once its disk is full, JetStream does not write again before it is opened anew. It
// begins with the first session; nil when there is none yet.
func (s *service) supervise(now *session) {
	for {
		if now == nil {
			if now = s.reopen(); now == nil {
				return
			}
			s.log().Info("the task store is open again")
			s.current.Store(now)
		}
		select {
		case <-now.store.failed:
		case <-s.ctx.Done():
			now.close()
			return
		}
		s.log().Error("the task store failed and is opened anew", zap.Error(now.store.failure))
		s.trouble.Store(&now.store.failure)
		s.current.Store(nil)
		now.close()
		now = nil
	}
}

// How soon a store that failed is opened again, at first and at most.
const (
	minReopen = 500 * time.Millisecond
	maxReopen = 5 * time.Second
)

// minFree is what must be free on the disk for more tasks to be accepted, in bytes: those
// that there are need some of it.
const minFree = 32 << 20

// roomy returns an [ErrStore] when the disk is almost full.
func (s *service) roomy() error {
	if s.place.cluster != nil { // it knows its limits itself
		return nil
	}
	usage, err := disk.Usage(s.place.dir)
	if err == nil && usage.Free < s.limits.reserve {
		return fmt.Errorf("%w: of the disk of %s, %d MiB are free, and %d are needed", ErrStore, s.place, usage.Free>>20, s.limits.reserve>>20)
	}
	return nil
}

// reopen opens a session whose store can be written; nil when the service ends first.
func (s *service) reopen() *session {
	for wait := minReopen; ; wait = min(2*wait, maxReopen) {
		pause(s.ctx, wait)
		if s.ctx.Err() != nil {
			return nil
		}
		err := s.roomy()
		if err == nil {
			var next *session
			if next, err = s.open(s.log()); err == nil {
				return next
			}
		}
		s.trouble.Store(&err)
		s.log().Warn("the task store cannot be opened yet", zap.Error(err))
	}
}

// log returns the logger of the newest configuration.
func (s *service) log() *zap.Logger {
	if p, ok := s.Newest(); ok {
		return p.options.Logger
	}
	return caddy.Log().Named("agentfm")
}

// runner returns who runs the tasks of a site: the site with the same settings of the
// newest configuration, or else its first; nil when there is none.
func (s *service) runner(site string) Runner {
	p, ok := s.Newest()
	if !ok {
		return nil
	}
	return p.runner(site)
}

// Interface guard
var _ caddy.Destructor = (*service)(nil)
