// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Versions of the peers that are not of the system.
const (
	portkeyPackage = "@portkey-ai/gateway@1.15.2"
	litellmPackage = "litellm[proxy]==1.77.7"
)

// errMissing says that a peer cannot be had here.
var errMissing = errors.New("cannot be had here")

// peer is a program of others that can stand before the mock.
type peer struct {
	name  string
	start func(l *lab, ctx context.Context, port, to int) (*process, error)
	// slow says that it takes milliseconds a request and rewrites answers: it is measured
	// by B1 to B3 alone, and its answers are looked at for the text.
	slow  bool
	ready string // the path that answers with 200 when it is up
	// header is what it wants to be told with each request.
	header func(to int) string
}

var peers = []peer{
	{name: nginx, start: (*lab).nginx},
	{name: haproxy, start: (*lab).haproxy},
	{name: portkey, start: (*lab).portkey, slow: true, ready: "/", header: func(to int) string {
		return fmt.Sprintf("x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:%d/v1\r\n", to)
	}},
	{name: litellm, start: (*lab).litellm, slow: true, ready: "/health/liveliness"},
}

// addPeers starts what can be had of the peers.
func (l *lab) addPeers(ctx context.Context, to int) error {
	for _, p := range peers {
		if p.slow && !l.o.slow {
			continue
		}
		ports, err := freePorts(1)
		if err != nil {
			return err
		}
		proc, err := p.start(l, ctx, ports[0], to)
		if err == nil {
			s := &side{name: p.name, port: ports[0], procs: []*process{proc, l.mock}, slow: p.slow}
			if p.header != nil {
				s.header = p.header(to)
			}
			up := func(status int, _ string) bool { return status == http.StatusOK }
			ready := p.ready
			if ready == "" {
				ready = "/v1/models"
			}
			if err = await(ctx, proc, fmt.Sprintf("http://127.0.0.1:%d%s", ports[0], ready), key, up); err == nil {
				l.sides = append(l.sides, s)
				continue
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why, _, _ := strings.Cut(err.Error(), "\n")
		fmt.Fprintf(os.Stderr, "n/a: %s: %v\n", p.name, err)
		l.missing[p.name] = why
	}
	return nil
}

// debian finds a program, and installs it where that is possible and wanted.
func (l *lab) debian(ctx context.Context, name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	if !l.o.install || os.Getuid() != 0 {
		return "", fmt.Errorf("%s is not installed: %w", name, errMissing)
	}
	for _, args := range [][]string{{"update", "-qq"}, {"install", "-y", "-qq", "--no-install-recommends", name}} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("apt-get could not install %s: %w\n%s", name, err, out)
		}
	}
	return exec.LookPath(name)
}

// fetched returns a file that commands make, in the folder of what the suite has
// installed, unless it is there.
func (l *lab) fetched(ctx context.Context, name string, commands func(dir string) [][]string, file string) (string, error) {
	dir, err := filepath.Abs(filepath.Join("bench", ".peers", name))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, file)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if !l.o.install {
		return "", fmt.Errorf("%s is not installed: %w", name, errMissing)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, args := range commands(dir) {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s could not be installed by %s: %w\n%s", name, args[0], err, out)
		}
	}
	_, err = os.Stat(path)
	return path, err
}

// nginx starts nginx.
func (l *lab) nginx(ctx context.Context, port, to int) (*process, error) {
	program, err := l.debian(ctx, "nginx")
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

// haproxy starts HAProxy.
func (l *lab) haproxy(ctx context.Context, port, to int) (*process, error) {
	program, err := l.debian(ctx, "haproxy")
	if err != nil {
		return nil, err
	}
	path, err := l.config("haproxy.cfg", fmt.Sprintf(`global
	maxconn 4096
defaults
	mode http
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	http-reuse always
	option http-no-delay
frontend in
	bind 127.0.0.1:%d
	default_backend mock
backend mock
	server mock 127.0.0.1:%d
`, port, to))
	if err != nil {
		return nil, err
	}
	return l.start("haproxy", program, "-db", "-f", path)
}

// portkey starts Portkey's gateway, of npm.
func (l *lab) portkey(ctx context.Context, port, _ int) (*process, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, fmt.Errorf("there is no node: %w", errMissing)
	}
	path, err := l.fetched(ctx, portkey, func(dir string) [][]string {
		return [][]string{{"npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", portkeyPackage}}
	}, "node_modules/@portkey-ai/gateway/build/start-server.js")
	if err != nil {
		return nil, err
	}
	return l.start("portkey", node, path, "--headless", fmt.Sprintf("--port=%d", port))
}

// litellm starts LiteLLM's proxy, of PyPI, with a worker for each processor.
func (l *lab) litellm(ctx context.Context, port, to int) (*process, error) {
	path, err := l.fetched(ctx, litellm, func(dir string) [][]string {
		return [][]string{{"python3", "-m", "venv", dir}, {filepath.Join(dir, "bin", "pip"), "install", "-q", "--disable-pip-version-check", litellmPackage}}
	}, "bin/litellm")
	if err != nil {
		return nil, err
	}
	config, err := l.config("litellm.yaml", fmt.Sprintf(`model_list:
  - model_name: %[1]s
    litellm_params:
      model: openai/%[1]s
      api_base: http://127.0.0.1:%[2]d/v1
      api_key: none
litellm_settings:
  telemetry: false
`, model, to))
	if err != nil {
		return nil, err
	}
	return l.start("litellm", path, "--config", config, "--host", "127.0.0.1", "--port", fmt.Sprint(port), "--num_workers", "2", "--telemetry", "False")
}
