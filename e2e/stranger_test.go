// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// stranger is a peer of the mesh that a test scripts. It keeps to no limits.
type stranger struct {
	host.Host
	t *testing.T
	wire.Telemetry
}

func newStranger(t *testing.T) *stranger {
	t.Helper()
	return newStrangerOn(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
}

// newStrangerBehind returns a stranger to which a link is the only way: it does not
// listen, and dials no other address of a node.
func newStrangerBehind(t *testing.T, address string) *stranger {
	t.Helper()
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		t.Fatal(err)
	}
	return newStrangerOn(t, libp2p.ChainOptions(libp2p.NoListenAddrs, libp2p.ConnectionGater(oneWay{info.Addrs[0]})))
}

// oneWay lets a host dial one address.
type oneWay struct{ addr ma.Multiaddr }

func (w oneWay) InterceptAddrDial(_ peer.ID, a ma.Multiaddr) bool { return a.Equal(w.addr) }

func (oneWay) InterceptPeerDial(peer.ID) bool                                           { return true }
func (oneWay) InterceptAccept(network.ConnMultiaddrs) bool                              { return true }
func (oneWay) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool { return true }
func (oneWay) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason)          { return true, 0 }

// newStrangerOn returns a stranger that listens as an option says.
func newStrangerOn(t *testing.T, listen libp2p.Option) *stranger {
	t.Helper()
	h, err := libp2p.New(listen, libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return &stranger{Host: h, t: t, Telemetry: wire.Telemetry{
		PeerID: h.ID().String(), CPUCores: 1, Status: wire.StatusAvailable, MaxTasks: 64, AgentName: "stranger", Duplex: true,
	}}
}

// dial connects to a node.
func (s *stranger) dial(address string) (peer.ID, error) {
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		return "", err
	}
	return info.ID, s.Connect(s.t.Context(), *info)
}

// mustDial is dial for nodes that must be there.
func (s *stranger) mustDial(address string) peer.ID {
	s.t.Helper()
	id, err := s.dial(address)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// publish has a gateway hear the stranger's telemetry, with more fields, until the
// test ends.
func (s *stranger) publish(address string, more map[string]any) {
	s.t.Helper()
	s.mustDial(address)
	ctx, cancel := context.WithCancel(context.Background())
	ps, err := pubsub.NewGossipSub(ctx, s)
	if err != nil {
		s.t.Fatal(err)
	}
	topic, err := ps.Join(wire.TelemetryTopic)
	if err != nil {
		s.t.Fatal(err)
	}
	b, _ := json.Marshal(s.Telemetry)
	var fields map[string]any
	_ = json.Unmarshal(b, &fields)
	for k, v := range more {
		fields[k] = v
	}
	b, _ = json.Marshal(fields)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(300 * time.Millisecond); ; {
			_, _ = s.dial(address) // it may have been cut off
			_ = topic.Publish(ctx, b)
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	}()
	s.t.Cleanup(func() { cancel(); <-done })
}

// serveTasks makes the stranger a worker of protocol 2 that takes texts.
func (s *stranger) serveTasks(address, model string, serve http.HandlerFunc) {
	s.t.Helper()
	s.Model, s.AgentName, s.Protocol = model, model, wire.ProtocolHTTP
	s.listen(serve)
	s.publish(address, nil)
}

// serveChats makes the stranger a worker of protocol 2 that serves chats itself.
func (s *stranger) serveChats(address, model string, serve http.HandlerFunc) {
	s.t.Helper()
	s.Model, s.AgentName, s.Protocol, s.ProfileTag = model, model, wire.ProtocolHTTP, "1"
	s.listen(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != wire.PathProfile {
			serve(w, r)
			return
		}
		b, _ := json.Marshal(wire.Profile{Telemetry: s.Telemetry, Models: []string{model}, Routes: []string{"/v1/chat/completions"}, MaxBody: 1 << 20})
		_, _ = fmt.Fprintf(w, `{"later":{"x":[1]},%s`, b[1:]) // a field that nobody knows
	})
	s.publish(address, nil)
}

func (s *stranger) listen(serve http.HandlerFunc) {
	s.t.Helper()
	l, err := gostream.Listen(s, wire.HTTPProtocol)
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: serve}
	go func() { _ = srv.Serve(l) }()
	s.t.Cleanup(func() { _ = srv.Close() })
}

// raw answers with bytes that no server would send, and closes.
func raw(w http.ResponseWriter, r *http.Request, text string) {
	_, _ = io.Copy(io.Discard, r.Body)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, text)
}

// taskEvents answers a task.
func taskEvents(w http.ResponseWriter, r *http.Request, write func(*wire.EventWriter)) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	write(wire.NewEventWriter(w))
}

// open opens a stream to a node and writes on it.
func (s *stranger) open(id peer.ID, p protocol.ID, text string) (network.Stream, error) {
	stream, err := s.NewStream(s.t.Context(), id, p)
	if err != nil {
		return nil, err
	}
	_ = stream.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(stream, text); err != nil {
		_ = stream.Reset()
		return nil, err
	}
	return stream, nil
}

// head returns the head of a request to a worker.
func head(method, target string, length int) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method, target, length)
}

// request sends a request to a worker and reads the answer.
func (s *stranger) request(id peer.ID, method, target, body string) (received, error) {
	stream, err := s.open(id, wire.HTTPProtocol, head(method, target, len(body))+body)
	if err != nil {
		return received{}, err
	}
	defer stream.Reset()
	resp, err := http.ReadResponse(bufio.NewReader(stream), &http.Request{Method: method})
	if err != nil {
		return received{}, err
	}
	b, err := io.ReadAll(resp.Body)
	return received{resp.StatusCode, resp.Header, string(b)}, err
}

// nodeAddress returns the address of an agent of a worker's process.
func (p *process) nodeAddress() string {
	p.t.Helper()
	entry := p.awaitLog("agent is on the mesh")
	listen, _ := entry["listen"].([]any)
	if len(listen) == 0 {
		p.t.Fatalf("no address in %v", entry)
	}
	return fmt.Sprint(listen[0], "/p2p/", entry["peer"])
}

// openAIAgent returns the block of an agent whose model is a server.
func openAIAgent(key, model, url string, maxTasks int) string {
	return fmt.Sprintf("\t\tagent %s {\n\t\t\tname %q\n\t\t\tmodel %s\n\t\t\tmax_tasks %d\n\t\t\tmax_cpu off\n\t\t\ttimeout 1h\n\t\t\truntime openai {\n\t\t\t\tbase_url %s\n\t\t\t\troutes /v1/chat/completions\n\t\t\t}\n\t\t}\n",
		key, key, model, maxTasks, url)
}

// modelServer speaks OpenAI's API. What it answers is what the chat asks for: "echo
// TEXT", or "count N EVERY" for as many events.
type modelServer struct {
	url string

	mu     sync.Mutex
	chats  int
	inside int
}

func newModelServer(t *testing.T) *modelServer {
	t.Helper()
	m := &modelServer{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: m}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	m.url = "http://" + l.Addr().String() + "/v1"
	return m
}

// ServeHTTP implements http.Handler.
func (m *modelServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/v1/models" {
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"mock","object":"model"}]}`)
		return
	}
	var chat struct {
		Messages []struct{ Content string }
		Stream   bool
	}
	if err := json.NewDecoder(r.Body).Decode(&chat); err != nil || len(chat.Messages) == 0 {
		http.Error(w, `{"error":{"message":"no messages"}}`, http.StatusBadRequest)
		return
	}
	m.enter(1)
	defer m.enter(-1)
	words := strings.SplitN(chat.Messages[0].Content, " ", 3)
	if words[0] != "count" {
		_, text, _ := strings.Cut(chat.Messages[0].Content, " ")
		chunk, _ := json.Marshal(text)
		if chat.Stream {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%s},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", chunk)
			return
		}
		_, _ = fmt.Fprintf(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":%s},"finish_reason":"stop"}]}`, chunk)
		return
	}
	n, _ := strconv.Atoi(words[1])
	every, _ := time.ParseDuration(words[2])
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	_ = flush()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range n {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
		_, _ = fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d \"}}]}\n\n", i)
		_ = flush()
	}
	_, _ = io.WriteString(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
}

func (m *modelServer) enter(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inside += n
	m.chats += max(n, 0)
}

// now returns how many chats there have been, and how many there are.
func (m *modelServer) now() (all, inside int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chats, m.inside
}

// numbers returns what "count N" answers.
func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d ", i)
	}
	return b.String()
}
