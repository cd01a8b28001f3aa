// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func init() {
	caddy.RegisterModule(&testRuntime{})
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "agentfm")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		os.Setenv(name, dir)
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(
			// a storage lock that was given back is kept fresh for 5 s more
			goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
			// Caddy's own, for the life of the process
			goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2.trapSignalsPosix.func1"),
			goleak.IgnoreAnyFunction("go.uber.org/zap/zapcore.(*BufferedWriteSyncer).flushLoop"),
		); err != nil {
			println(err.Error())
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// testRuntime does what a script of the current test says.
type testRuntime struct {
	Name string `json:"name,omitempty"`
}

// script is what the runtimes of a test do, by their names.
var script sync.Map

type behaviour struct {
	prepare func(context.Context) error
	agent   func(Agent) // is told to Prepare
	run     func(context.Context, Task) (Exit, error)
	limit   int
	away    func() wire.Cause
	retry   time.Duration // 0 for as others
}

func (*testRuntime) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "agentfm.runtimes.test", New: func() caddy.Module { return new(testRuntime) }}
}

func (r *testRuntime) behaviour() behaviour {
	b, ok := script.Load(r.Name)
	if !ok {
		return behaviour{}
	}
	return b.(behaviour)
}

func (r *testRuntime) Prepare(ctx context.Context, a Agent) (Image, error) {
	if told := r.behaviour().agent; told != nil {
		told(a)
	}
	if p := r.behaviour().prepare; p != nil {
		return Image{}, p(ctx)
	}
	return Image{Ref: r.Name + ":v1"}, nil
}

func (r *testRuntime) Run(ctx context.Context, t Task) (Exit, error) {
	return r.behaviour().run(ctx, t)
}

func (r *testRuntime) PromptLimit() int {
	if n := r.behaviour().limit; n != 0 {
		return n
	}
	return wire.MaxArgumentPrompt
}

func (r *testRuntime) PromptNUL() bool { return false }

func (r *testRuntime) RetryEvery() time.Duration {
	return cmp.Or(r.behaviour().retry, prepareBackoff)
}

func (r *testRuntime) Away() wire.Cause {
	if away := r.behaviour().away; away != nil {
		return away()
	}
	return ""
}

// start starts Caddy with one agent, "a", whose runtime follows b. The settings
// are JSON members that are added to the agent's.
func start(t *testing.T, b behaviour, settings map[string]any) *agent {
	t.Helper()
	name := fmt.Sprintf("%s-%d", t.Name(), time.Now().UnixNano())
	script.Store(name, b)
	config := map[string]any{"model": "m", "max_cpu": -1, "runtime": map[string]any{"runtime": "test", "name": name}}
	for k, v := range settings {
		config[k] = v
	}
	cfg, err := json.Marshal(map[string]any{
		"admin":   map[string]any{"disabled": true, "config": map[string]any{"persist": false}},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "discard"}}}},
		"apps": map[string]any{
			"agentfm": map[string]any{"mesh": map[string]any{
				"listen": []string{"/ip4/127.0.0.1/tcp/0"}, "bootstrap": []string{"off"}, "discovery": []string{"off"}}},
			"agentfm_worker": map[string]any{"agents": map[string]any{"a": config}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(cfg, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		closeAll(context.Background())
	})
	live.Lock()
	defer live.Unlock()
	return live.byKey["a"]
}

// ready waits until the agent takes tasks.
func ready(t *testing.T, a *agent) *agent {
	t.Helper()
	await.Until(t, "the agent is ready", func() bool { return a.active.Load() != nil })
	return a
}

// gateway is a gateway as AgentFM 1.3 has it: it closes its side after the frame.
type gateway struct {
	*mesh.Host
	agent     peer.ID
	telemetry chan wire.Telemetry
	artifacts sync.Map // task id → zip
}

func newGateway(t *testing.T, a *agent) *gateway {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h, err := mesh.NewHost(ctx, mesh.RoleGateway, key, []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, mesh.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Host: h, agent: a.host.ID(), telemetry: make(chan wire.Telemetry, 1000)}
	h.SetStreamHandler(wire.ArtifactProtocol, g.receive)
	ps, err := mesh.NewPubSub(ctx, h, func(peer.ID) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	topic, err := ps.Join(wire.TelemetryTopic)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := topic.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.listen(ctx, sub)
	}()
	t.Cleanup(func() { cancel(); _ = h.Close(); <-done })
	if err := h.Connect(ctx, peer.AddrInfo{ID: a.host.ID(), Addrs: a.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gateway) listen(ctx context.Context, sub *pubsub.Subscription) {
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return
		}
		if t, err := wire.ParseTelemetry(m.GetData()); err == nil {
			select {
			case g.telemetry <- t:
			default:
			}
		}
	}
}

func (g *gateway) receive(s network.Stream) {
	h, err := wire.ReadArtifactHeader(s)
	if err != nil {
		_ = s.Reset()
		return
	}
	b, _ := io.ReadAll(s)
	if int64(len(b)) == h.Size {
		g.artifacts.Store(h.TaskID, b)
	}
	_ = s.Close()
}

// hears waits for telemetry that meets a condition.
func (g *gateway) hears(t *testing.T, what string, condition func(wire.Telemetry) bool) wire.Telemetry {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got := <-g.telemetry:
			if condition(got) {
				return got
			}
		case <-timeout:
			t.Fatalf("heard nothing of it: %s", what)
		}
	}
}

// open sends a frame and closes the gateway's side. A worker may refuse a frame
// before it has all of it; the reading tells.
func (g *gateway) open(t *testing.T, frame string) network.Stream {
	t.Helper()
	s, err := g.NewStream(context.Background(), g.agent, wire.TaskProtocol)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(s, frame)
	_ = s.CloseWrite()
	_ = s.SetReadDeadline(time.Now().Add(30 * time.Second))
	return s
}

// task sends a task.
func (g *gateway) task(t *testing.T, id, prompt string) network.Stream {
	t.Helper()
	frame, err := wire.EncodeTask(id, prompt)
	if err != nil {
		t.Fatal(err)
	}
	return g.open(t, string(frame))
}

// ask sends a task and returns the whole answer as it is on the wire.
func (g *gateway) ask(t *testing.T, id, prompt string) string {
	t.Helper()
	s := g.task(t, id, prompt)
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatalf("task %s: %v after %q", id, err, b)
	}
	return string(b)
}

// leftovers are the folders of tasks that are still there.
func leftovers(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(caddy.AppDataDir(), "agentfm", "tasks", "a", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// TestClockSetBack closes an agent after the clock was set back by an hour: it does not wait
// until the answer that ended last is in the past.
func TestClockSetBack(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, nil))
	g := newGateway(t, a)
	var last time.Time
	await.Until(t, "the end of an answer is noted", func() bool { // if its gateway was faster
		g.ask(t, "t1", "hello")
		a.mu.Lock()
		defer a.mu.Unlock()
		last = a.lastHalf
		return !last.IsZero()
	})
	if last == last.Round(0) {
		t.Error("the time of the end is by the clock that may be set")
	}
	a.mu.Lock()
	a.lastHalf = time.Now().Round(0).Add(time.Hour)
	a.mu.Unlock()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		a.Close()
	}()
	await.Until(t, "the agent is closed", func() bool {
		select {
		case <-closed:
			return true
		default:
			return false
		}
	})
}
