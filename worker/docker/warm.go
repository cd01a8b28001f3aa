// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

const (
	// maxWarm is how many containers wait for tasks at once, of all agents of the process.
	maxWarm = 256
	// warmRate is how many containers are started ahead in a second, of all agents: what
	// an engine keeps up beside the tasks that it has.
	warmRate = 5
	// warmDelay is how long the next start waits when a task has taken a container: it
	// should not be in the way of the beginning of that task.
	warmDelay = 200 * time.Millisecond
	// warmAge is how long a container waits for a task before another takes its place.
	warmAge = time.Hour
	// warmRemovals is how many are removed at once when all are.
	warmRemovals = 8
)

// errWarmPrompt refuses what cannot be started before its prompt is there.
var errWarmPrompt = fmt.Errorf("warm: needs prompt %s or %s, since a container that is started ahead gets its prompt when it runs", promptStdin, promptInFile)

// What all agents share of the engine.
var (
	warmPace = rate.NewLimiter(warmRate, 1)
	warmRoom = make(chan struct{}, maxWarm)
)

// warmPools are the containers that are started ahead, by what they are. They outlive
// configurations: a reload that changes nothing of them keeps them.
var warmPools = caddy.NewUsagePool()

// warmPool keeps a number of containers that wait for tasks.
type warmPool struct {
	engine   engine
	spec     spec
	age      time.Duration
	room     chan struct{}
	removing chan struct{}
	patience time.Duration // of removals, when all are to go
	late     chan struct{} // closed when it is over
	ctx      context.Context
	cancel   context.CancelFunc
	working  sync.WaitGroup

	mu      sync.Mutex
	idle    []*warmed // the oldest first
	loggers []*zap.Logger
	pause   time.Duration // before the next start, when failed; it grows
	failed  bool          // since the last pause, one could not be started or has ended
}

// joinWarm gives the agent its containers that are started ahead, until agent.Context
// has ended, or the runtime is prepared again.
func (r *Runtime) joinWarm(agent worker.Agent, p *prepared) error {
	if agent.TasksDir == "" {
		return errors.New("warm: the agent has no folder for its tasks")
	}
	key := settingsKey(p, r.Warm, p.spec.config(worker.Task{Model: agent.Model}))
	v, _, err := warmPools.LoadOrNew(key, func() (caddy.Destructor, error) { return openWarm(p, r.Warm, warmAge), nil })
	if err != nil {
		return err
	}
	p.warm = v.(*warmPool)
	p.warm.join(p.logger)
	var over context.Context
	over, p.leaveWarm = context.WithCancel(agent.Context)
	agent.Go(func() {
		<-over.Done()
		p.warm.leave(p.logger)
		_, _ = warmPools.Delete(key) // returns when they are gone, if nobody else has them
		leaveHome(agent.PeerID)
	})
	return nil
}

// openWarm begins to start containers, each of which waits for so long at most.
func openWarm(p *prepared, size int, age time.Duration) *warmPool {
	q := &warmPool{
		engine: p.engine, spec: p.spec, age: age, loggers: []*zap.Logger{p.logger},
		room: make(chan struct{}, size), removing: make(chan struct{}, warmRemovals),
		patience: removeLimit, late: make(chan struct{}),
	}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	q.working.Go(q.fill)
	return q
}

// Destruct implements caddy.Destructor: it removes the containers that wait. One that
// a task has is no longer of the pool. An engine that hangs does not get to keep Caddy
// from its end, once for each of them: what is left is for the next sweep.
func (q *warmPool) Destruct() error {
	q.cancel()
	late := time.AfterFunc(q.patience, func() { close(q.late) })
	defer late.Stop()
	q.working.Wait()
	return nil
}

// join adds a configuration.
func (q *warmPool) join(l *zap.Logger) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.loggers = append(q.loggers, l)
}

// leave takes a configuration out, but for the logger of the last one.
func (q *warmPool) leave(l *zap.Logger) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.loggers, l); i >= 0 && len(q.loggers) > 1 {
		q.loggers = slices.Delete(q.loggers, i, i+1)
	}
}

// log returns the logger of the newest configuration: those of older ones may be closed.
func (q *warmPool) log() *zap.Logger {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.loggers[len(q.loggers)-1]
}

// prepared returns what the containers are made with.
func (q *warmPool) prepared() *prepared {
	return &prepared{engine: q.engine, spec: q.spec, logger: q.log(), newest: q.log}
}

// take returns the container that has waited the longest, which is the task's then; nil
// when there is none.
func (q *warmPool) take() *warmed {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, c := range q.idle {
		if c.ended() || q.ctx.Err() != nil {
			continue // whoever waits for that has it removed
		}
		q.idle = slices.Delete(q.idle, i, i+1)
		close(c.taken)
		q.pause = 0
		return c
	}
	return nil
}

// withdraw takes a container out that no task is to get any more; false when one has.
func (q *warmPool) withdraw(c *warmed) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.idle, c)
	if i >= 0 {
		q.idle = slices.Delete(q.idle, i, i+1)
	}
	return i >= 0
}

// fill starts containers where there are too few, one after the other.
func (q *warmPool) fill() {
	for acquire(q.ctx, q.room) {
		if !acquire(q.ctx, warmRoom) {
			return
		}
		c, err := q.start()
		if err == nil {
			q.mu.Lock()
			q.idle = append(q.idle, c)
			q.mu.Unlock()
			q.working.Go(func() { q.keep(c) })
			continue
		}
		q.release()
		if q.ctx.Err() == nil {
			q.prepared().logger.Warn("no container could be started ahead", zap.Error(err))
			q.fail()
		}
	}
}

// start starts a container in its time.
func (q *warmPool) start() (*warmed, error) {
	if pause := q.nextPause(); pause > 0 {
		sleep(q.ctx, pause)
	}
	if err := warmPace.Wait(q.ctx); err != nil {
		return nil, err
	}
	return q.prepared().startWarm(q.ctx)
}

// keep has a container that waits removed when it ends by itself, or has waited too
// long, or the pool ends.
func (q *warmPool) keep(c *warmed) {
	defer q.release()
	q.working.Go(func() { c.guard(q.prepared()) })
	began, old := time.Now(), time.NewTimer(q.age)
	defer old.Stop()
	select {
	case <-c.taken:
		sleep(q.ctx, warmDelay)
		return
	case <-c.over:
	case <-old.C:
	case <-q.ctx.Done():
	}
	if !q.withdraw(c) {
		return // a task was faster
	}
	select {
	case q.removing <- struct{}{}:
		defer func() { <-q.removing }()
	case <-q.late:
	}
	p := q.prepared()
	select {
	case <-q.late:
		p.logger.Error("a container that was started ahead is left: the engine takes too long to remove others", zap.String("container", c.id))
		c.id = ""
	default:
	}
	if c.ended() && q.ctx.Err() == nil {
		p.logger.Warn("a container that was started ahead has ended before a task came", zap.String("container", c.id), zap.String("how", c.howEnded(p)))
		if time.Since(began) >= serviceSteady {
			q.mu.Lock()
			q.pause = 0
			q.mu.Unlock()
		}
		q.fail()
	}
	c.discard(context.Background(), p)
}

// fail has the next start wait.
func (q *warmPool) fail() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failed = true
}

// nextPause returns how long the next start has to wait.
func (q *warmPool) nextPause() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.failed {
		return 0
	}
	q.failed = false
	q.pause = min(max(2*q.pause, minServicePause), maxServicePause)
	return q.pause
}

// release gives back the room of a container that does not wait any more.
func (q *warmPool) release() {
	<-warmRoom
	<-q.room
}

// sleep returns after a time, or when ctx has ended.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// acquire takes a place; false when ctx ended before there was one.
func acquire(ctx context.Context, room chan struct{}) bool {
	select {
	case room <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}
