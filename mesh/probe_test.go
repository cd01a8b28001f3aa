// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// prefers chooses one worker, while it can.
type prefers string

func (p prefers) Select(c *router.Choices) int {
	for i := range c.Len() {
		if c.Worker(i).Peer == string(p) && c.Free(i) {
			return i
		}
	}
	return c.Least()
}

// TestFrozenWorker wants a request that a silent worker holds to go to another one, when the
// worker does not answer, and to stay where it is when the worker does.
func TestFrozenWorker(t *testing.T) {
	for name, frozen := range map[string]bool{"frozen": true, "quiet": false} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			serve, running := silence(t)
			w := newWorker(t, a, serve)
			c := call("m")
			c.Selector = prefers(w.PeerID)
			if frozen {
				other := newWorker(t, a, say("ok"+noFiles))
				ctx, stop := context.WithCancel(context.Background())
				var talks sync.WaitGroup
				defer talks.Wait()
				defer stop()
				talks.Go(func() {
					for ctx.Err() == nil { // as one does that lives
						other.publish(t)
						select {
						case <-time.After(time.Second):
						case <-ctx.Done():
						}
					}
				})
				end := newGate()
				t.Cleanup(end.open)
				w.SetStreamHandler(ping.ID, func(s network.Stream) { end.wait(); _ = s.Reset() })
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			done := make(chan error, 1)
			l := lease(t, a)
			go func() {
				run, err := l.Dispatch(ctx, c)
				if err == nil {
					err = run.Close()
				}
				done <- err
			}()
			running.wait()
			if frozen {
				if err := <-done; err != nil {
					t.Error(err)
				}
				return
			}
			d := a.node.Load().directory
			await.Until(t, "the worker was asked", func() bool {
				d.mu.RLock()
				defer d.mu.RUnlock()
				return !d.workers[w.PeerID].probed.IsZero()
			})
			if n := a.node.Load(); n.frozen(ctx, w.ID()) || n.directory.online() != 1 {
				t.Error("it is taken for frozen")
			}
			cancel()
			<-done
		})
	}
}

// TestQuiet wants those asked that are silent, each once in a while, and none taken out that
// has said something meanwhile.
func TestQuiet(t *testing.T) {
	d := newDirectory(zap.NewNop)
	now := time.Unix(1000, 0)
	d.now = func() time.Time { return now }
	ids := []string{testPeer(t).String(), testPeer(t).String()}
	say := func() {
		for _, id := range ids {
			d.update(wire.Telemetry{PeerID: id, Model: "m", MaxTasks: 1})
		}
	}
	say()
	if got := d.quiet(9); len(got) > 0 {
		t.Errorf("at once: %v", got)
	}
	now = now.Add(workerQuiet)
	first := d.quiet(1)
	if second := d.quiet(9); len(first) != 1 || len(second) != 1 || first[0] == second[0] {
		t.Errorf("got %v, then %v", first, second)
	}
	if got := d.quiet(9); len(got) > 0 {
		t.Errorf("asked twice: %v", got)
	}
	begun := now
	d.mute(ids[0], begun)
	if d.online() != 2 {
		t.Error("nobody was heard, and one is offline")
	}
	now = now.Add(time.Second)
	d.update(wire.Telemetry{PeerID: ids[1], Model: "m", MaxTasks: 1})
	d.mute(ids[0], begun)
	if d.online() != 1 {
		t.Error("a silent worker is online")
	}
	say()
	d.mute(ids[0], begun)
	d.mute("nobody", begun)
	if d.online() != 2 {
		t.Error("one that has said something is offline")
	}
}
