// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// serveProxy serves a proxy on loopback, and returns its address and its log.
func serveProxy(t *testing.T, e *egress) (string, *observer.ObservedLogs) {
	t.Helper()
	core, seen := observer.New(zapcore.DebugLevel)
	p := newProxy(e, func() *zap.Logger { return zap.New(core) })
	s := httptest.NewServer(p)
	t.Cleanup(func() {
		s.Close()
		p.Close()
	})
	return s.Listener.Addr().String(), seen
}

// exchange sends a text to an address, and returns the first line of what comes back,
// and its body.
func exchange(t *testing.T, address, text string) (string, string) {
	t.Helper()
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	go func() { _, _ = io.WriteString(c, text) }()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err.Error(), ""
	}
	defer resp.Body.Close()
	if strings.HasPrefix(text, "CONNECT") && resp.StatusCode == http.StatusOK {
		return resp.Status, ""
	}
	b, _ := io.ReadAll(resp.Body)
	return resp.Status, string(b)
}

func TestProxyRequests(t *testing.T) {
	n := newInternet(t, testZone(), "good.test:TLS", "good.test:WEB", "*.wild.test:WEB", "good.test:80", farAway+":WEB",
		"loopback.test:WEB", "private.test:WEB", "cgnat.test:WEB", "meta.test:WEB", "meta.test:80", "meta6.test:WEB", "mapped.test:WEB",
		"loopback6.test:WEB", "nat64.test:WEB", "zero.test:WEB", "multicast.test:WEB", "linklocal.test:WEB", "mixed.test:WEB", "nowhere.test:WEB")
	address, seen := serveProxy(t, n.egress)
	for _, tc := range []struct{ request, status, body string }{
		{"CONNECT good.test:TLS HTTP/1.1", "200", ""},
		{"CONNECT GOOD.test.:TLS HTTP/1.1", "200", ""},
		{"CONNECT mixed.test:WEB HTTP/1.1", "200", ""}, // at the one address that may be
		{"CONNECT " + farAway + ":WEB HTTP/1.1", "200", ""},
		{"CONNECT [::ffff:127.0.0.2]:WEB HTTP/1.1", "200", ""}, // the same address
		{"CONNECT a.wild.test:WEB HTTP/1.1", "200", ""},
		{"CONNECT wild.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT other.test:TLS HTTP/1.1\r\nHost: good.test:TLS", "403", ""},
		{"CONNECT " + farAway + ":TLS HTTP/1.1", "403", ""}, // good.test by its address
		{"CONNECT good.test:1 HTTP/1.1", "403", ""},
		{"CONNECT good.test HTTP/1.1", "403", ""},
		{"CONNECT 127.0.0.1:WEB HTTP/1.1", "403", ""},
		{"CONNECT 127.2:WEB HTTP/1.1", "403", ""},
		{"CONNECT 0x7f000002:WEB HTTP/1.1", "403", ""},
		{"CONNECT 2130706434:WEB HTTP/1.1", "403", ""},
		{"CONNECT [::1]:WEB HTTP/1.1", "403", ""},
		{"CONNECT x@good.test:TLS HTTP/1.1", "403", ""},
		{"CONNECT good.test:TLS@other.test:TLS HTTP/1.1", "40", ""},
		{"CONNECT good.test:TLS/x HTTP/1.1", "40", ""},
		{"CONNECT http://good.test:TLS HTTP/1.1", "40", ""},
		{"CONNECT /good.test:TLS HTTP/1.1", "403", ""},
		{"CONNECT localhost:WEB HTTP/1.1", "403", ""},
		{"CONNECT dns.google:443 HTTP/1.1", "403", ""},
		{"CONNECT nowhere.test:WEB HTTP/1.1", "502", ""},
		{"CONNECT loopback.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT loopback6.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT private.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT cgnat.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT meta.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT meta6.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT mapped.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT nat64.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT zero.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT multicast.test:WEB HTTP/1.1", "403", ""},
		{"CONNECT linklocal.test:WEB HTTP/1.1", "403", ""},

		{"GET http://good.test:WEB/a?b=c HTTP/1.1", "200", "GET /a?b=c for good.test:WEB"},
		{"GET http://good.test:WEB/ HTTP/1.1\r\nHost: other.test", "200", "GET / for good.test:WEB"},
		{"GET http://GOOD.test.:WEB/ HTTP/1.1", "200", "GET / for good.test:WEB"},
		{"GET http://good.test:WEB/ HTTP/1.1\r\nConnection: X-Hop, Upgrade\r\nX-Hop: 1\r\nUpgrade: h2c\r\nProxy-Authorization: Basic eA==", "200", "GET / for good.test:WEB"},
		{"GET http://other.test:WEB/ HTTP/1.1\r\nHost: good.test:WEB", "403", ""},
		{"GET http://meta.test/latest/meta-data/ HTTP/1.1", "403", ""},
		{"GET http://private.test:WEB/ HTTP/1.1", "403", ""},
		{"GET http://169.254.169.254/ HTTP/1.1\r\nHost: good.test:WEB", "403", ""},
		{"GET / HTTP/1.1\r\nHost: good.test:WEB", "400", ""},
		{"GET https://good.test:TLS/ HTTP/1.1", "400", ""},
		{"GET ftp://good.test:WEB/ HTTP/1.1", "400", ""},
		{"GET http:///x HTTP/1.1\r\nHost: good.test:WEB", "400", ""},
		{"GET //good.test:WEB/ HTTP/1.1", "400", ""},
		{"GET http://good.test:WEB@other.test:WEB/ HTTP/1.1", "40", ""},
		{"GET http://good.test:WEB:WEB/ HTTP/1.1", "40", ""},
		{"GET http://good.test:WEB/ HTTP/1.1\r\nHost: a\r\nHost: b", "400", ""},
		{"GET http://good.test:WEB/ HTTP/1.1\r\nX-Large: " + strings.Repeat("x", 2*maxLinkHeader), "200", ""}, // here; a link's server refuses
	} {
		text := n.ports(tc.request) + "\r\n"
		if !strings.Contains(text, "\r\nHost:") {
			text += "Host: x\r\n"
		}
		status, body := exchange(t, address, text+"Connection: close\r\n\r\n")
		if !strings.HasPrefix(status, tc.status) || tc.body != "" && body != n.ports(tc.body) {
			t.Errorf("%.80s: %s %q, want %s %q", tc.request, status, body, tc.status, n.ports(tc.body))
		}
		if tc.status == "403" && strings.Contains(body, "address") {
			t.Errorf("%.80s: the agent is told %q", tc.request, body)
		}
	}
	if lines := seen.FilterMessage("the agent wanted to go where it may not").Len(); lines == 0 || lines > logLines {
		t.Errorf("%d lines in the log, want %d at most", lines, logLines)
	}
}

// checkConnections wants the log to tell of connections.
func checkConnections(t *testing.T, seen *observer.ObservedLogs) {
	t.Helper()
	eventually(t, "the log tells of a connection to good.test", func() bool {
		for _, line := range seen.FilterMessage("the agent had a connection").All() {
			fields := line.ContextMap()
			if to, _ := fields["to"].(string); strings.HasPrefix(to, "good.test:") && strings.HasPrefix(fields["address"].(string), farAway) &&
				fields["sent"].(int64) > 0 && fields["received"].(int64) > 0 {
				return true
			}
		}
		return false
	})
}

// connect opens a tunnel.
func connect(t *testing.T, proxy, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to); err != nil {
		t.Fatal(err)
	}
	const established = "HTTP/1.1 200 Connection established\r\n\r\n"
	got := make([]byte, len(established))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != established {
		t.Fatalf("%s: %q %v", to, got, err)
	}
	return c
}

func TestTunnel(t *testing.T) {
	n := newInternet(t, testZone(), "good.test:TLS", "good.test:WEB", farAway+":WEB")
	address, seen := serveProxy(t, n.egress)
	for _, tc := range []struct {
		to, name string
		want     bool
	}{
		{"good.test:TLS", "good.test", true},
		{"good.test:TLS", "GOOD.test", true},
		{"good.test:TLS", "other.test", false},
		{"good.test:TLS", "", false},
		{"good.test:TLS", "127.0.0.2", false}, // no name either
	} {
		plain := connect(t, address, n.ports(tc.to))
		c := tls.Client(plain, &tls.Config{ServerName: tc.name, InsecureSkipVerify: true})
		_, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		if tc.want != strings.Contains(string(b), "GET / for good.test") {
			t.Errorf("%s by the name %q: %q (%v)", tc.to, tc.name, b, err)
		}
		plain.Close()
	}
	// To a name, no plain HTTP; to an address, what the operator makes of it.
	for to, want := range map[string]bool{"good.test:WEB": false, farAway + ":WEB": true} {
		c := connect(t, address, n.ports(to))
		_, _ = io.WriteString(c, "GET / HTTP/1.0\r\nHost: other.test\r\n\r\n")
		if b, _ := io.ReadAll(c); want != strings.Contains(string(b), "for other.test") {
			t.Errorf("plain HTTP to %s: %q", to, b)
		}
	}
	checkConnections(t, seen)
}

// A name server that changes its mind, answers for a connection that is not made.
func TestRebinding(t *testing.T) {
	n := newInternet(t, testZone(), "rebind.test:TLS")
	address, _ := serveProxy(t, n.egress)
	count := make(map[string]int)
	for range 20 {
		status, _ := exchange(t, address, n.ports("CONNECT rebind.test:TLS HTTP/1.1\r\nHost: x\r\n\r\n"))
		count[status[:3]]++
	}
	if count["200"] != 10 || count["403"] != 10 {
		t.Errorf("%v, want 10 of each", count)
	}
}

func TestOwnAddresses(t *testing.T) {
	_, mine, _ := net.ParseCIDR("9.8.7.6/24")
	mine.IP = net.IPv4(9, 8, 7, 6)
	own := []net.Addr{mine, &net.IPNet{IP: net.ParseIP("2600::5"), Mask: net.CIDRMask(64, 128)}}
	for address, want := range map[string]bool{
		"9.8.7.6:443": false, "[::ffff:9.8.7.6]:443": false, "9.8.7.5:443": true, "[2600::5]:1": false, "[2600::6]:1": true, "[2600::6%eth0]:1": false, "x": false,
	} {
		if err := new(egress).check(address, own); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// FuzzProxy wants no request to make the proxy look up anything that is not on its list.
func FuzzProxy(f *testing.F) {
	for _, s := range []string{
		"CONNECT good.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT other.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n",
		"CONNECT good.test:443@other.test:443 HTTP/1.1\r\n\r\n", "CONNECT /good.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://good.test/a HTTP/1.1\r\nHost: other.test\r\n\r\n", "GET http://good.test:80@other.test/ HTTP/1.0\r\n\r\n",
		"GET http://good.test:443/ HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://127.0.0.1%2f@good.test/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://GOOD.TEST.:0080/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "GET http://[::1]/ HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(s)))
		if err != nil {
			return
		}
		z := zone{"good.test": always(), "*": func(int) []string {
			t.Errorf("another name is looked up for %q", s)
			return nil
		}}
		p := newProxy(&egress{
			rules:    []rule{{target: target{name: "good.test", port: 443}}, {target: target{name: "good.test", port: 80}}},
			resolver: z.resolver(),
		}, zap.NewNop)
		defer p.Close()
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code < 400 {
			t.Errorf("%q: %d", s, w.Code)
		}
	})
}
