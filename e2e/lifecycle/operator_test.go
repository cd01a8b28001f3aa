// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

func init() { caddy.RegisterModule(new(recorder)) }

// recorder is a handler of Caddy's events that notes them.
type recorder struct {
	Label string `json:"label,omitempty"` // tells configurations apart
}

// onRecord is called by each recorder that has noted an event.
var onRecord atomic.Pointer[func()]

// recorded is what all recorders have noted.
var recorded struct {
	sync.Mutex
	events []string
}

func (*recorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.recorder", New: func() caddy.Module { return new(recorder) }}
}

// Handle implements caddyevents.Handler.
func (r *recorder) Handle(_ context.Context, e caddy.Event) error {
	recorded.Lock()
	recorded.events = append(recorded.events, fmt.Sprintf("%s: %s %s/%s of %s, from %s",
		r.Label, e.Name(), e.Data["agent_name"], e.Data["model"], e.Data["peer_id"], e.Origin().CaddyModule().ID))
	recorded.Unlock()
	if f := onRecord.Load(); f != nil {
		(*f)()
	}
	return nil
}

var _ caddyevents.Handler = (*recorder)(nil)

// recording returns a configuration as JSON, with a recorder for our events.
func recording(t *testing.T, c config, p place) []byte {
	t.Helper()
	var all map[string]map[string]any
	if err := json.Unmarshal(c.json(t, p), &all); err != nil {
		t.Fatal(err)
	}
	all["apps"]["events"] = map[string]any{"subscriptions": []any{map[string]any{
		"events":   []string{"agentfm.worker_online", "agentfm.worker_offline"},
		"modules":  []string{"agentfm"},
		"handlers": []any{map[string]any{"handler": "recorder", "label": c.name}},
	}}}
	out, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Caddy's subscribers hear of each worker that comes or goes, once, and by the
// configuration that is the newest then. While one is being loaded, that is still
// the one before.
func TestCaddyEvents(t *testing.T) {
	s := newServer(t)
	load := func(c config) {
		t.Helper()
		if err := caddy.Load(recording(t, c, s.place), false); err != nil {
			t.Fatal(err)
		}
		s.awaitName(c.name)
	}
	var want []string
	expect := func(format string, args ...any) {
		t.Helper()
		want = append(want, fmt.Sprintf(format, args...))
		await(t, "event "+want[len(want)-1], func() bool {
			recorded.Lock()
			defer recorded.Unlock()
			return len(recorded.events) >= len(want)
		})
	}
	c := config{name: "first", agents: []agent{{key: "echo", label: "hello"}}}
	load(c)
	echo := s.awaitWorker("echo")
	expect("first: agentfm.worker_online echo/echo of %s, from agentfm", echo)

	refused := c.with("refused")
	refused.apps = []string{"refusing"}
	if err := caddy.Load(recording(t, refused, s.place), false); err == nil {
		t.Fatal("the configuration was not refused")
	}
	load(c.with("second", agent{key: "echo", label: "hello"}, agent{key: "other", label: "other"}))
	other := s.awaitWorker("other")
	expect("first or second: agentfm.worker_online other/other of %s, from agentfm", other)
	load(c.with("third", agent{key: "other", label: "other"}))
	expect("third: agentfm.worker_offline echo/echo of %s, from agentfm", echo)

	recorded.Lock()
	defer recorded.Unlock()
	for _, label := range []string{"first: ", "second: "} {
		if rest, ok := strings.CutPrefix(recorded.events[1], label); ok {
			recorded.events[1] = "first or second: " + rest
		}
	}
	if !slices.Equal(recorded.events, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(recorded.events, "\n"), strings.Join(want, "\n"))
	}
	recorded.events = nil
}

// A handler of an event that hangs keeps nobody else from anything, and not the
// node from its end.
func TestCaddyEventHangs(t *testing.T) {
	s := newServer(t)
	hangs, release := make(chan struct{}), make(chan struct{})
	hang := func() { close(hangs); <-release }
	onRecord.Store(&hang)
	defer func() {
		onRecord.Store(nil)
		close(release)
		await(t, "the handler has returned", closed)
		recorded.Lock()
		defer recorded.Unlock()
		recorded.events = nil
	}()
	c := config{name: "first", agents: []agent{{key: "echo", label: "hello"}, {key: "other", label: "other"}}}
	if err := caddy.Load(recording(t, c, s.place), false); err != nil {
		t.Fatal(err)
	}
	<-hangs
	s.awaitName("first")
	s.awaitWorker("echo")
	s.awaitWorker("other")
	s.wantAnswer("other", "other")
	s.load(config{name: "none", without: true})
	await(t, "the node has closed", func() bool { _, open := mesh.LocalNode(); return !open })
}

// eventReader is an open stream of events.
type eventReader struct {
	t     *testing.T
	lines *bufio.Reader
}

func (g gateway) events(lastID string) *eventReader {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.place.url("/v1/events"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", lastID)
	resp, err := client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { resp.Body.Close() })
	r := &eventReader{g.t, bufio.NewReader(resp.Body)}
	if first, err := r.lines.ReadString('\n'); first != ":ready\n" || resp.StatusCode != http.StatusOK {
		g.t.Fatalf("%s: %q, %v", resp.Status, first, err)
	}
	return r
}

// next returns the name, the data and the id of the next event.
func (r *eventReader) next() (name, data, id string) {
	r.t.Helper()
	for {
		line, err := r.lines.ReadString('\n')
		if err != nil {
			r.t.Fatal(err)
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			data = value
		case "id":
			id = value
		case "":
			if name != "" {
				return name, data, id
			}
		}
	}
}

// A stream of events lives through a reload, and ends when the node does: it
// holds neither the node nor Caddy.
func TestEventsOverReload(t *testing.T) {
	s := newServer(t)
	c := config{name: "first", agents: []agent{{key: "echo", label: "hello"}}}
	s.load(c)
	echo := s.awaitWorker("echo")
	stream := s.events("of-an-earlier-process") // which has all that there are
	name, data, id := stream.next()
	if want := fmt.Sprintf(`{"peer_id":%q,"agent_name":"echo","honesty_score":0}`, echo); name != "worker_online" || data != want {
		t.Errorf("got %s %s, want %s", name, data, want)
	}
	s.load(c.with("second", agent{key: "other", label: "other"}))
	got := make(map[string]string)
	for range 2 { // in either order
		name, data, _ := stream.next()
		got[name] = data
	}
	if got["worker_offline"] != fmt.Sprintf(`{"peer_id":%q}`, echo) || !strings.Contains(got["worker_online"], `"agent_name":"other"`) {
		t.Errorf("after the reload: %q", got)
	}
	again := s.events(id)
	if name, data, _ := again.next(); got[name] != data {
		t.Errorf("replayed: %s %s", name, data)
	}
	s.load(config{name: "none", without: true})
	if rest, err := io.ReadAll(stream.lines); err != nil {
		t.Errorf("after the node's end: %q, %v", rest, err)
	}
	await(t, "the node has closed", closed)
}

// What an operator asks a running Caddy: its commands, its admin API and its
// metrics, also after a reload. An open stream of events does not hold up the exit.
func TestOperator(t *testing.T) {
	p := start(t, newPlace(t), oneAgent("hello"))
	echo := p.awaitWorker("echo")
	stream := p.events("")
	k := newTask(t)
	answer := p.execute(echo, k.prompt)
	answer.awaitLine("hello")
	k.end()
	answer.wantWhole(k.output("hello"))

	for _, reloaded := range []bool{false, true} {
		if reloaded {
			p.reload(oneAgent("hello").with("reloaded"))
		}
		if got := p.run(t, "workers"); !regexp.MustCompile(`^(AVAILABLE|BUSY)\techo\techo\t\d/8\t\d+%\tallowed, on probation\t\S*\t\S+\t` + echo + "\n$").MatchString(got) {
			t.Errorf("workers: %q", got)
		}
		if got := p.run(t, "peers"); !strings.HasPrefix(got, echo+"\tinbound\t") {
			t.Errorf("peers: %q", got)
		}
		if got := p.run(t, "ping", echo, "-n", "2"); !regexp.MustCompile(`^(answer after \d+\.\d\d ms\n){2}$`).MatchString(got) {
			t.Errorf("ping: %q", got)
		}
		var about map[string]any
		if err := json.Unmarshal([]byte(p.ask(t, "/agentfm/about")), &about); err != nil || about["workers_online"] != 1.0 ||
			about["peer_id"] != p.place.peerID(t, "gateway").String() {
			t.Errorf("about: %v, %v", about, err)
		}
		metrics := p.ask(t, "/metrics")
		for _, line := range []string{
			"agentfm_workers_online 1", `agentfm_tasks_total{status="timeout"} 0`, `agentfm_auth_attempts_total{outcome="rate_limited"} 0`,
			`agentfm_stream_errors_total{protocol="artifacts",reason="reset"} 0`, "agentfm_artifacts_built_total 0",
		} {
			if !strings.Contains(metrics, "\n"+line+"\n") {
				t.Errorf("reloaded %v: no %s among the metrics", reloaded, line)
			}
		}
	}
	if got := p.run(t, "genkey"); !strings.HasPrefix(got, "/key/swarm/psk/1.0.0/\n") {
		t.Errorf("genkey: %q", got)
	}
	byConfig := filepath.Join(p.place.dir, "run.caddyfile")
	if out, err := p.agentfm(t, "workers", "--config", byConfig, "--adapter", "caddyfile").Output(); err != nil || !strings.Contains(string(out), echo) {
		t.Errorf("by --config: %s, %v", out, err)
	}

	p.terminate()
	p.awaitExit()
	if rest, err := io.ReadAll(stream.lines); err != nil { // cut off, and not ended
		t.Errorf("the stream of events ended with %v after %q", err, rest)
	}
	out, err := p.agentfm(t, "peers", "--address", p.admin).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 3 || !strings.Contains(string(out), "asking the admin API at "+p.admin) {
		t.Errorf("nobody there: %s, %v", out, err)
	}
}

// ask returns an answer of the process's admin API.
func (p *process) ask(t *testing.T, path string) string {
	t.Helper()
	resp, err := client.Get("http://" + p.admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", path, resp.Status, err, b)
	}
	return string(b)
}

// run returns what a command prints that asks the process.
func (p *process) run(t *testing.T, args ...string) string {
	t.Helper()
	if args[0] != "genkey" {
		args = append(args, "--address", p.admin)
	}
	cmd := p.agentfm(t, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%q: %v", args, err)
	}
	return string(out)
}

// agentfm returns the command of the binary with arguments.
func (p *process) agentfm(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, append([]string{"agentfm"}, args...)...)
}
