// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// encodeTask returns the frame of a task.
func encodeTask(t *testing.T, id, prompt string) string {
	t.Helper()
	b, err := wire.EncodeTask(id, prompt)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// attacked is a gateway with one worker in a process of its own, whose model is a
// server of the test.
type attacked struct {
	*mesh
	worker *process
	model  *modelServer
}

func newAttacked(t *testing.T, maxTasks int) *attacked {
	t.Helper()
	// At night, answers take longer than the default of a task's time.
	site := replaceOnce(t, withKey, "\n\t}", "\n\t\ttask_timeout 1h\n\t}")
	a := &attacked{mesh: newMesh(t, site), model: newModelServer(t)}
	a.worker = a.mesh.worker(openAIAgent("mock", "mock", a.model.url, maxTasks))
	a.gateway.awaitModel("mock")
	return a
}

// honest wants n chats to be answered well, and returns how long the slowest took.
func (a *attacked) honest(t *testing.T, n int) (slowest time.Duration) {
	t.Helper()
	for i := range n {
		begun := time.Now()
		text := fmt.Sprintf("echo honest %d", i)
		if r, err := a.gateway.chat(t, "mock", text, i%2 == 0); err != nil || r.status != 200 || !strings.Contains(r.body, strings.TrimPrefix(text, "echo ")) {
			t.Errorf("honest request %d: %d %.300q, %v", i, r.status, r.body, err)
		}
		slowest = max(slowest, time.Since(begun))
	}
	return slowest
}

// wantSameMesh wants the gateway and the worker never to have lost each other.
func (a *attacked) wantSameMesh(t *testing.T) {
	t.Helper()
	if n := a.gateway.count("worker is offline"); n > 0 {
		t.Errorf("the worker was offline %d times", n)
	}
}

// each runs something for each of n, at most so many at once.
func each(n, atOnce int, do func(i int)) {
	var group sync.WaitGroup
	var next atomic.Int64
	for range min(n, atOnce) {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				do(int(i))
			}
		})
	}
	group.Wait()
}

// A10: streams that withhold what they have begun take no slot from honest gateways.
func TestA10WithheldBytes(t *testing.T) {
	t.Parallel()
	a := newAttacked(t, 4)
	address := a.worker.nodeAddress()
	alone := a.honest(t, 20)
	before := a.worker.liveHeap(t)
	streams := scaled(100, 1000)
	const peers = 10
	strangers := make([]*stranger, peers)
	ids := make([]peer.ID, peers)
	for i := range strangers {
		strangers[i] = newStranger(t)
		ids[i] = strangers[i].mustDial(address)
	}
	var held atomic.Int64
	each(peers*streams, 50, func(i int) {
		p, text := protocol.ID(wire.TaskProtocol), "{"
		switch i / peers % 4 {
		case 1:
			p, text = wire.HTTPProtocol, "P"
		case 2:
			p, text = wire.HTTPProtocol, head(http.MethodPost, wire.PathTasks, 1<<20)+"{"
		case 3:
			p, text = wire.HTTPProtocol, head(http.MethodPost, "/v1/chat/completions", 32<<20)+"{"
		}
		if _, err := strangers[i%peers].open(ids[i%peers], p, text); err == nil {
			held.Add(1)
		}
	})
	slowest := a.honest(t, 50)
	after := a.worker.liveHeap(t)
	_, inside := a.model.now()
	t.Logf("%d of %d streams are held; the slowest of 50 honest requests took %v, of 20 before %v; the heap grew by %d KiB a stream",
		held.Load(), peers*streams, slowest, alone, max(after-before, 0)>>10/max(held.Load(), 1))
	if inside != 0 {
		t.Errorf("%d chats are at the model", inside)
	}
	if grown := after - before; grown > max(held.Load(), 1)*(160<<10)+16<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	a.wantSameMesh(t)
}

// A11: who is not on a worker's list, or in its swarm, starts nothing, with whatever
// frame.
func TestA11Unauthorised(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	m := newMesh(t, withKey)
	gateway := m.address[strings.LastIndex(m.address, "/")+1:]
	block := replaceOnce(t, agent("a", "A", "a", command(writeScript(t, noteRuns), "STATE", state)), "max_tasks 4", "max_tasks 4\n\t\t\tallow_peers "+gateway)
	w := m.worker(block)
	m.gateway.awaitWorkers(1)
	address := w.nodeAddress()
	if a, err := m.gateway.chat(t, "a", "x", false); err != nil || a.status != 200 {
		t.Fatalf("%d %.300q, %v", a.status, a.body, err)
	}
	evil := newStranger(t)
	id := evil.mustDial(address)
	frame := encodeTask(t, "stolen", "x") // as the gateway would send it
	for range 3 {
		s, err := evil.open(id, wire.TaskProtocol, frame)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(s); !strings.Contains(string(b), "not on the worker's list") {
			t.Errorf("protocol 1: %q", b)
		}
		for _, r := range [][3]string{{http.MethodPost, wire.PathTasks, frame}, {http.MethodPost, "/v1/chat/completions", `{"model":"a","messages":[]}`},
			{http.MethodGet, wire.PathProfile, ""}, {http.MethodGet, wire.ArtifactPath("stolen"), ""}, {http.MethodDelete, wire.PathTasks + "/stolen", ""}} {
			if a, err := evil.request(id, r[0], r[1], r[2]); err != nil || a.status != http.StatusForbidden || a.header.Get(wire.HeaderRefusal) != string(wire.RefusalForbidden) {
				t.Errorf("%s %s: %d %.200q, %v", r[0], r[1], a.status, a.body, err)
			}
		}
	}
	// A frame that was meant for one worker, from a gateway that another one lists.
	other := m.worker(replaceOnce(t, agent("b", "B", "b", command(writeScript(t, noteRuns), "STATE", state)), "max_tasks 4", "max_tasks 4\n\t\t\tallow_peers "+evil.ID().String()))
	m.gateway.awaitWorkers(2)
	if a, err := evil.request(evil.mustDial(other.nodeAddress()), http.MethodPost, wire.PathTasks, frame); err != nil || a.status != 200 {
		t.Errorf("who is on the list: %d %.200q, %v", a.status, a.body, err)
	}
	if a, err := m.gateway.chat(t, "b", "x", false); err != nil || a.status < 500 {
		t.Errorf("the gateway, which is not: %d %.300q, %v", a.status, a.body, err)
	}
	if n := runCount(t, state); n != 2 {
		t.Errorf("%d tasks ran, want 2", n)
	}
	// The swarm's key is what lets in, before any protocol: see TestTwoProcesses.
}

// A12: floods of connections and streams stay within the limits, and honest peers
// stay connected.
func TestA12Flood(t *testing.T) {
	t.Parallel()
	a := newAttacked(t, 64)
	nodes := []string{a.worker.nodeAddress(), a.address}
	before := a.worker.liveHeap(t) + a.gateway.liveHeap(t)
	conns, streams := scaled(40, 400), scaled(2_500, 25_000)
	var connected, opened atomic.Int64
	strangers := make([]*stranger, conns)
	each(conns, 8, func(i int) {
		s := newStranger(t)
		for _, node := range nodes {
			if _, err := s.dial(node); err == nil {
				connected.Add(1)
				strangers[i] = s
			}
		}
	})
	protocols := []protocol.ID{wire.TaskProtocol, wire.HTTPProtocol, wire.ArtifactProtocol, "/ipfs/ping/1.0.0", "/meshsub/1.1.0", "/ipfs/id/1.0.0", "/nobody/1"}
	each(2*streams, 64, func(i int) {
		s := strangers[i%conns]
		if s == nil {
			return
		}
		target, _ := peer.AddrInfoFromString(nodes[i%2])
		if _, err := s.open(target.ID, protocols[i%len(protocols)], "x"); err == nil {
			opened.Add(1)
		}
	})
	slowest := a.honest(t, 20)
	after := a.worker.liveHeap(t) + a.gateway.liveHeap(t)
	_, peak1 := a.worker.resident()
	_, peak2 := a.gateway.resident()
	t.Logf("%d connections, %d of %d streams; the slowest of 20 honest requests took %v; the heaps grew by %d MiB; resident %d and %d MiB at most",
		connected.Load(), opened.Load(), 2*streams, slowest, (after-before)>>20, peak1>>20, peak2>>20)
	if grown := after - before; grown > 300<<20 {
		t.Errorf("the heaps have grown by %d MiB", grown>>20)
	}
	a.wantSameMesh(t)
}

// A28: a gateway that floods a worker with heads, tasks, bodies and nonsense gets
// codes, and leaves its slots and its memory to others.
func TestA28MaliciousGateway(t *testing.T) {
	t.Parallel()
	const slots = 4
	a := newAttacked(t, slots)
	address := a.worker.nodeAddress()
	before, goroutines := a.worker.liveHeap(t), a.worker.goroutines(t)
	evil := newStranger(t)
	id := evil.mustDial(address)
	open := func(text string) network.Stream {
		s, err := evil.open(id, wire.HTTPProtocol, "")
		if err != nil {
			t.Error(err)
			return nil
		}
		go func() { _, _ = io.WriteString(s, text) }() // it may not be read
		return s
	}
	post := "POST " + wire.PathTasks + " HTTP/1.1\r\nHost: x\r\n"
	chats := "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
	for name, c := range map[string]struct {
		text     string
		statuses string
	}{
		"huge head":        {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "431"},
		"huge target":      {"GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		"huge length":      {post + "Content-Length: 109951162777600\r\n\r\n{", "400"},
		"chunked nonsense": {post + "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n", "400"},
		"two lengths":      {post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ", "400"},
		"huge chat":        {chats + "Content-Length: 40000000\r\n\r\n{", "400"},
		"gzip":             {chats + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "400"},
		"CONNECT":          {"CONNECT 127.0.0.1:2019 HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"absolute":         {"GET http://127.0.0.1:2019/config/ HTTP/1.1\r\nHost: 127.0.0.1:2019\r\n\r\n", "404"},
		"dots":             {"GET /v1/../../config/ HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"below with dots":  {"GET /v1/chat/completions/../../../admin HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"coded dots":       {"GET /v1/chat/completions/%2e%2e/%2e%2e/admin HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"backslash":        {"GET /v1/chat/completions/..\\..\\admin HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"slash":            {"POST /v1/chat/completions/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", "404"},
		"upgrade":          {"GET /v1/chat/completions/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "400"},
		"another's files":  {"GET " + wire.ArtifactPath("victim") + " HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"another's task":   {"DELETE " + wire.PathTasks + "/victim HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"id with a path":   {"GET " + wire.PathTasks + "/..%2f..%2fetc%2fpasswd/artifacts HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		"HTTP/1.0":         {"GET /nowhere HTTP/1.0\r\n\r\n", "404"},
		"no host":          {"GET / HTTP/1.1\r\n\r\n", "400"},
	} {
		s := open(c.text)
		if s == nil {
			continue
		}
		resp, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil || fmt.Sprint(resp.StatusCode) != c.statuses {
			t.Errorf("%s: %v, %v; want %s", name, resp, err, c.statuses)
		}
		_ = s.Reset()
	}
	// All slots at once, and many more: each task is run or refused with a code.
	tasks := scaled(2_000, 1_000_000)
	var served, refused, other atomic.Int64
	each(tasks, 64, func(i int) {
		r, err := evil.request(id, http.MethodPost, wire.PathTasks, encodeTask(t, fmt.Sprintf("t%d", i%32), "echo x"))
		switch {
		case err == nil && r.status == 200:
			served.Add(1)
		case err == nil && (r.status == 503 || r.status == 400) && r.header.Get(wire.HeaderRefusal) != "":
			refused.Add(1)
		default:
			if other.Add(1) == 1 {
				t.Errorf("%d %.200q, %v", r.status, r.body, err)
			}
		}
	})
	if n, _ := a.model.now(); int64(n) != served.Load() {
		t.Errorf("the model had %d chats, %d were answered", n, served.Load())
	}
	if _, inside := a.model.now(); inside > slots {
		t.Errorf("%d chats at once", inside)
	}
	// Requests in one go, and their answers never read.
	for range scaled(20, 200) {
		open(strings.Repeat(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", post, len(encodeTask(t, "p", "echo x")), encodeTask(t, "p", "echo x")), 1000))
	}
	_ = evil.Network().ClosePeer(id)
	a.worker.await("the goroutines of requests have ended", func() bool { return a.worker.goroutines(t) < goroutines+100 })
	a.gateway.awaitWorkers(1) // it has said that it is free again
	slowest := a.honest(t, 20)
	after := a.worker.liveHeap(t)
	t.Logf("of %d tasks %d were served, %d refused; then the slowest of 20 honest requests took %v; the heap grew by %d MiB", tasks, served.Load(), refused.Load(), slowest, (after-before)>>20)
	if after > before+32<<20 {
		t.Errorf("the heap has grown by %d MiB", (after-before)>>20)
	}
	a.wantSameMesh(t)
}

// F24: nodes of both protocols, and of a later one, work together.
func TestF24Skew(t *testing.T) {
	t.Parallel()
	a := newAttacked(t, 4)
	a.honest(t, 2)
	// A worker of protocol 1 alone; one of a protocol of the future; and one whose
	// telemetry and profile have fields that nobody knows.
	old := newStranger(t)
	old.Model, old.Duplex = "old", false
	old.SetStreamHandler(wire.TaskProtocol, func(s network.Stream) {
		req, err := wire.ReadTask(s)
		if err != nil {
			_ = s.Reset()
			return
		}
		_, _ = io.WriteString(s, "old: "+strings.ToUpper(req.Data)+"\n\n"+wire.MarkerNoFiles+"\n")
		_ = s.Close()
	})
	old.publish(a.address, map[string]any{"unheard_of": map[string]any{"x": []int{1}}})
	serve := func(w http.ResponseWriter, r *http.Request) {
		taskEvents(w, r, func(e *wire.EventWriter) {
			_, _ = io.WriteString(w, ": a comment\n\nevent: progress\ndata: {\"percent\":50}\n\nid: 7\nretry: 1\n\n")
			_, _ = io.WriteString(e, "new answer")
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		})
	}
	future := newStranger(t)
	future.Model = "future"
	future.listen(serve)
	future.publish(a.address, map[string]any{"mesh_protocol": 7, "unheard_of": true})
	rich := newStranger(t)
	rich.serveChats(a.address, "rich", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"rich":true}`)
	})
	for model, want := range map[string]string{"old": "old: ", "future": "new answer", "rich": `{"rich":true}`, "mock": "hello"} {
		a.gateway.awaitModel(model)
		if r, err := a.gateway.chat(t, model, "echo hello", false); err != nil || r.status != 200 || !strings.Contains(r.body, want) {
			t.Errorf("%s: %d %.300q, %v", model, r.status, r.body, err)
		}
	}
	// A gateway of protocol 1 alone with our worker, which serves chats.
	gateway := newStranger(t)
	s, err := gateway.open(gateway.mustDial(a.worker.nodeAddress()), wire.TaskProtocol, encodeTask(t, "t1", "echo by text"))
	if err != nil {
		t.Fatal(err)
	}
	_ = s.CloseWrite()
	if b, err := io.ReadAll(s); err != nil || string(b) != "by text\n"+wire.MarkerNoFiles+"\n" {
		t.Errorf("%q, %v", b, err)
	}
	s, err = gateway.open(gateway.mustDial(a.worker.nodeAddress()), wire.TaskProtocol, `{"version":"9.9.9","task":"agent_task","data":"x","task_id":"t2"}`)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(s); !strings.Contains(string(b), "Version mismatch") {
		t.Errorf("a later version: %q", b)
	}
}
