// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// Workers of the tests.
const (
	peerA = "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"
	peerB = "12D3KooWGRUVh7Vu2jzqTP5rzXnEjgEGTrZ9bnhrJLTBDJcPJpEo"
)

// fakeMesh is a mesh whose tasks do what the test says.
type fakeMesh struct {
	dir      string // of artifacts
	workers  []mesh.WorkerInfo
	listed   []*mesh.WorkerInfo // where there are too many to make a list of them each time
	off      bool               // not running
	full     error              // what there is no room for
	dispatch func(ctx context.Context, c mesh.Call) (run, error)
	routes   router.Routes // of its workers
	noText   bool          // no worker takes a text
	about    mesh.About
	events   *mesh.Events
	relay    func(ctx context.Context, addr string) (string, error)

	mu     sync.Mutex
	kept   map[[2]string]string // who has the responses, by id and client
	calls  []mesh.Call
	leases int // taken and not given back
}

func (f *fakeMesh) Lease() (lease, error) {
	if f.off {
		return nil, mesh.ErrNotRunning
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases++
	return &fakeLease{f: f}, nil
}

// seen returns the calls so far.
func (f *fakeMesh) seen() []mesh.Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

type fakeLease struct {
	f    *fakeMesh
	once sync.Once
}

func (l *fakeLease) Release() {
	l.once.Do(func() {
		l.f.mu.Lock()
		defer l.f.mu.Unlock()
		l.f.leases--
	})
}

func (l *fakeLease) Workers(includeOffline bool) []*mesh.WorkerInfo {
	out := l.f.listed
	for i := range l.f.workers {
		w := l.f.workers[i]
		if w.Online || includeOffline {
			out = append(out, &w)
		}
	}
	return out
}

func (l *fakeLease) Worker(peer string) *mesh.WorkerInfo {
	for _, w := range l.Workers(true) {
		if w.PeerID == peer {
			return w
		}
	}
	return nil
}

func (l *fakeLease) Online() int { return len(l.Workers(false)) }

func (l *fakeLease) Dispatch(ctx context.Context, c mesh.Call) (run, error) {
	l.f.mu.Lock()
	l.f.calls = append(l.f.calls, c)
	l.f.mu.Unlock()
	if l.f.dispatch == nil {
		return nil, errors.New("the test expects no task")
	}
	return l.f.dispatch(ctx, c)
}

func (l *fakeLease) Serves(req *router.Request) (router.Routes, bool) { return l.f.routes, !l.f.noText }

func (l *fakeLease) NoteResponse(id, peer, client string) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.f.kept == nil {
		l.f.kept = make(map[[2]string]string)
	}
	l.f.kept[[2]string{id, client}] = peer
}

func (l *fakeLease) ResponseOf(id, client string) (string, bool) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	peer, ok := l.f.kept[[2]string{id, client}]
	return peer, ok
}

func (l *fakeLease) About() mesh.About { return l.f.about }

func (l *fakeLease) Events(owner, lastID string) (*mesh.Subscription, error) {
	return l.f.events.Subscribe(owner, lastID)
}

func (l *fakeLease) TestRelay(ctx context.Context, addr string) (string, error) {
	return l.f.relay(ctx, addr)
}

func (l *fakeLease) KeepArtifact(from, to string) error {
	return os.Rename(filepath.Join(l.f.dir, from+".zip"), filepath.Join(l.f.dir, to+".zip"))
}

func (l *fakeLease) Roomy() error { return l.f.full }

func (l *fakeLease) DropArtifact(id string) error {
	_ = os.Remove(filepath.Join(l.f.dir, id+".zip"))
	return nil
}

func (l *fakeLease) OpenArtifact(id string) (*os.File, error) {
	return os.Open(filepath.Join(l.f.dir, id+".zip"))
}

// script is what a task does: it gives out its output, then its end.
type script struct {
	output []string      // one element a read
	end    error         // nil stands for io.EOF
	hang   bool          // no end before the client is gone
	pause  time.Duration // before each read
	files  bool
	usage  *wire.Usage
	// response is the head of an answer that is passed on.
	response *mesh.Response
	closed   chan struct{} // closed by Close, when not nil
	enough   *atomic.Bool  // set by Enough, when not nil
}

// fakeRun is a task by a script.
type fakeRun struct {
	script
	ctx    context.Context
	served mesh.Served
	once   sync.Once
}

func (r *fakeRun) Read(p []byte) (int, error) {
	time.Sleep(r.pause)
	if len(r.output) == 0 {
		if r.hang {
			<-r.ctx.Done()
			return 0, r.ctx.Err()
		}
		if r.end != nil {
			return 0, r.end
		}
		return 0, io.EOF
	}
	n := copy(p, r.output[0])
	if r.output[0] = r.output[0][n:]; r.output[0] == "" {
		r.output = r.output[1:]
	}
	return n, nil
}

func (r *fakeRun) Close() error {
	r.once.Do(func() {
		if r.closed != nil {
			close(r.closed)
		}
	})
	return nil
}

func (r *fakeRun) Enough() {
	if r.enough != nil {
		r.enough.Store(true)
	}
}

func (r *fakeRun) Served() mesh.Served { return r.served }

func (r *fakeRun) HasFiles() bool { return r.files }

func (r *fakeRun) Artifact() *wire.Artifact {
	if !r.files {
		return nil
	}
	return &wire.Artifact{Size: 3, SHA256: zipSum, Files: 2}
}

func (r *fakeRun) Usage() *wire.Usage { return r.usage }

// zipSum is the SHA-256 of "zip".
const zipSum = "4a70fe9aa6436e02c2dea340fbd1e352e4ef2d8ce6ca52ad25d4b95471fc8bf2"

func (r *fakeRun) Response() *mesh.Response { return r.response }

// answers returns a dispatch whose tasks follow the script.
func answers(sc script) func(context.Context, mesh.Call) (run, error) {
	return func(ctx context.Context, c mesh.Call) (run, error) {
		id := c.TaskID
		if id == "" {
			id = "task_0123456789abcdef01234567"
		}
		r := &fakeRun{script: sc, ctx: ctx}
		r.output = slices.Clone(sc.output)
		r.served = mesh.Served{Peer: peerA, Agent: "HR Ässistant\n", Model: "llama3.2", TaskID: id, Attempts: 2,
			Tier: router.TierAgent, Queued: 7 * time.Millisecond}
		return r, nil
	}
}

// fails returns a dispatch that fails.
func fails(err error) func(context.Context, mesh.Call) (run, error) {
	return func(context.Context, mesh.Call) (run, error) { return nil, err }
}

// worker returns an online worker.
func worker(id, agent, model string) mesh.WorkerInfo {
	decoded, _ := peer.Decode(id)
	return mesh.WorkerInfo{
		ID: decoded,
		Telemetry: wire.Telemetry{
			PeerID: id, AgentName: agent, Model: model, Status: wire.StatusAvailable,
			CPUCores: 8, CPUPercent: 12.5, RAMFreeGB: 3.25, CurrentTasks: 1, MaxTasks: 4,
			Author: "ann", Description: "d",
		},
		Online:    true,
		FirstSeen: time.Unix(1700000000, 0), LastSeen: time.Unix(1700000100, 0),
	}
}

// zeros is an endless body of white space.
type zeros struct{ read atomic.Int64 }

func (z *zeros) Read(p []byte) (int, error) {
	z.read.Add(int64(len(p)))
	return copy(p, bytes.Repeat([]byte(" "), len(p))), nil
}
