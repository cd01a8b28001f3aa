// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// key is what the gateway asks of its clients. The other sides ask for nothing.
const key = "bench-key-of-no-secret"

// Names of the sides.
const (
	direct = "direct"        // to the mock
	ours   = "agentfm"       // gateway -> mesh -> worker
	base   = "agentfm -base" // the same, of another binary
	caddy  = "reverse_proxy" // Caddy's, from the same binary
	caddy2 = "2 reverse_proxy"
	nginx  = "nginx"
	goRP   = "Go ReverseProxy"

	haproxy = "HAProxy"
	portkey = "Portkey"
	litellm = "LiteLLM"
)

// side is a way to the mock.
type side struct {
	name string
	port int
	// procs are the processes on the way, the mock last. The first is the gateway.
	procs []*process
	admin []int // ports of Caddy's admin API in the first of them

	slow   bool   // see peer
	header string // what each request tells it, as lines
}

// lab is everything that runs.
type lab struct {
	o       options
	dir     string
	self    string // this program
	started []*process
	mock    *process
	sides   []*side
	missing map[string]string // sides that there are not, and why
}

// newLab starts everything.
func newLab(ctx context.Context, o options) (*lab, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	l := &lab{o: o, dir: dir, missing: make(map[string]string)}
	if err := l.startAll(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// close ends what runs.
func (l *lab) close() {
	for i := len(l.started) - 1; i >= 0; i-- {
		l.started[i].stop()
	}
	_ = os.RemoveAll(l.dir)
}

// stopSides ends all but the mock.
func (l *lab) stopSides() {
	for i := len(l.started) - 1; i >= 0; i-- {
		if p := l.started[i]; p != l.mock {
			p.stop()
		}
	}
	l.started = []*process{l.mock}
}

// start starts a process of the lab.
func (l *lab) start(name, program string, args ...string) (*process, error) {
	p, err := start(l.dir, name, program, args...)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	l.started = append(l.started, p)
	return p, nil
}

// config writes a configuration.
func (l *lab) config(name, text string) (string, error) {
	path := filepath.Join(l.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func (l *lab) startAll(ctx context.Context) error {
	var err error
	if l.self, err = os.Executable(); err != nil {
		return err
	}
	if l.o.binary == "" {
		l.o.binary = filepath.Join(l.dir, "agentfm.bin")
		program := "./xcaddy"
		if l.o.profile != "" {
			program = "./bench/profiled"
		}
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", l.o.binary, program).CombinedOutput(); err != nil {
			return fmt.Errorf("building agentfm: %w\n%s", err, out)
		}
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	if l.mock, err = l.start("mock", l.self, roleFlag, "mock", addr(0)); err != nil {
		return err
	}
	up := func(status int, body string) bool { return status == http.StatusOK && strings.Contains(body, model) }
	add := func(name string, port int, procs ...*process) error {
		s := &side{name: name, port: port, procs: append(procs, l.mock)}
		l.sides = append(l.sides, s)
		return await(ctx, s.procs[0], fmt.Sprintf("http://127.0.0.1:%d/v1/models", port), key, up)
	}
	if err := add(direct, ports[0]); err != nil {
		return err
	}
	if err := l.addMesh(ctx, ours, "ours", l.o.binary, ports[0]); err != nil {
		return err
	}
	if l.o.base != "" {
		if err := l.addMesh(ctx, base, "base", l.o.base, ports[0]); err != nil {
			return err
		}
	}
	one, err := l.caddyProxy("caddy", ports[1], ports[0])
	if err == nil {
		err = add(caddy, ports[1], one)
	}
	if err != nil {
		return err
	}
	two, err := l.caddyProxy("caddy-before", ports[2], ports[1])
	if err == nil {
		err = add(caddy2, ports[2], two, one)
	}
	if err != nil {
		return err
	}
	p, err := l.start("go-proxy", l.self, roleFlag, "proxy", addr(3), "http://"+addr(0))
	if err == nil {
		err = add(goRP, ports[3], p)
	}
	if err != nil {
		return err
	}
	if l.o.wants("B1", "B2", "B3", "B4") {
		err = l.addPeers(ctx, ports[0])
	}
	l.sides = slices.DeleteFunc(l.sides, func(s *side) bool { return len(l.o.sides) > 0 && !slices.Contains(l.o.sides, s.name) })
	return err
}

// caddyProxy starts a Caddy with reverse_proxy.
func (l *lab) caddyProxy(name string, port, to int) (*process, error) {
	path, err := l.config(name+".Caddyfile", fmt.Sprintf(`{
	admin off
	auto_https off
}
http://127.0.0.1:%d {
	reverse_proxy 127.0.0.1:%d {
		flush_interval -1
		request_buffers 64KiB # else Go's transport breaks off about one answer in a thousand
		transport http {
			keepalive_idle_conns_per_host 256
		}
	}
}
`, port, to))
	if err != nil {
		return nil, err
	}
	return l.start(name, l.o.binary, "run", "--config", path)
}

// gateway is one of ours.
type gateway struct {
	process     *process
	port, admin int
	addr        string // on the mesh
}

// gateway starts a gateway, with these options of its handler beside the keys.
func (l *lab) gateway(ctx context.Context, prefix, binary string, options ...string) (*gateway, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	path, err := l.config(prefix+"-gateway.Caddyfile", fmt.Sprintf(`{
	admin 127.0.0.1:%d
	auto_https off
	metrics
	agentfm {
		mesh {
			listen /ip4/127.0.0.1/tcp/%d
			bootstrap off
			discovery off
		}
	}
}
http://127.0.0.1:%d {
	agentfm {
		api_keys %s
		%s
	}
}
`, ports[0], ports[1], ports[2], key, strings.Join(options, "\n\t\t")))
	if err != nil {
		return nil, err
	}
	p, err := l.start(prefix+"-gateway", binary, "run", "--config", path)
	if err != nil {
		return nil, err
	}
	var about struct {
		Peer string `json:"peer_id"`
	}
	err = await(ctx, p, fmt.Sprintf("http://127.0.0.1:%d/agentfm/about", ports[0]), "", func(_ int, body string) bool {
		return json.Unmarshal([]byte(body), &about) == nil && about.Peer != ""
	})
	return &gateway{p, ports[2], ports[0], fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", ports[1], about.Peer)}, err
}

// awaitWorkers waits until so many workers are online.
func (g *gateway) awaitWorkers(ctx context.Context, n int) error {
	return await(ctx, g.process, fmt.Sprintf("http://127.0.0.1:%d/health", g.port), key, func(_ int, body string) bool {
		return strings.Contains(body, fmt.Sprintf(`"online_workers":%d}`, n)) || strings.Contains(body, fmt.Sprintf(`"online_workers":%d,`, n))
	})
}

// addMesh starts a gateway and a worker.
func (l *lab) addMesh(ctx context.Context, name, prefix, binary string, to int) error {
	g, err := l.gateway(ctx, prefix, binary)
	if err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	worker, err := l.worker(prefix, binary, ports[0], g.addr, to, 1, 512)
	if err != nil {
		return err
	}
	l.sides = append(l.sides, &side{name: name, port: g.port, admin: []int{g.admin, ports[0]}, procs: []*process{g.process, worker, l.mock}})
	return await(ctx, worker, fmt.Sprintf("http://127.0.0.1:%d/v1/models", g.port), key, func(status int, body string) bool {
		return status == http.StatusOK && strings.Contains(body, model)
	})
}

// worker starts a worker that puts the mock behind the mesh, with so many agents of so
// many slots. Without a port its admin API is off.
func (l *lab) worker(prefix, binary string, admin int, gateway string, to, n, slots int) (*process, error) {
	where := "off"
	if admin != 0 {
		where = fmt.Sprintf("127.0.0.1:%d", admin)
	}
	path, err := l.config(prefix+"-worker.Caddyfile", fmt.Sprintf(`{
	admin %s
	agentfm {
		mesh {
			listen /ip4/127.0.0.1/tcp/0
			bootstrap %s
			discovery off
		}
	}
	agentfm_worker {
%s	}
}
`, where, gateway, agents(n, slots, to)))
	if err != nil {
		return nil, err
	}
	return l.start(prefix+"-worker", binary, "run", "--config", path)
}
