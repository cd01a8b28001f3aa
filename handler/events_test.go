// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// eventStream is an open stream of events.
type eventStream struct {
	t      *testing.T
	resp   *http.Response
	lines  *bufio.Reader
	cancel context.CancelFunc
}

// openEvents opens a stream of what happens on the mesh.
func (g *gate) openEvents(t *testing.T, query string, headers ...string) *eventStream {
	t.Helper()
	return g.openStream(t, "/v1/events"+query, headers...)
}

// openStream opens a stream of events and reads its beginning.
func (g *gate) openStream(t *testing.T, path string, headers ...string) *eventStream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); resp.Body.Close() })
	s := &eventStream{t, resp, bufio.NewReader(resp.Body), cancel}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	if first := s.next(); first != ":ready" {
		t.Fatalf("began with %q", first)
	}
	return s
}

// get makes a request whose answer is read bit by bit.
func (g *gate) get(t *testing.T, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// next returns the text up to the next blank line; "" at the end.
func (s *eventStream) next() string {
	var block []string
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return ""
		}
		if line == "\n" {
			return strings.Join(block, "\n")
		}
		block = append(block, strings.TrimSuffix(line, "\n"))
	}
}

// field returns a field of an event.
func field(block, name string) string {
	for line := range strings.Lines(block) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSuffix(v, "\n")
		}
	}
	return ""
}

func online(peer, agent string) mesh.Event {
	return mesh.Event{Name: mesh.WorkerOnline, Peer: peer, Agent: agent, Model: "m"}
}

func TestEvents(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			f := &fakeMesh{events: mesh.NewEvents()}
			g := serve(t, f, func(_ *gate, s *serverSettings) { s.http2 = http2 })
			f.events.Publish(online("before", ""))
			s := g.openEvents(t, "")
			await.Until(t, "the lease is given back", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.leases == 0 })
			f.events.Publish(online(peerA, "a \"name\"\nid: 7\n\n\xff"))
			first := s.next()
			id := field(first, "id")
			want := "event: worker_online\nid: " + id + "\n" + `data: {"peer_id":"` + peerA + `","agent_name":"a \"name\"\nid: 7\n\n` + "\ufffd" + `","honesty_score":0}`
			if first != want || id == "" {
				t.Errorf("got %q, want %q", first, want)
			}
			f.events.Publish(mesh.Event{Name: mesh.WorkerOffline, Peer: peerA, Agent: "a"})
			second := s.next()
			if want := "event: worker_offline\nid: " + field(second, "id") + "\n" + `data: {"peer_id":"` + peerA + `"}`; second != want {
				t.Errorf("got %q, want %q", second, want)
			}

			if got := g.openEvents(t, "", "Last-Event-ID", id).next(); got != second {
				t.Errorf("after the first: %q", got)
			}
			if got := g.openEvents(t, "?last_event_id="+id).next(); got != second {
				t.Errorf("after the first, by the parameter: %q", got)
			}
			if got := g.openEvents(t, "?last_event_id="+field(second, "id"), "Last-Event-ID", "of-another-process").next(); !strings.Contains(got, "before") {
				t.Errorf("the header comes first, and what is unknown gets all: %q", got)
			}

			f.events.Cut() // the node closes
			if got := s.next(); got != "" {
				t.Errorf("after the end: %q", got)
			}
			f.events.Close()
			g.do(t, "GET", "/v1/events", "").failed(t, 503, "mesh_overloaded")
		})
	}
}

// TestEventsHeartbeatHidden wants a stream to be kept alive beside events that its
// client may not see.
func TestEventsHeartbeatHidden(t *testing.T) {
	old := eventsHeartbeat
	eventsHeartbeat = 200 * time.Millisecond
	t.Cleanup(func() { eventsHeartbeat = old })
	f := &fakeMesh{events: mesh.NewEvents()}
	file := withKeyFile(t, "ann the-key-of-ann-123 models=other\n")
	s := serve(t, f, file).openEvents(t, "", "Authorization", "Bearer the-key-of-ann-123")
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				f.events.Publish(online(peerA, "a"))
			}
		}
	})
	if got := s.next(); got != ":heartbeat" {
		t.Errorf("got %q", got)
	}
	close(stop)
	publishing.Wait()
}

// TestEventsLife wants a stream to end, for keys do.
func TestEventsLife(t *testing.T) {
	old := eventsLife
	eventsLife = 10 * time.Millisecond
	t.Cleanup(func() { eventsLife = old })
	s := serve(t, &fakeMesh{events: mesh.NewEvents()}).openEvents(t, "")
	if got := s.next(); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestEventsHeartbeat(t *testing.T) {
	old := eventsHeartbeat
	eventsHeartbeat = 10 * time.Millisecond
	t.Cleanup(func() { eventsHeartbeat = old })
	f := &fakeMesh{events: mesh.NewEvents()}
	s := serve(t, f).openEvents(t, "")
	for range 3 {
		if got := s.next(); got != ":heartbeat" {
			t.Errorf("got %q", got)
		}
	}
}

func TestEventsMethods(t *testing.T) {
	f := &fakeMesh{events: mesh.NewEvents()}
	g := serve(t, f)
	if a := g.do(t, "HEAD", "/v1/events", ""); a.status != 200 || a.header.Get("Content-Type") != "text/event-stream" || a.body != "" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
	g.do(t, "POST", "/v1/events", "{}").failed(t, 405, "method_not_allowed")
	f.off = true
	g.do(t, "GET", "/v1/events", "").failed(t, 503, "mesh_overloaded")
}

// TestEventsPerClient wants a client who opens too many streams to be told, and
// no other.
func TestEventsPerClient(t *testing.T) {
	const mine, yours = "a-key-of-sixteen-characters", "another-key-of-sixteen-characters"
	f := &fakeMesh{events: mesh.NewEvents()}
	g := serve(t, f, func(g *gate, _ *serverSettings) { g.h.APIKeys = []string{mine, yours} })
	var open []*eventStream
	for range 64 {
		open = append(open, g.openEvents(t, "", "Authorization", "Bearer "+mine))
	}
	a := g.do(t, "GET", "/v1/events", "", "Authorization", "Bearer "+mine)
	a.failed(t, 429, "rate_limited")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	g.openEvents(t, "", "Authorization", "Bearer "+yours)
	open[0].cancel()
	await.Until(t, "there is room again", func() bool {
		s, err := f.events.Subscribe("user key-"+strings.TrimPrefix(auth.Hash(mine), "sha256:")[:8], "")
		if err == nil {
			s.Close()
		}
		return err == nil
	})
	g.openEvents(t, "", "Authorization", "Bearer "+mine)
}

// TestEventsSlowClient wants a client who reads nothing to lose its stream once
// it has fallen behind, and nobody else to notice.
func TestEventsSlowClient(t *testing.T) {
	f := &fakeMesh{events: mesh.NewEvents()}
	g := serve(t, f)
	conn, err := net.Dial("tcp", g.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	answer := bufio.NewReader(conn)
	if line, err := answer.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	watcher := g.openEvents(t, "")
	name := strings.Repeat("n", 32<<10)
	for i := range 2000 { // 64 MB: more than the network holds for it
		f.events.Publish(online(fmt.Sprint(i), name))
		if !strings.Contains(watcher.next(), name) {
			t.Fatal("another got no event")
		}
	}
	read, err := io.Copy(io.Discard, answer) // to the end of the stream
	if read >= 2000*32<<10 || err != nil {
		t.Errorf("%d bytes, %v", read, err)
	}
}

func TestOwner(t *testing.T) {
	owners := map[string]string{}
	g := serve(t, &fakeMesh{events: mesh.NewEvents()})
	for name, host := range map[string]string{
		"a": "192.0.2.1", "a again": "192.0.2.1", "mapped": "::ffff:192.0.2.1", "b": "192.0.2.2",
		"six": "2001:db8::1", "six again": "2001:db8::ffff:2%eth0", "other six": "2001:db8:0:1::1",
	} {
		r := httptest.NewRequest("GET", "/v1/events", nil)
		r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: host}))
		x := newExchange(g.h, httptest.NewRecorder(), r)
		x.identity = auth.Unrestricted("")
		owners[name] = x.client()
	}
	for a, b := range map[string]string{"a": "a again", "mapped": "a", "six": "six again"} {
		if owners[a] != owners[b] {
			t.Errorf("%s and %s: %s, %s", a, b, owners[a], owners[b])
		}
	}
	if owners["a"] == owners["b"] || owners["six"] == owners["other six"] {
		t.Errorf("got %v", owners)
	}
}

func TestTestRelay(t *testing.T) {
	const addr = "/ip4/127.0.0.1/tcp/4001/p2p/" + peerB
	f := &fakeMesh{relay: func(_ context.Context, got string) (string, error) {
		switch got {
		case addr:
			return peerB, nil
		case "busy":
			return "", mesh.ErrRelayTests
		}
		return "", errors.New("this is no \"address\"")
	}}
	g := serve(t, f)
	for body, want := range map[string]string{
		`{"multiaddr":` + quote(addr) + `}`: `{"ok":true,"peer_id":"` + peerB + `"}`,
		`{"multiaddr":"x","more":1}`:        `{"ok":false,"error":"this is no \"address\""}`,
	} {
		if a := g.do(t, "POST", "/api/relay/test", body, "Content-Type", "application/json"); a.status != 200 || a.body != want {
			t.Errorf("%s: got %d %s", body, a.status, a.body)
		}
	}
	for _, body := range []string{``, `{`, `[]`, `null`, `"x"`, `{}`, `{"multiaddr":""}`, `{"multiaddr":1}`, `{"multiaddr":null}`, `{"multiaddr":"x"}x`} {
		g.do(t, "POST", "/api/relay/test", body).failed(t, 400, "invalid_request_error")
	}
	g.do(t, "POST", "/api/relay/test", `{"multiaddr":"`+strings.Repeat("x", maxRelayBody)+`"}`).failed(t, 413, "request_too_large")
	g.do(t, "GET", "/api/relay/test", "").failed(t, 405, "method_not_allowed")
	busy := g.do(t, "POST", "/api/relay/test", `{"multiaddr":"busy"}`)
	busy.failed(t, 503, "mesh_overloaded")
	if busy.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	g.do(t, "POST", "/api/relay/test", `{"multiaddr":"x"}`, "Origin", "https://evil.example").failed(t, 403, "cross_origin_refused")
}

func TestAbout(t *testing.T) {
	f := &fakeMesh{about: mesh.About{Peer: peerA, Version: "v1.2.3", Uptime: 90*time.Second + time.Millisecond}}
	g := serve(t, f)
	want := `{"boss_peer_id":"` + peerA + `","relay_peer_id":"","relay_multiaddr":"","reputation_floor":0,"ledger_tree_size":0,"version":"v1.2.3","uptime_seconds":90}`
	if a := g.do(t, "GET", "/v1/about", ""); a.status != 200 || a.body != want {
		t.Errorf("got %d %s", a.status, a.body)
	}
	f.about.Relay, f.about.RelayAddr = peerB, "/ip4/1.2.3.4/tcp/4001/p2p/"+peerB
	if a := g.do(t, "GET", "/v1/about", ""); !strings.Contains(a.body, `"relay_peer_id":"`+peerB+`","relay_multiaddr":"/ip4/1.2.3.4/tcp/4001/p2p/`+peerB+`"`) {
		t.Errorf("got %s", a.body)
	}
	f.off = true
	g.do(t, "GET", "/v1/about", "").failed(t, 503, "mesh_overloaded")
}
