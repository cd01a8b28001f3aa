// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What B12 does.
const (
	backends     = 4
	thinking     = "20ms" // of the mock
	failureRate  = 100    // requests a second, half of what the four are given
	failureSlots = 4      // of a worker
	before       = time.Second
	failureTime  = 20 * time.Second // how long a request may take
	// slowAnswer is from when on an answer tells that something was wrong.
	slowAnswer = 250 * time.Millisecond
)

// failed is what a failure did.
type failed struct {
	Side   string  `json:"side"`
	How    string  `json:"how"` // the signal
	Sent   int     `json:"sent"`
	Failed int     `json:"failed"`
	Slow   int     `json:"slow"`
	P999   float64 `json:"p999_ms"`
	Out    float64 `json:"out_ms"` // from the failure to the last request that it touched
	Error  string  `json:"error,omitempty"`
}

// cluster is a gateway before four servers.
type cluster struct {
	name    string
	port    int
	victims []*process
}

// failures is B12: of four servers one is killed, or stops to answer, under load.
func (l *lab) failures(ctx context.Context, rep *report) error {
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP}
	if l.o.form == smoke { // one that is frozen takes half a minute of all sides
		signals = signals[:1]
	}
	for _, how := range signals {
		for _, build := range []func(context.Context, []int) (*cluster, error){l.meshCluster, l.caddyCluster, l.nginxCluster, l.haproxyCluster} {
			f, err := l.fail(ctx, build, how)
			switch {
			case errors.Is(err, errMissing):
				fmt.Fprintln(os.Stderr, "n/a: B12:", err)
			case err != nil:
				return err
			default:
				rep.Failures = append(rep.Failures, f)
			}
		}
	}
	rep.findFailures()
	return nil
}

// fail starts a cluster, has one of its servers fail, and stops it all.
func (l *lab) fail(ctx context.Context, build func(context.Context, []int) (*cluster, error), how syscall.Signal) (failed, error) {
	defer l.stopSides()
	c, err := l.build(ctx, build)
	if err != nil {
		return failed{}, err
	}
	return l.strike(ctx, c, how), ctx.Err()
}

// build starts four mocks, and what stands before them.
func (l *lab) build(ctx context.Context, build func(context.Context, []int) (*cluster, error)) (*cluster, error) {
	ports, err := freePorts(backends)
	if err != nil {
		return nil, err
	}
	var mocks []*process
	for i, port := range ports {
		p, err := l.start(fmt.Sprintf("mock%d", i), l.self, roleFlag, "mock", fmt.Sprintf("127.0.0.1:%d", port), thinking)
		if err != nil {
			return nil, err
		}
		mocks = append(mocks, p)
	}
	c, err := build(ctx, ports)
	if err != nil {
		return nil, err
	}
	if c.victims == nil {
		c.victims = mocks
	}
	up := func(status int, _ string) bool { return status == http.StatusOK }
	return c, await(ctx, mocks[0], fmt.Sprintf("http://127.0.0.1:%d/v1/models", c.port), key, up)
}

func (l *lab) meshCluster(ctx context.Context, to []int) (*cluster, error) {
	g, err := l.gateway(ctx, "b12", l.o.binary, "queue {\n\t\t\twait 5s\n\t\t}")
	if err != nil {
		return nil, err
	}
	c := &cluster{name: ours, port: g.port}
	for i, port := range to {
		w, err := l.worker(fmt.Sprintf("b12-%d", i), l.o.binary, 0, g.addr, port, 1, failureSlots)
		if err != nil {
			return nil, err
		}
		c.victims = append(c.victims, w)
	}
	return c, g.awaitWorkers(ctx, backends)
}

func (l *lab) caddyCluster(_ context.Context, to []int) (*cluster, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	path, err := l.config("b12.Caddyfile", fmt.Sprintf(`{
	admin off
	auto_https off
}
http://127.0.0.1:%d {
	reverse_proxy %s {
		flush_interval -1
		request_buffers 64KiB
		lb_policy least_conn
		lb_try_duration 5s
		lb_retries 3
		lb_retry_match {
			method POST
		}
		fail_duration 10s
		health_uri /v1/models
		health_interval 500ms
		health_timeout 500ms
	}
}
`, ports[0], addresses(to, " ")))
	if err != nil {
		return nil, err
	}
	_, err = l.start("b12-caddy", l.o.binary, "run", "--config", path)
	return &cluster{name: caddy, port: ports[0]}, err
}

func (l *lab) nginxCluster(ctx context.Context, to []int) (*cluster, error) {
	program, err := l.debian(ctx, "nginx")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	path, err := l.config("b12-nginx.conf", fmt.Sprintf(`daemon off;
pid %[1]s/b12-nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/nginx;
	proxy_temp_path %[1]s/nginx;
	fastcgi_temp_path %[1]s/nginx;
	uwsgi_temp_path %[1]s/nginx;
	scgi_temp_path %[1]s/nginx;
	upstream mock { least_conn; server %[3]s max_fails=1 fail_timeout=10s; keepalive 64; }
	server {
		listen 127.0.0.1:%[2]d;
		location / {
			proxy_pass http://mock;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream error timeout non_idempotent;
			proxy_connect_timeout 1s;
			proxy_read_timeout 10s;
		}
	}
}
`, l.dir, ports[0], addresses(to, " max_fails=1 fail_timeout=10s; server ")))
	if err != nil {
		return nil, err
	}
	_, err = l.start("b12-nginx", program, "-p", l.dir, "-c", path)
	return &cluster{name: nginx, port: ports[0]}, err
}

func (l *lab) haproxyCluster(ctx context.Context, to []int) (*cluster, error) {
	program, err := l.debian(ctx, "haproxy")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	var servers strings.Builder
	for i, port := range to {
		fmt.Fprintf(&servers, "\tserver mock%d 127.0.0.1:%d check inter 500ms fall 1 observe layer7 error-limit 1 on-error mark-down\n", i, port)
	}
	path, err := l.config("b12-haproxy.cfg", fmt.Sprintf(`global
	maxconn 4096
defaults
	mode http
	timeout connect 1s
	timeout client 60s
	timeout server 10s
	timeout check 500ms
	option redispatch
	option http-buffer-request
	retries 3
	retry-on conn-failure empty-response response-timeout
frontend in
	bind 127.0.0.1:%d
	default_backend mock
backend mock
	balance leastconn
	option httpchk GET /v1/models
%s`, ports[0], servers.String()))
	if err != nil {
		return nil, err
	}
	_, err = l.start("b12-haproxy", program, "-db", "-f", path)
	return &cluster{name: haproxy, port: ports[0]}, err
}

// addresses lists addresses of loopback.
func addresses(ports []int, between string) string {
	var list []string
	for _, p := range ports {
		list = append(list, fmt.Sprintf("127.0.0.1:%d", p))
	}
	return strings.Join(list, between)
}

// answered is one request of B12.
type answered struct {
	at      time.Time // when it was sent
	took    time.Duration
	touched bool // it failed, was slow, or was tried again
	err     error
}

// strike has one of the servers fail, and says what came of it.
func (l *lab) strike(ctx context.Context, c *cluster, how syscall.Signal) failed {
	client := &http.Client{Timeout: failureTime, Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var all []answered
	var group sync.WaitGroup
	send := func(d time.Duration) {
		tick := time.NewTicker(time.Second / failureRate)
		defer tick.Stop()
		for begun := time.Now(); time.Since(begun) < d && ctx.Err() == nil; {
			<-tick.C
			group.Go(func() {
				a := ask(ctx, client, c.port)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, a)
			})
		}
	}
	send(before) // to warm up
	group.Wait()
	all = nil
	send(before)
	victim := c.victims[len(c.victims)-1]
	at := time.Now()
	err := syscall.Kill(-victim.cmd.Process.Pid, how)
	send(l.o.failure)
	group.Wait()
	if how == syscall.SIGSTOP { // so that it can be stopped
		_ = syscall.Kill(-victim.cmd.Process.Pid, syscall.SIGCONT)
	}
	out := failed{Side: c.name, How: how.String(), Sent: len(all)}
	if err != nil {
		out.Error = err.Error()
	}
	var took []time.Duration
	for _, a := range all {
		took = append(took, a.took)
		if a.err != nil {
			out.Failed++
			out.Error = a.err.Error()
		}
		if a.took > slowAnswer {
			out.Slow++
		}
		if a.touched && a.at.After(at) {
			out.Out = max(out.Out, a.at.Sub(at).Seconds()*1e3)
		}
	}
	out.P999 = quantile(took, 0.999) / 1e3
	return out
}

// ask sends one request.
func ask(ctx context.Context, client *http.Client, port int) (a answered) {
	a.at = time.Now()
	defer func() { a.took = time.Since(a.at); a.touched = a.touched || a.err != nil || a.took > slowAnswer }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/v1/chat/completions", port), bytes.NewReader(chatRequest))
	if err != nil {
		a.err = err
		return a
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		a.err = err
		return a
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		a.err = err
	case resp.StatusCode != http.StatusOK:
		a.err = fmt.Errorf("status %d: %.200s", resp.StatusCode, b)
	case !bytes.Equal(b, chatAnswer):
		a.err = fmt.Errorf("the answer is not what the mock sent")
	}
	tries := resp.Header.Get("X-AgentFM-Attempts")
	a.touched = tries != "" && tries != "1"
	return a
}

// findFailures says what B12 has shown.
func (r *report) findFailures() {
	out := map[string]float64{syscall.SIGKILL.String(): 100, syscall.SIGSTOP.String(): 1000}
	for _, f := range r.Failures {
		if f.Side != ours {
			continue
		}
		what := map[string]string{syscall.SIGKILL.String(): "killed", syscall.SIGSTOP.String(): "frozen"}[f.How]
		r.add(finding{Bench: "B12", Text: "failed requests when one of four workers is " + what, Limit: 0, Values: []float64{float64(f.Failed)}})
		r.add(finding{Bench: "B12", Text: "time until no request goes to a worker that is " + what, Unit: " ms", Limit: out[f.How], Values: []float64{f.Out}})
	}
}

// printFailures prints B12.
func (r *report) printFailures(w io.Writer) {
	if len(r.Failures) == 0 {
		return
	}
	fmt.Fprintf(w, "\nB12: one of %d servers fails under %d requests a second\n\n| side | signal | sent | failed | over %s | p99.9, ms | last one touched, ms after |\n| --- | --- | --- | --- | --- | --- | --- |\n",
		backends, failureRate, slowAnswer)
	for _, f := range r.Failures {
		fmt.Fprintf(w, "| %s | %s | %d | %d | %d | %s | %s |\n", f.Side, f.How, f.Sent, f.Failed, f.Slow, number(f.P999), number(f.Out))
	}
}
