// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// configuration is an agent with a container that serves, as one configuration has it.
type configuration struct {
	*fixture
	*httptest.Server // as the worker would serve it
	logs             *observer.ObservedLogs
	changed          atomic.Int64
	retire           context.CancelFunc
	services         sync.WaitGroup
}

// configure loads a configuration of an agent, with the probe as its model server.
func configure(t *testing.T, agent worker.Agent, set func(*Runtime)) *configuration {
	t.Helper()
	host := engineHost(t)
	if err := buildProbe(); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{Host: host, Image: probeImage, Serve: 8080, Env: map[string]string{"PROBE": "serve 8080"}}
	if set != nil {
		set(r)
	}
	c := &configuration{fixture: &fixture{Runtime: r, agent: agent, t: t}}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	r.logger, c.logs = zap.New(core), logs
	c.agent.Context, c.retire = context.WithCancel(context.Background())
	c.agent.Go, c.agent.Changed = c.services.Go, func() { c.changed.Add(1) }
	c.Server = httptest.NewServer(r.Server())
	t.Cleanup(func() {
		c.end()
		if !isServed(agent.PeerID) { // by another configuration
			c.wantContainers(0)
		}
	})
	return c
}

// isServed reports whether an agent has a container that serves.
func isServed(peerID string) bool {
	services.Lock()
	defer services.Unlock()
	for key := range services.byKey {
		if key.peerID == peerID {
			return true
		}
	}
	return false
}

// serving returns a configuration that is ready.
func serving(t *testing.T, agent worker.Agent, set func(*Runtime)) *configuration {
	t.Helper()
	c := configure(t, agent, set)
	if _, err := c.Prepare(t.Context(), c.agent); err != nil {
		t.Fatal(err)
	}
	return c
}

// end ends the agent, or what is left of the configuration.
func (c *configuration) end() {
	c.retire()
	c.services.Wait()
	c.Server.Close()
}

// container returns the id of the one container that the agent has.
func (c *configuration) container() string {
	c.t.Helper()
	ids := c.containers()
	if len(ids) != 1 {
		c.t.Fatalf("containers are %v, want one", ids)
	}
	return ids[0]
}

// containers returns the ids of the agent's containers.
func (c *configuration) containers() []string {
	c.t.Helper()
	found, err := containers(context.Background(), c.client(), labelAgent+"="+c.agent.PeerID)
	if err != nil {
		c.t.Fatal(err)
	}
	var ids []string
	for _, s := range found {
		ids = append(ids, s.ID)
	}
	return ids
}

// post sends a chat.
func (c *configuration) post(text string, stream bool) *http.Response {
	c.t.Helper()
	body := fmt.Sprintf(`{"model":"llama3.2","stream":%v,"messages":[{"role":"user","content":%q}]}`, stream, text)
	resp, err := http.Post(c.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// chat returns the answer to a text.
func (c *configuration) chat(text string) string {
	c.t.Helper()
	var answer struct {
		Choices []struct{ Message struct{ Content string } }
	}
	resp := c.post(text, false)
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusOK || len(answer.Choices) != 1 {
		c.t.Fatalf("status %d, %+v: %v", resp.StatusCode, answer, err)
	}
	return answer.Choices[0].Message.Content
}

// offers reports whether the configuration has an offer.
func (c *configuration) offers() bool {
	_, up := c.Runtime.Server().Offer()
	return up
}

func TestServe(t *testing.T) {
	t.Parallel()
	c := configure(t, testAgent(t), func(r *Runtime) {
		r.Tmpfs, r.Env["PROBE_DELAY"], r.Env["GREETING"] = "8MiB", "300ms", "hello world"
	})
	if c.offers() {
		t.Error("there is an offer before the start")
	}
	if resp := c.post("early", false); resp.StatusCode != http.StatusBadGateway || resp.Header.Get(wire.HeaderRefusal) == "" {
		t.Errorf("before the start: status %d", resp.StatusCode)
	}
	img, err := c.Prepare(t.Context(), c.agent)
	if err != nil || img.Ref != probeImage || img.Digest == "" {
		t.Fatalf("%+v %v", img, err)
	}
	offer, up := c.Runtime.Server().Offer()
	if want := (worker.Offer{Models: []string{"llama3.2"}, Routes: []string{"/v1/chat/completions"}}); !up ||
		!slices.Equal(offer.Models, want.Models) || !slices.Equal(offer.Routes, want.Routes) {
		t.Errorf("offers %+v, %v", offer, up)
	}
	t.Run("chat", func(t *testing.T) {
		if got := c.chat("hello"); got != "you said: hello" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("stream", func(t *testing.T) {
		resp := c.post("hello", true)
		b, err := io.ReadAll(resp.Body)
		if n := strings.Count(string(b), "data: "); err != nil || n != 4 || !strings.HasSuffix(string(b), "data: [DONE]\n\n") {
			t.Errorf("%v: %s", err, b)
		}
	})
	t.Run("text", func(t *testing.T) { // of gateways that speak the first protocol
		if c.PromptLimit() != wire.MaxTaskFrame || !c.PromptNUL() {
			t.Errorf("prompt limit is %d, NUL %v", c.PromptLimit(), c.PromptNUL())
		}
		if exit, out := c.answer("hello"); exit.Code != 0 || out != "you said: hello" {
			t.Errorf("%+v: %q", exit, out)
		}
	})
	t.Run("sandbox", func(t *testing.T) {
		var got report
		if err := json.Unmarshal([]byte(c.chat("inspect")), &got); err != nil {
			t.Fatal(err)
		}
		checkSandbox(t, got)
		if !slices.Contains(got.Env, "AGENTFM_MODEL=llama3.2") || !slices.Contains(got.Env, "GREETING=hello world") ||
			strings.Contains(strings.Join(got.Env, " "), "AGENTFM_OUTPUT") {
			t.Errorf("environment is %v", got.Env)
		}
	})
	info, err := c.client().ContainerInspect(t.Context(), c.container())
	if err != nil || info.Config.Labels[labelAgent] != c.agent.PeerID || info.Config.Labels[labelServe] == "" || info.Config.Labels[labelTask] != "" {
		t.Errorf("labels are %v (%v)", info.Config.Labels, err)
	}
	c.end()
	c.wantContainers(0)
	if c.offers() {
		t.Error("there is an offer after the end")
	}
}

// A container that goes away takes the offer with it at once, and comes back.
func TestServeAgain(t *testing.T) {
	t.Parallel()
	c := serving(t, testAgent(t), nil)
	first := c.container()
	for i, end := range []func(){
		func() {
			if err := c.client().ContainerKill(t.Context(), first, "KILL"); err != nil {
				t.Fatal(err)
			}
		},
		func() { // by itself, in the middle of a request
			if resp := c.post("exit", false); resp.StatusCode == http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
		},
		func() {
			_ = c.client().ContainerRemove(t.Context(), c.container(), container.RemoveOptions{Force: true})
		},
	} {
		told := c.changed.Load()
		end()
		eventually(t, "nothing is offered", func() bool { return !c.offers() })
		if resp := c.post("hello", false); resp.StatusCode != http.StatusBadGateway || resp.Header.Get(wire.HeaderRefusal) == "" {
			t.Errorf("%d: while it is down: status %d", i, resp.StatusCode)
		}
		eventually(t, "it is back", c.offers)
		if got := c.chat("again"); got != "you said: again" {
			t.Errorf("%d: got %q", i, got)
		}
		if n := c.changed.Load() - told; n < 2 {
			t.Errorf("%d: the agent was told %d times", i, n)
		}
		if n := c.logs.FilterMessage("the model server does not run").Len(); n != i+1 {
			t.Errorf("%d: the log tells %d times: %v", i, n, c.logs.All())
		}
	}
	if c.container() == first {
		t.Error("the container is the same")
	}
	log := c.logs.FilterMessage("the model server does not run").All()
	for i, want := range []string{"killed by signal 9", "exit status 3", ""} {
		if got := fmt.Sprint(log[i].ContextMap()["error"]); !strings.Contains(got, want) {
			t.Errorf("%d: the log says %q, want %q", i, got, want)
		}
		if out := log[i].ContextMap()["output"]; out != "loading the model\nserving" {
			t.Errorf("%d: the log has output %q", i, out)
		}
	}
}

// A reload that changes nothing of the container leaves it as it is.
func TestServeReload(t *testing.T) {
	t.Parallel()
	agent := testAgent(t)
	before := serving(t, agent, nil)
	id := before.container()
	after := serving(t, agent, func(r *Runtime) { r.Routes = []string{"/v1/chat/completions", "/v1/other"} })
	if offer, up := after.Runtime.Server().Offer(); !up || len(offer.Routes) != 2 {
		t.Errorf("offers %+v, %v", offer, up)
	}
	if got := after.container(); got != id {
		t.Errorf("the container is %s, it was %s", got, id)
	}
	before.end()
	if got := after.container(); got != id || after.chat("hello") != "you said: hello" {
		t.Errorf("the container is %s, it was %s", got, id)
	}
}

// Other settings have another container. The old one goes when its last request is
// done.
func TestServeChanged(t *testing.T) {
	t.Parallel()
	agent := testAgent(t)
	before := serving(t, agent, nil)
	old := before.container()
	stream := bufio.NewReader(before.post("wait", true).Body)
	if line, err := stream.ReadString('\n'); err != nil || !strings.Contains(line, "you said") {
		t.Fatalf("%q %v", line, err)
	}
	after := serving(t, agent, func(r *Runtime) { r.Env["GREETING"] = "hello" })
	if ids := after.containers(); len(ids) != 2 || !slices.Contains(ids, old) {
		t.Errorf("containers are %v, the old one %s", ids, old)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		before.retire()
		before.services.Wait()
	}()
	eventually(t, "the old one takes no requests", func() bool {
		return before.post("late", false).StatusCode == http.StatusBadGateway
	})
	if got := after.chat("hello"); got != "you said: hello" {
		t.Errorf("got %q", got)
	}
	select {
	case <-ended:
		t.Error("the old one has ended in the middle of a request")
	default:
	}
	release(t, before)
	if rest, err := io.ReadAll(stream); err != nil || !strings.HasSuffix(string(rest), "[DONE]\n\n") {
		t.Errorf("the old request ends with %q, %v", rest, err)
	}
	<-ended
	if id := after.container(); id == old {
		t.Error("the old container is left")
	}
}

// release lets the chats of a probe go on that wait.
func release(t *testing.T, c *configuration) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.service.Load().dial(ctx)
	}}
	resp, err := (&http.Client{Transport: transport}).Post("http://probe/release", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// What a killed process left is removed, what another configuration uses is not.
func TestServeSweeps(t *testing.T) {
	t.Parallel()
	agent := testAgent(t)
	c := serving(t, agent, nil)
	id := c.container()
	p := c.ready.Load()
	leftover, err := p.create(t.Context(), p.spec.serveConfig("leftover"), p.spec.commonHost())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.engine.ContainerStart(t.Context(), leftover, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	again := serving(t, agent, nil)
	if got := again.container(); got != id {
		t.Errorf("left is %s, want %s; the leftover was %s", got, id, leftover)
	}
}

// A container that exits is an error, of which only the log has the output. It is
// tried again.
func TestServeFails(t *testing.T) {
	t.Parallel()
	c := configure(t, testAgent(t), func(r *Runtime) { r.Env["PROBE"] = "streams" })
	for i := range 2 {
		_, err := c.Prepare(t.Context(), c.agent)
		if err == nil || !strings.Contains(err.Error(), "exit status 0") || strings.Contains(err.Error(), "out1") {
			t.Errorf("%d: got %v", i, err)
		}
		if c.offers() {
			t.Errorf("%d: there is an offer", i)
		}
	}
	log := c.logs.FilterMessage("the model server does not run").FilterLevelExact(zap.WarnLevel).All()
	if len(log) < 2 {
		t.Fatalf("the log is %v", c.logs.All())
	}
	for i, entry := range log[:2] {
		out := fmt.Sprint(entry.ContextMap()["output"])
		if !strings.Contains(out, "out1") || !strings.Contains(out, "err2") || entry.ContextMap()["next_start"] != time.Second<<i {
			t.Errorf("%d: the log says %v", i, entry.ContextMap())
		}
	}
	c.end()
	if _, err := c.Prepare(t.Context(), c.agent); err == nil {
		t.Error("it was prepared after its end")
	}
}

// A model that is not there is an error that starts no other container.
func TestServeWithoutItsModel(t *testing.T) {
	t.Parallel()
	c := configure(t, testAgent(t), func(r *Runtime) { r.Rename = map[string]string{"other": "llama3.2"} })
	_, err := c.Prepare(t.Context(), c.agent)
	if err == nil || !strings.Contains(err.Error(), `"llama3.2" is not among`) || c.offers() {
		t.Fatalf("got %v", err)
	}
	id := c.container()
	if _, err := c.Prepare(t.Context(), c.agent); err == nil || c.container() != id {
		t.Errorf("got %v", err)
	}
}

// Whoever waits for a model to be loaded can see that in the log.
func TestServeSlow(t *testing.T) {
	t.Parallel()
	c := serving(t, testAgent(t), func(r *Runtime) { r.Env["PROBE_DELAY"] = (progressInterval + time.Second).String() })
	progress := c.logs.FilterMessage("the model server does not answer yet").FilterLevelExact(zap.InfoLevel).All()
	if len(progress) != 1 || !strings.Contains(fmt.Sprint(progress[0].ContextMap()["error"]), "refused") {
		t.Errorf("the log is %v", c.logs.All())
	}
}

// The end of the agent while its server starts leaves nothing.
func TestServeEndsEarly(t *testing.T) {
	t.Parallel()
	c := configure(t, testAgent(t), func(r *Runtime) { r.Env["PROBE_DELAY"] = "1h" })
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Prepare(ctx, c.agent)
		done <- err
	}()
	eventually(t, "it starts", func() bool { return c.logs.FilterMessage("starting the model server").Len() == 1 })
	cancel(errTest)
	if err := <-done; err == nil || !strings.Contains(err.Error(), errTest.Error()) {
		t.Errorf("got %v", err)
	}
	c.end()
	c.wantContainers(0)
}

// Without its engine a container goes on, and is looked after again when that is back.
func TestServeWithoutEngine(t *testing.T) {
	t.Parallel()
	relay := newRelay(t, engineHost(t))
	c := serving(t, testAgent(t), func(r *Runtime) { r.Host = relay.host })
	real, err := newEngine(engineHost(t))
	if err != nil {
		t.Fatal(err)
	}
	first := c.container()
	relay.stop()
	eventually(t, "the loss is seen", func() bool {
		return c.logs.FilterMessageSnippet("the Docker engine does not tell").Len() == 1
	})
	if !c.offers() || c.chat("hello") != "you said: hello" {
		t.Error("the container serves no more")
	}
	relay.start()
	eventually(t, "the engine is back", func() bool { return c.logs.FilterMessage("the Docker engine is back").Len() == 1 })
	if got := c.container(); got != first || c.chat("hello") != "you said: hello" {
		t.Errorf("the container is %s, it was %s", got, first)
	}
	relay.stop()
	if err := real.ContainerRemove(t.Context(), first, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	relay.start()
	eventually(t, "another container serves", func() bool {
		ids := c.containers()
		return len(ids) == 1 && ids[0] != first && c.offers()
	})
}

// relay is an engine's socket that goes and comes.
type relay struct {
	t            *testing.T
	host, target string
	socket       string
	listener     net.Listener
	mu           sync.Mutex
	conns        []net.Conn
	relays       sync.WaitGroup
}

func newRelay(t *testing.T, host string) *relay {
	t.Helper()
	r := &relay{t: t, target: strings.TrimPrefix(host, "unix://"), socket: filepath.Join(t.TempDir(), "engine.sock")}
	r.host = "unix://" + r.socket
	r.start()
	t.Cleanup(r.stop)
	return r
}

func (r *relay) start() {
	r.t.Helper()
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	r.listener = l
	r.relays.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", r.target)
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				r.relays.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
				})
			}
		}
	})
}

func (r *relay) stop() {
	r.listener.Close()
	r.mu.Lock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
	r.mu.Unlock()
	r.relays.Wait()
}

// On this machine's network, nobody else may have the port.
func TestServePortTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	p := &prepared{spec: spec{network: &outlet{mode: networkHost}}}
	if err := p.checkPort(port); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d of this machine is not free", port)) {
		t.Errorf("error is %v", err)
	}
	p.spec.network = nil
	if err := p.checkPort(port); err != nil {
		t.Error(err)
	}
}

// An engine elsewhere is told of before anything is started.
func TestServeElsewhere(t *testing.T) {
	r := &Runtime{Image: "x", Serve: 8080, Host: "tcp://192.0.2.1:2375"}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	_, err := r.Prepare(t.Context(), testAgent(t))
	for _, part := range []string{"serve: a way into a container that has no network needs Linux", "tcp://192.0.2.1:2375"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error is %v, want %q in it", err, part)
		}
	}
}

// Whatever call fails, it is told, and nothing is left.
func TestServiceFailures(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fail  func(*fakeEngine)
		calls string
	}{
		{"create", func(e *fakeEngine) { e.createErr = errTest }, "create list remove"},
		{"attach", func(e *fakeEngine) { e.attachErr = errTest }, "create attach remove"},
		{"start", func(e *fakeEngine) { e.startErr = errTest }, "create attach start remove"},
		{"inspect", func(e *fakeEngine) { e.inspectErr = errTest }, "create attach start inspect remove"},
		{"gone", func(*fakeEngine) {}, "create attach start inspect remove"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newFakeEngine()
			tc.fail(e)
			u := &serviceUser{logger: zap.NewNop(), changed: func(bool) { t.Error("it was up") }}
			s, failures := joinService(e.prepared(), 8080, u)
			want := errTest.Error()
			if tc.name == "gone" {
				want = "exit status 0"
			}
			if err := s.await(t.Context(), failures); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error is %v, want %v", err, want)
			}
			s.leave(u)
			if got := strings.Join(e.calls, " "); got != tc.calls || e.there {
				t.Errorf("calls are %q, want %q; container left: %v", got, tc.calls, e.there)
			}
			if _, err := s.dial(t.Context()); err == nil {
				t.Error("it can be reached")
			}
			if e.startErr != nil || e.attachErr != nil || e.createErr != nil {
				close(e.started) // lets the fake's goroutine end
			}
		})
	}
}

func TestTail(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	log := zap.New(core)
	out := &tail{log: func() *zap.Logger { return log }, what: "output of the model server"}
	for _, piece := range []string{"half a ", "line\nlong ", strings.Repeat("x", 3*tailSize), "\nlast\xff line\nrest"} {
		if n, err := io.WriteString(out, piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := out.String(); got != "last? line\nrest" {
		t.Errorf("kept is %q", got)
	}
	var lines []string
	for _, entry := range logs.All() {
		lines = append(lines, fmt.Sprint(entry.ContextMap()["line"]))
	}
	want := []string{"half a line", "long " + strings.Repeat("x", tailLine-5), "last? line"}
	if !slices.Equal(lines, want) {
		t.Errorf("the log has %q", lines)
	}
	quiet := &tail{log: zap.NewNop}
	_, _ = quiet.Write([]byte(strings.Repeat("y", tailSize+1)))
	if got := quiet.String(); got != strings.Repeat("y", tailSize) {
		t.Errorf("kept are %d bytes", len(got))
	}
}
