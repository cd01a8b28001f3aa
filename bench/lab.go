// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
)

// side is a way to the mock.
type side struct {
	name string
	port int
	// procs are the processes on the way, the mock last. The first is the gateway.
	procs []*process
	admin []int // ports of Caddy's admin API in the first of them
}

// lab is everything that runs.
type lab struct {
	o       options
	dir     string
	started []*process
	mock    *process
	sides   []*side
	missing []string
}

// newLab starts everything.
func newLab(ctx context.Context, o options) (*lab, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	l := &lab{o: o, dir: dir}
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
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if l.o.binary == "" {
		l.o.binary = filepath.Join(l.dir, "agentfm.bin")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", l.o.binary, "./xcaddy").CombinedOutput(); err != nil {
			return fmt.Errorf("building agentfm: %w\n%s", err, out)
		}
	}
	ports, err := freePorts(5)
	if err != nil {
		return err
	}
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	if l.mock, err = l.start("mock", self, roleFlag, "mock", addr(0)); err != nil {
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
	switch p, err := l.nginx(ports[3], ports[0]); {
	case errors.Is(err, exec.ErrNotFound):
		l.missing = append(l.missing, nginx)
	case err != nil:
		return err
	default:
		if err := add(nginx, ports[3], p); err != nil {
			return err
		}
	}
	p, err := l.start("go-proxy", self, roleFlag, "proxy", addr(4), "http://"+addr(0))
	if err != nil {
		return err
	}
	return add(goRP, ports[4], p)
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

// nginx starts nginx, where it is installed.
func (l *lab) nginx(port, to int) (*process, error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		return nil, err
	}
	path, err := l.config("nginx.conf", fmt.Sprintf(`daemon off;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/nginx;
	proxy_temp_path %[1]s/nginx;
	fastcgi_temp_path %[1]s/nginx;
	uwsgi_temp_path %[1]s/nginx;
	scgi_temp_path %[1]s/nginx;
	keepalive_requests 1000000000;
	upstream mock { server 127.0.0.1:%[3]d; keepalive 256; keepalive_requests 1000000000; }
	server {
		listen 127.0.0.1:%[2]d;
		location / {
			proxy_pass http://mock;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_buffering off;
		}
	}
}
`, l.dir, port, to))
	if err != nil {
		return nil, err
	}
	return l.start("nginx", program, "-p", l.dir, "-c", path)
}

// addMesh starts a gateway and a worker.
func (l *lab) addMesh(ctx context.Context, name, prefix, binary string, to int) error {
	ports, err := freePorts(4)
	if err != nil {
		return err
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
	}
}
`, ports[0], ports[1], ports[2], key))
	if err != nil {
		return err
	}
	gateway, err := l.start(prefix+"-gateway", binary, "run", "--config", path)
	if err != nil {
		return err
	}
	var about struct {
		Peer string `json:"peer_id"`
	}
	if err := await(ctx, gateway, fmt.Sprintf("http://127.0.0.1:%d/agentfm/about", ports[0]), "", func(_ int, body string) bool {
		return json.Unmarshal([]byte(body), &about) == nil && about.Peer != ""
	}); err != nil {
		return err
	}
	worker, err := l.worker(prefix, binary, ports[3], fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", ports[1], about.Peer), to)
	if err != nil {
		return err
	}
	l.sides = append(l.sides, &side{name: name, port: ports[2], admin: []int{ports[0], ports[3]}, procs: []*process{gateway, worker, l.mock}})
	return await(ctx, worker, fmt.Sprintf("http://127.0.0.1:%d/v1/models", ports[2]), key, func(status int, body string) bool {
		return status == http.StatusOK && strings.Contains(body, model)
	})
}

// worker starts a worker that puts the mock behind the mesh.
func (l *lab) worker(prefix, binary string, admin int, gateway string, to int) (*process, error) {
	path, err := l.config(prefix+"-worker.Caddyfile", fmt.Sprintf(`{
	admin 127.0.0.1:%d
	agentfm {
		mesh {
			listen /ip4/127.0.0.1/tcp/0
			bootstrap %s
			discovery off
		}
	}
	agentfm_worker {
		agent bench {
			model %s
			max_tasks 512
			max_cpu off
			max_gpu off
			runtime openai {
				base_url http://127.0.0.1:%d/v1
				routes /v1/chat/completions
			}
		}
	}
}
`, admin, gateway, model, to))
	if err != nil {
		return nil, err
	}
	return l.start(prefix+"-worker", binary, "run", "--config", path)
}
