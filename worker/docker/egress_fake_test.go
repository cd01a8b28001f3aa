// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
)

// farAway is an address of this machine that these tests take for one of the public
// internet.
const farAway = "127.0.0.2"

// zone is what the names of a test lead to, "*" for all others. It is asked with how
// often it was asked for the name.
type zone map[string]func(n int) []string

func always(addresses ...string) func(int) []string {
	return func(int) []string { return addresses }
}

// resolver returns one that asks the zone and nobody else.
func (z zone) resolver() *net.Resolver {
	var mu sync.Mutex
	asked := make(map[string]int)
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				question := make([]byte, 2)
				if _, err := io.ReadFull(theirs, question); err != nil {
					return
				}
				question = make([]byte, binary.BigEndian.Uint16(question))
				if _, err := io.ReadFull(theirs, question); err != nil {
					return
				}
				mu.Lock()
				answer := z.answer(question, asked)
				mu.Unlock()
				if _, err := theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
					return
				}
			}
		}()
		return ours, nil
	}}
}

func (z zone) answer(question []byte, asked map[string]int) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeSuccess, nil
	name := strings.TrimSuffix(q.Name.String(), ".")
	addresses := z[name]
	if addresses == nil {
		addresses = z["*"]
	}
	if addresses == nil {
		m.RCode = dnsmessage.RCodeNameError
	} else {
		key := name + q.Type.String()
		for _, s := range addresses(asked[key]) {
			header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
			switch a := netip.MustParseAddr(s); {
			case a.Is4() && q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && q.Type == dnsmessage.TypeAAAA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
		asked[key]++
	}
	b, _ := m.Pack()
	return b
}

// internet is a network with a TLS and an HTTP server at farAway, and something that
// nobody may reach on the same ports of 127.0.0.1.
type internet struct {
	tls, http int // ports
	forbidden atomic.Int64
	egress    *egress
}

// newInternet makes the network, and what an agent may reach of it: with TLS and HTTP
// in an entry standing for the ports.
func newInternet(t *testing.T, z zone, allow ...string) *internet {
	t.Helper()
	n := new(internet)
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s for %s", r.Method, r.RequestURI, r.Host)
		for _, name := range []string{"Upgrade", "Proxy-Authorization", "X-Hop", "X-Forwarded-For", "Authorization"} {
			if v := r.Header.Get(name); v != "" {
				_, _ = fmt.Fprintf(w, ", %s: %s", name, v)
			}
		}
	})
	open := func(start func(*httptest.Server)) int {
		s := httptest.NewUnstartedServer(answer)
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.Listener.Close()
		// a port that is free at both addresses
		var trap net.Listener
		for trap == nil {
			l, err := net.Listen("tcp4", farAway+":0")
			if err != nil {
				t.Fatal(err)
			}
			if trap, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)); err != nil {
				l.Close()
				continue
			}
			s.Listener = l
		}
		go func() {
			for {
				c, err := trap.Accept()
				if err != nil {
					return
				}
				n.forbidden.Add(1)
				c.Close()
			}
		}()
		start(s)
		t.Cleanup(func() {
			s.Close()
			trap.Close()
			if n.forbidden.Load() != 0 {
				t.Errorf("%d connections to 127.0.0.1", n.forbidden.Load())
			}
		})
		return s.Listener.Addr().(*net.TCPAddr).Port
	}
	n.tls, n.http = open((*httptest.Server).StartTLS), open((*httptest.Server).Start)
	n.egress = &egress{resolver: z.resolver(), public: func(a netip.Addr) bool { return a == netip.MustParseAddr(farAway) || ipclass.Public(a) }}
	for _, entry := range allow {
		r, err := parseRule(n.ports(entry))
		if err != nil {
			t.Fatal(err)
		}
		n.egress.rules = append(n.egress.rules, r)
	}
	return n
}

// ports puts the ports into a text.
func (n *internet) ports(s string) string {
	return strings.NewReplacer(":TLS", ":"+strconv.Itoa(n.tls), ":WEB", ":"+strconv.Itoa(n.http)).Replace(s)
}

// testZone has what a hostile name server may answer.
func testZone() zone {
	return zone{
		"good.test": always(farAway), "a.wild.test": always(farAway), "wild.test": always(farAway), "other.test": always(farAway),
		"loopback.test": always("127.0.0.1"), "private.test": always("10.1.2.3"), "cgnat.test": always("100.64.0.1"),
		"meta.test": always("169.254.169.254"), "meta6.test": always("fd00:ec2::254"), "mapped.test": always("::ffff:127.0.0.1"),
		"loopback6.test": always("::1"), "nat64.test": always("64:ff9b::7f00:1"), "zero.test": always("0.0.0.0"),
		"multicast.test": always("224.0.0.1"), "linklocal.test": always("fe80::1"),
		"mixed.test": always("127.0.0.1", farAway, "::1"),
		"rebind.test": func(n int) []string {
			if n%2 == 0 {
				return []string{farAway}
			}
			return []string{"127.0.0.1"}
		},
	}
}
