// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// attempt is what the probe is to try, and whether it may succeed.
type attempt struct {
	Do   string `json:"do"`
	To   string `json:"to"`
	Name string `json:"name"`
	Send string `json:"send"`

	want string // how the result begins; empty for an error
}

// reach has the probe try, and checks what came of it.
func (f *fixture) reach(attempts []attempt) {
	f.t.Helper()
	list, err := json.Marshal(attempts)
	if err != nil {
		f.t.Fatal(err)
	}
	exit, out := f.answer(string(list))
	var got []string
	if err := json.Unmarshal([]byte(out), &got); err != nil || exit.Code != 0 || len(got) != len(attempts) {
		f.t.Fatalf("%+v %v: %s", exit, err, out)
	}
	for i, a := range attempts {
		reached := strings.HasPrefix(got[i], "reached")
		if a.want == "" && reached || a.want != "" && !strings.HasPrefix(got[i], "reached "+a.want) {
			f.t.Errorf("%s %s %s: %s; want %q", a.Do, a.To, a.Name, got[i], a.want)
		}
	}
}

// trap is what nobody may reach: a port of this machine over TCP, UDP, and an abstract
// Unix socket. It counts who does.
type trap struct {
	port   int
	unix   string
	caught atomic.Int64
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	var c trap
	all, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	c.port = all.Addr().(*net.TCPAddr).Port
	c.unix = fmt.Sprintf("@agentfm-trap-%d", c.port)
	unix, err := net.Listen("unix", c.unix)
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp4", all.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{all, unix} {
		go func() {
			for {
				s, err := l.Accept()
				if err != nil {
					return
				}
				c.caught.Add(1)
				_, _ = io.WriteString(s, "caught")
				s.Close()
			}
		}()
	}
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := packets.ReadFrom(b)
			if err != nil {
				return
			}
			c.caught.Add(1)
			_, _ = packets.WriteTo([]byte("caught"), from)
		}
	}()
	t.Cleanup(func() {
		all.Close()
		unix.Close()
		packets.Close()
	})
	return &c
}

// attempts are all ways to it, and to what else a container with no network must not
// reach.
func (c *trap) attempts(t *testing.T) []attempt {
	t.Helper()
	addresses := []string{"127.0.0.1", "[::1]", "172.17.0.1"} // the last is Docker's usual gateway
	mine, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range mine {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			addresses = append(addresses, n.IP.String())
		}
	}
	list := []attempt{
		{Do: "unix", To: c.unix},
		{Do: "unix", To: "/var/run/docker.sock"},
		{Do: "tcp", To: "169.254.169.254:80"}, {Do: "tcp", To: "[fd00:ec2::254]:80"}, {Do: "tcp", To: "100.100.100.200:80"},
		{Do: "udp", To: "127.0.0.11:53"}, {Do: "lookup", To: "secret.example.com"}, {Do: "lookup", To: "host.docker.internal"},
		{Do: "get", To: "https://1.1.1.1/dns-query?name=secret.example.com"},
		{Do: "socket", To: "2 3 1"},    // AF_INET, SOCK_RAW, ICMP
		{Do: "socket", To: "10 3 58"},  // AF_INET6, SOCK_RAW, ICMPv6
		{Do: "socket", To: "17 3 768"}, // AF_PACKET
	}
	for _, a := range addresses {
		to := fmt.Sprintf("%s:%d", a, c.port)
		list = append(list, attempt{Do: "tcp", To: to}, attempt{Do: "udp", To: to}, attempt{Do: "tcp", To: a + ":2375"})
		if a != "127.0.0.1" && a[0] != '[' {
			list = append(list, attempt{Do: "ping", To: a})
		}
	}
	return list
}

func TestNetworkNone(t *testing.T) {
	t.Parallel()
	c := newTrap(t)
	neighbour := startProbe(t, "listen 4567", nil)
	task, out := neighbour.task("")
	stop, done := neighbour.start(task)
	out.await(t, "listening")
	f := startProbe(t, "reach", nil)
	f.reach(append(c.attempts(t),
		attempt{Do: "unix", To: "@agentfm-probe-4567"}, attempt{Do: "tcp", To: "127.0.0.1:4567"}, attempt{Do: "udp", To: "127.0.0.1:4567"}))
	if n := c.caught.Load(); n != 0 {
		t.Errorf("%d came through", n)
	}
	stop(errTest)
	<-done
}

// What is served in a container is there when it has the prompt. Where that is an
// argument, a machine under load may be too slow once.
func TestNetworkIsThereFirst(t *testing.T) {
	t.Parallel()
	for prompt, may := range map[string]int{promptArgument: 1, promptStdin: 0} {
		f := startProbe(t, "first 11434", func(r *Runtime) {
			r.Prompt = prompt
			r.Network = &Network{Mode: networkModel, URL: "http://127.0.0.1:1"}
		})
		late := 0
		for range 3 {
			if exit, out := f.answer("x"); exit.Code != 0 || !strings.HasPrefix(out, "0 ") {
				t.Logf("%s: %+v, refused %s", prompt, exit, out)
				late++
			}
		}
		if late > may {
			t.Errorf("%s: late for %d of 3 agents", prompt, late)
		}
	}
}

// Where it was not found early, or in another container, it is there a moment later, and
// a prompt on standard input waits for it.
func TestNetworkIsThereLater(t *testing.T) {
	t.Parallel()
	other, _ := newNetns(t)
	wrong, err := (&netns{reopen(t, other)}).open(modelPort)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*door{"not found": nil, "in another container": wrong} {
		for _, prompt := range []string{promptStdin, promptArgument} {
			f := startProbe(t, "first 11434", func(r *Runtime) {
				r.Prompt = prompt
				r.Network = &Network{Mode: networkModel, URL: "http://127.0.0.1:1"}
			})
			f.outlet.early = func(context.Context, string, int) func() *door { return func() *door { return d } }
			exit, out := f.answer("x")
			if exit.Code != 0 || out == "never" || prompt == promptStdin && !strings.HasPrefix(out, "0 ") {
				t.Errorf("%s, %s: %+v, %s", name, prompt, exit, out)
			}
		}
	}
	if c, err := other.dial(t.Context(), modelPort); err == nil {
		c.Close()
		t.Error("another container was left with a listener")
	}
}

// A model server on this machine's loopback, and nothing beside it.
func TestNetworkModel(t *testing.T) { eachWay(t, testNetworkModel) }

func testNetworkModel(t *testing.T, way func(*Runtime)) {
	c := newTrap(t)
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s", r.URL.Path, r.Header.Get("Authorization"))
	}))
	defer model.Close()
	f := startProbe(t, "reach", func(r *Runtime) {
		r.Network = &Network{Mode: networkModel, URL: model.URL, APIKey: "s3cret"}
		way(r)
	})
	const inside = "http://127.0.0.1:11434"
	f.reach(append(c.attempts(t),
		attempt{Do: "get", To: inside + "/v1/models", want: "200 /v1/models Bearer s3cret"},
		attempt{Do: "get", To: inside + "/v1/../api/tags", want: "403"},
		attempt{Do: "get", To: inside + "/api/tags", want: "403"},
		attempt{Do: "tcp", To: model.Listener.Addr().String()},
		attempt{Do: "tcp", To: "127.0.0.1:11434", Send: "CONNECT 127.0.0.1:" + strconv.Itoa(c.port) + " HTTP/1.1\r\nHost: x\r\n\r\n", want: "HTTP/1.1 403"},
	))
	if n := c.caught.Load(); n != 0 {
		t.Errorf("%d came through", n)
	}
	f = startProbe(t, "inspect", func(r *Runtime) {
		r.Tmpfs = "8MiB"
		r.Network = &Network{Mode: networkModel, URL: model.URL, APIKey: "s3cret"}
		way(r)
	})
	_, out := f.answer("")
	var got report
	if err := json.Unmarshal([]byte(out), &got); err != nil || strings.Contains(out, "s3cret") {
		t.Fatalf("%v: %s", err, out)
	}
	checkSandbox(t, got)
	for _, want := range modelVariables(modelPort) {
		if !slices.Contains(got.Env, want) {
			t.Errorf("environment %v lacks %s", got.Env, want)
		}
	}
}

// A container that is started ahead reaches its model server, too.
func TestNetworkWarm(t *testing.T) { eachWay(t, testNetworkWarm) }

func testNetworkWarm(t *testing.T, way func(*Runtime)) {
	model := httptest.NewServer(http.NotFoundHandler())
	defer model.Close()
	f := startWarm(t, fmt.Sprintf("first %d", modelPort), 1, func(r *Runtime) {
		r.Network = &Network{Mode: networkModel, URL: model.URL}
		way(r)
	})
	f.waiting(1)
	task, out := f.task("x")
	if exit, err := f.Run(t.Context(), task); err != nil || exit != (worker.Exit{}) || !strings.HasPrefix(out.String(), "0 ") {
		t.Errorf("%+v, %v: %s", exit, err, out)
	}
}

// The servers of a list, by the names that they have on it, and nothing beside them.
func TestNetworkEgress(t *testing.T) { eachWay(t, testNetworkEgress) }

func testNetworkEgress(t *testing.T, way func(*Runtime)) {
	c := newTrap(t)
	n := newInternet(t, testZone(), "good.test:TLS", "good.test:WEB", "*.wild.test:TLS", "rebind.test:TLS", "loopback.test:WEB", "private.test:WEB",
		"meta.test:80", "meta6.test:80", "mapped.test:WEB")
	f := startProbe(t, "reach", func(r *Runtime) {
		r.Network = &Network{Mode: networkEgress, Allow: []string{"a:1"}}
		way(r)
	})
	f.outlet.egress = *n.egress
	attempts := append(c.attempts(t), []attempt{
		{Do: "get", To: "http://good.test:WEB/a", want: "200 GET /a for good.test:WEB"},
		{Do: "get", To: "https://good.test:TLS/a", want: "200 GET /a for good.test:TLS"},
		{Do: "connect", To: "good.test:TLS", Name: "good.test", want: "secure"},
		{Do: "connect", To: "a.wild.test:TLS", Name: "a.wild.test", want: "secure"},
		{Do: "connect", To: "good.test:TLS", Name: "other.test"},
		{Do: "connect", To: "good.test:TLS", Name: "127.0.0.2"},
		{Do: "connect", To: "wild.test:TLS", Name: "wild.test"},
		{Do: "connect", To: farAway + ":TLS", Name: "good.test"},
		{Do: "connect", To: "other.test:TLS", Name: "other.test"},
		{Do: "connect", To: "[::1]:TLS", Name: "good.test"},
		{Do: "connect", To: "cloudflare-dns.com:443", Name: "cloudflare-dns.com"},
		{Do: "get", To: "https://other.test:TLS/"},
		{Do: "get", To: "https://dns.google/dns-query"},
		{Do: "get", To: "http://other.test:WEB/", want: "403"},
		{Do: "get", To: "http://loopback.test:WEB/", want: "403"},
		{Do: "get", To: "http://mapped.test:WEB/", want: "403"},
		{Do: "get", To: "http://private.test:WEB/", want: "403"},
		{Do: "get", To: "http://meta.test/latest/", want: "403"},
		{Do: "get", To: "http://meta6.test/latest/", want: "403"},
		{Do: "get", To: "http://169.254.169.254/latest/", want: "403"},
		{Do: "connect", To: "rebind.test:TLS", Name: "rebind.test", want: "secure"},
		{Do: "connect", To: "rebind.test:TLS", Name: "rebind.test"},
		{Do: "lookup", To: "good.test"},
		{Do: "tcp", To: fmt.Sprintf("%s:%d", farAway, n.tls)},
		{Do: "udp", To: fmt.Sprintf("%s:%d", farAway, n.tls)},
		{Do: "tcp", To: "127.0.0.1:3128", Send: "GET http://other.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", want: "HTTP/1.1 403"},
	}...)
	for i, a := range attempts {
		attempts[i].To, attempts[i].want = n.ports(a.To), n.ports(a.want)
	}
	f.reach(attempts)
	if got := c.caught.Load(); got != 0 {
		t.Errorf("%d came through", got)
	}
}

// The engine's network host is what the log warns of.
func TestNetworkHost(t *testing.T) {
	t.Parallel()
	c := newTrap(t)
	f := startProbe(t, "reach", func(r *Runtime) { r.Network = &Network{Mode: networkHost} })
	f.reach([]attempt{{Do: "tcp", To: fmt.Sprintf("127.0.0.1:%d", c.port), want: "caught"}, {Do: "unix", To: c.unix, want: "caught"}})
}

// A network of Docker's that is called internal leads to this machine all the same: it
// is none of the ways in which a container is kept apart here.
func TestInternalNetworkIsNoIsolation(t *testing.T) {
	t.Parallel()
	c := newTrap(t)
	f := startProbe(t, "reach", nil)
	name := fmt.Sprintf("agentfm-test-%d", time.Now().UnixNano())
	if _, err := f.client().NetworkCreate(t.Context(), name, network.CreateOptions{Driver: "bridge", Internal: true}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.client().NetworkRemove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}()
	made, err := f.client().NetworkInspect(t.Context(), name, network.InspectOptions{})
	if err != nil || len(made.IPAM.Config) == 0 || !made.Internal {
		t.Fatalf("%+v, %v", made, err)
	}
	f.ready.Load().spec.network = &outlet{mode: name}
	f.reach([]attempt{{Do: "tcp", To: fmt.Sprintf("%s:%d", made.IPAM.Config[0].Gateway, c.port), want: "caught"}})
	if c.caught.Load() == 0 {
		t.Error("nothing came through: the documentation says that it does")
	}
}

// A model server has a network by the same rules.
func TestServeEgress(t *testing.T) { eachWay(t, testServeEgress) }

func testServeEgress(t *testing.T, way func(*Runtime)) {
	n := newInternet(t, testZone(), "good.test:TLS")
	c := configure(t, testAgent(t), func(r *Runtime) {
		r.Network = &Network{Mode: networkEgress, Allow: []string{"a:1"}}
		way(r)
	})
	c.outlet.egress = *n.egress
	if _, err := c.Prepare(t.Context(), c.agent); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{"https://good.test:TLS/model": "200 GET /model", "https://other.test:TLS/": "Forbidden"} {
		if got := c.chat("get " + n.ports(url)); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}
