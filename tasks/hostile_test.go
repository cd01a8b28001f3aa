// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// rawServer answers each connection by hand, and returns where it is and how many came.
func rawServer(t *testing.T, answer func(c net.Conn, closed <-chan struct{})) (address string, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	count = new(atomic.Int64)
	closed, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			answer(c, closed)
			c.Close()
		}
	}()
	t.Cleanup(func() { close(closed); l.Close(); <-done })
	return l.Addr().String(), count
}

// forever writes a text until the other side goes away.
func forever(c net.Conn, text string) {
	for text = strings.Repeat(text, 1+4096/len(text)); ; {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

// TestHostileReceivers wants an attempt to end in its time, and to read little, whatever
// the receiver does.
func TestHostileReceivers(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	request := func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
	for name, c := range map[string]struct {
		scheme string
		answer func(c net.Conn, closed <-chan struct{})
		status int
		code   string
	}{
		"endless body": {"http", func(c net.Conn, _ <-chan struct{}) {
			request(c)
			forever(c, "HTTP/1.1 200 OK\r\nContent-Length: 107374182400\r\n\r\n")
		}, 200, ""},
		"endless chunks": {"http", func(c net.Conn, _ <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			forever(c, "1\r\nx\r\n")
		}, 200, ""},
		"endless extension of a chunk": {"http", func(c net.Conn, _ <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
			forever(c, "x")
		}, 200, ""},
		"a byte a minute": {"http", func(c net.Conn, closed <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
			<-closed
		}, 200, ""},
		"half a status": {"http", func(c net.Conn, closed <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 2")
			<-closed
		}, 0, "timeout"},
		"no TLS": {"https", func(_ net.Conn, closed <-chan struct{}) { <-closed }, 0, "timeout"},
		"a thousand headers": {"http", func(c net.Conn, _ <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n"+strings.Repeat("X-Header: a header of a thousand\r\n", 1000)+"\r\n")
		}, 204, ""},
		"endless headers": {"http", func(c net.Conn, _ <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			forever(c, "X-Header: one of many\r\n")
		}, 0, "unreachable"},
		"endless status line": {"http", func(c net.Conn, _ <-chan struct{}) { request(c); forever(c, "HTTP/1.1 200 OK") }, 0, "unreachable"},
		"endless early hints": {"http", func(c net.Conn, _ <-chan struct{}) { request(c); forever(c, "HTTP/1.1 103 Early Hints\r\n\r\n") }, 0, "unreachable"},
		"redirect to itself": {"http", func(c net.Conn, _ <-chan struct{}) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 308 Permanent Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")
		}, 308, ""},
		"nothing of HTTP": {"http", func(c net.Conn, _ <-chan struct{}) { request(c); _, _ = io.WriteString(c, "220 smtp ready\r\n") }, 0, "unreachable"},
		"hangs up":        {"http", func(net.Conn, <-chan struct{}) {}, 0, "unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			address, count := rawServer(t, c.answer)
			timeout := 10 * time.Second // more than those need that do not stall
			if c.code == "timeout" || name == "a byte a minute" {
				timeout = time.Second / 2
			}
			p := newPoster(timeout)
			defer p.close()
			var limited atomic.Bool
			dial := p.transport.DialContext
			p.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := dial(ctx, network, address)
				if l, ok := c.(*limitedConn); ok && l.left == maxAnswer {
					limited.Store(true)
				}
				return c, err
			}
			status, _, err := p.post(t.Context(), &Record{Webhook: &Webhook{URL: c.scheme + "://" + address + "/"}}, nil, time.Now())
			if status != c.status || errorCode(err) != c.code {
				t.Errorf("got %d, %v; want %d %s", status, err, c.status, c.code)
			}
			if !limited.Load() {
				t.Error("it was not bounded what is read")
			}
			if n := count.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestHostileReceiversApart wants who hangs not to keep webhooks from others, also those
// of the same owner.
func TestHostileReceiversApart(t *testing.T) {
	good := receive(t, func(http.ResponseWriter, *http.Request, int) {})
	p := open(t, t.TempDir(), &fakeRunner{run: says("", nil)}, Options{})
	for range 8 {
		url := deadSink(t, false)
		for range 2 * maxHostPosts {
			submit(t, p, url)
		}
	}
	s := p.service.Load().current.Load()
	await.Until(t, "webhooks that hang", func() bool {
		n, _, err := s.store.length(t.Context(), hookName)
		return err == nil && n == 8*2*maxHostPosts
	})
	id := submit(t, p, good.URL)
	r := until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	if r.Webhook.Attempts != 1 {
		t.Errorf("got %+v", r.Webhook)
	}
}

// TestSlowOfOthers wants the webhooks of one owner to a receiver that is slow to keep none of
// another owner's from it.
func TestSlowOfOthers(t *testing.T) {
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.post = time.Minute
	hold := make(chan struct{})
	rec := receive(t, func(_ http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/slow" {
			<-hold
		}
	})
	defer close(hold)
	p := open(t, t.TempDir(), &fakeRunner{run: says("", nil)}, Options{})
	for range 4 * maxHostPosts {
		submit(t, p, rec.URL+"/slow")
	}
	await.Until(t, "webhooks that hang", func() bool { return rec.count() >= maxHostPosts })
	r, err := p.Submit(t.Context(), Submission{Owner: "bob", Site: "site", Target: Target{Worker: "peer"}, Prompt: "prompt", WebhookURL: rec.URL})
	if err != nil {
		t.Fatal(err)
	}
	await.Until(t, "a delivery", func() bool {
		r, err = p.Get(t.Context(), "bob", r.ID)
		return err == nil && r.Webhook.State == WebhookDelivered
	})
	if n := rec.count(); n != maxHostPosts+1 {
		t.Errorf("%d came", n)
	}
}

// nameServer is a DNS server with these addresses, of which a name gets the next list each
// time that it is asked for; the last one again and again. A list of "=name" is an alias.
func nameServer(t *testing.T, zone map[string][]string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		asked := make(map[string]int)
		for buf := make([]byte, 4096); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer, err := answerOfName(buf[:n], zone, asked); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// answerOfName answers a question.
func answerOfName(question []byte, zone map[string][]string, asked map[string]int) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 {
		return nil, errors.New("no question")
	}
	q := m.Questions[0]
	m.Response, m.Additionals = true, nil
	name := q.Name
	lists := zone[strings.TrimSuffix(name.String(), ".")]
	key := q.Type.String() + name.String()
	for hop := 0; len(lists) > 0 && hop < 10; hop++ {
		list := lists[min(asked[key], len(lists)-1)]
		alias, ok := strings.CutPrefix(list, "=")
		if !ok {
			asked[key]++
			for a := range strings.FieldsSeq(list) {
				addr := netip.MustParseAddr(a)
				switch {
				case addr.Is4() && q.Type == dnsmessage.TypeA:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: q.Class}, Body: &dnsmessage.AResource{A: addr.As4()}})
				case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: q.Class}, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
				}
			}
			break
		}
		to := dnsmessage.MustNewName(alias + ".")
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Class: q.Class}, Body: &dnsmessage.CNAMEResource{CNAME: to}})
		name, lists = to, zone[alias]
	}
	return m.Pack()
}

// errOutside stands for the internet, where no test goes.
var errOutside = errors.New("outside of the test")

// TestDial wants no connection to be made to what is not on the public internet, whatever
// led there, and the error to say so.
func TestDial(t *testing.T) {
	address, count := rawServer(t, func(net.Conn, <-chan struct{}) {})
	_, port, _ := net.SplitHostPort(address)
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"} {
		t.Setenv(name, "http://"+address)
	}
	const public, own = "203.0.114.1", "203.0.114.2" // the first is somebody's
	old := ownAddresses
	defer func() { ownAddresses = old }()
	ownAddresses = func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.ParseIP(own), Mask: net.CIDRMask(24, 32)}}, nil
	}
	resolver := nameServer(t, map[string][]string{
		"loopback.test": {"127.0.0.1"}, "metadata.test": {"169.254.169.254"}, "private.test": {"10.1.2.3 192.168.0.1"},
		"mapped.test": {"::ffff:127.0.0.1"}, "mapped-metadata.test": {"::ffff:169.254.169.254"}, "six.test": {"::1 fd00:ec2::254 fe80::1"},
		"nat64.test": {"64:ff9b::7f00:1"}, "mixed.test": {"127.0.0.1 ::1"}, "half.test": {public + " 127.0.0.1"}, "other-half.test": {public + " ::ffff:127.0.0.1"},
		"alias.test": {"=b.test"}, "b.test": {"=c.test"}, "c.test": {"127.0.0.1"}, "zero.test": {"0.0.0.0"}, "own.test": {own}, "public.test": {public},
		"rebind.test": {public, "127.0.0.1"}, "rebind-back.test": {"127.0.0.1", public},
	})
	six := true
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		six = false
	} else {
		l.Close()
	}
	dialled := make(map[string]bool)
	p := newPoster(5 * time.Second)
	defer p.close()
	p.dialer.Resolver = resolver
	p.dialer.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error {
		if err := checkAddress(ctx, network, address, c); err != nil {
			return err
		}
		dialled[address] = true
		return errOutside
	}
	const refused, passed = "url_not_allowed", "unreachable"
	for _, c := range []struct{ host, want string }{
		{"loopback.test", refused}, {"metadata.test", refused}, {"private.test", refused}, {"mapped.test", refused}, {"mapped-metadata.test", refused},
		{"six.test", refused}, {"nat64.test", refused}, {"mixed.test", refused}, {"half.test", refused}, {"other-half.test", refused}, {"alias.test", refused},
		{"zero.test", refused}, {"own.test:80", refused}, {"own.test:8080", refused}, {"own.test:443", passed}, {"public.test", passed},
		{"rebind.test", passed}, {"rebind.test", refused}, {"rebind-back.test", refused}, {"rebind-back.test", passed}, {"nobody.test", passed},
	} {
		if !six && (c.host == "six.test" || c.host == "nat64.test") {
			continue
		}
		_, _, err := p.post(t.Context(), &Record{Webhook: &Webhook{URL: "http://" + c.host + "/"}}, nil, time.Now())
		if got := errorCode(err); got != c.want {
			t.Errorf("%s: got %s, want %s: %v", c.host, got, c.want, err)
		}
	}
	for address := range dialled {
		if host, _, _ := net.SplitHostPort(address); host != public && address != own+":443" {
			t.Errorf("%s was dialled", address)
		}
	}
	// Ports that CheckURL refuses: only the address stands in the way.
	real := newPoster(5 * time.Second)
	defer real.close()
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		resp, err := real.client.Get(fmt.Sprintf("http://%s:%s/", host, port))
		if err == nil {
			resp.Body.Close()
		}
		if !errors.Is(err, ErrURL) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if n := count.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

// TestRedirect wants nobody to be told whom the receiver names.
func TestRedirect(t *testing.T) {
	target, count := rawServer(t, func(net.Conn, <-chan struct{}) {})
	rec := receive(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		http.Redirect(w, r, "http://"+target+"/", http.StatusTemporaryRedirect)
	})
	p := newPoster(postTimeout)
	defer p.close()
	status, _, err := p.post(t.Context(), &Record{Webhook: &Webhook{URL: rec.URL}}, nil, time.Now())
	if status != http.StatusTemporaryRedirect || err != nil || count.Load() != 0 {
		t.Errorf("got %d, %v, and %d connections", status, err, count.Load())
	}
}
