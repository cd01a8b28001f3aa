// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

func TestBudget(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	const evil, good = "192.0.2.1:1", "192.0.2.2:1"
	for i := range 100 {
		want := "invalid_api_key"
		if i >= maxFailures {
			want = "rate_limited"
		}
		if got := d.failed(evil, fmt.Sprintf("a-guess-of-number-%d", i)); got != want {
			t.Fatalf("guess %d: got %q", i, got)
		}
	}
	_, err := d.ask("192.0.2.1:2", "Bearer "+keyOne)
	if err == nil || err.Status != 429 || err.Code != "rate_limited" || err.RetryAfter != 60 || err.Challenge != "" {
		t.Errorf("the right key: got %+v", err)
	}
	if got := d.failed("[::ffff:192.0.2.1]:1", keyOne); got != "rate_limited" {
		t.Errorf("the same address, mapped: got %q", got)
	}
	if _, err := d.ask(evil, "Basic x"); err != errRateLimited {
		t.Errorf("another scheme: got %v", err)
	}
	if _, err := d.ask(evil); err != errMissing {
		t.Errorf("no header: got %v", err)
	}
	if got := d.failed(good, keyOne); got != "" {
		t.Errorf("another client: got %q", got)
	}
	d.clock.advance(window - 1)
	if got := d.failed(evil, keyOne); got != "rate_limited" {
		t.Errorf("just before the window's end: got %q", got)
	}
	d.clock.advance(1)
	if got := d.failed(evil, keyOne); got != "" {
		t.Errorf("after the window: got %q", got)
	}
}

// A client without a budget is refused before anything is done for it, and a
// right key that was on its way when the budget ended is refused, too.
func TestBudgetBeforeKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, file, fileOne+"\n")
	d := newDesk(t, Options{File: file})
	for range maxFailures {
		d.failed("192.0.2.1:1", "a-wrong-key-of-length")
	}
	d.clock.advance(lookInterval)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	looks := func() int { return d.logs.FilterLevelExact(zapcore.ErrorLevel).Len() }
	if got := d.failed("192.0.2.1:1", fileOne); got != "rate_limited" || looks() != 0 {
		t.Errorf("got %q, %d looks at the file", got, looks())
	}
	if got := d.failed("192.0.2.2:1", fileOne); got != "" || looks() != 1 {
		t.Errorf("another client: got %q, %d looks at the file", got, looks())
	}
	d.now = func() time.Time { // is asked when the key is found
		for range maxFailures {
			d.budget.fail(netip.MustParseAddr("192.0.2.3"))
		}
		return d.clock.now()
	}
	if got := d.failed("192.0.2.3:1", fileOne); got != "rate_limited" {
		t.Errorf("guesses at the same time: got %q", got)
	}
}

// What is no guess does not count, and what is right does not.
func TestBudgetCounts(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	for range 10 * maxFailures {
		_, _ = d.ask("192.0.2.1:1")
		_, _ = d.ask("192.0.2.1:1", "")
		_, _ = d.ask("192.0.2.1:1", "Bearer "+keyOne)
	}
	if got := d.failed("192.0.2.1:1", keyOne); got != "" {
		t.Errorf("got %q", got)
	}
	for range maxFailures {
		_, _ = d.ask("192.0.2.1:1", "Bearer x y")
	}
	if got := d.failed("192.0.2.1:1", keyOne); got != "rate_limited" {
		t.Errorf("after malformed ones: got %q", got)
	}
}

func TestBudgetOfIPv6(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	for i := range 1000 {
		d.failed(fmt.Sprintf("[2001:db8:0:1::%x]:1", i), "a-wrong-key-of-length")
	}
	if got := d.failed("[2001:db8:0:1:ffff::1]:1", keyOne); got != "rate_limited" {
		t.Errorf("the same /64: got %q", got)
	}
	if got := d.failed("[2001:db8:0:2::1]:1", keyOne); got != "" {
		t.Errorf("another /64: got %q", got)
	}
}

// Clients without an address have no budget, and share none.
func TestBudgetWithoutAddress(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	for range 10 * maxFailures {
		if got := d.failed("@", "a-wrong-key-of-length"); got != "invalid_api_key" {
			t.Fatalf("got %q", got)
		}
	}
	if got := d.failed("@", keyOne); got != "" {
		t.Errorf("got %q", got)
	}
	if n := d.warnings(); n != 1 {
		t.Errorf("%d log lines", n)
	}
}

// Guesses that are sent at once get no more answers than others.
func TestBudgetAtOnce(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() { d.failed("192.0.2.1:1", "a-wrong-key-of-length") })
	}
	group.Wait()
	count := make(map[metrics.Login]int)
	for _, outcome := range d.outcomes {
		count[outcome]++
	}
	if count[metrics.LoginInvalid] != maxFailures || count[metrics.LoginRateLimited] != 200-maxFailures {
		t.Errorf("got %v", count)
	}
}

func TestBudgetIsBounded(t *testing.T) {
	c := newClock()
	b := newBudget(c.now)
	addr := netip.MustParseAddr("10.0.0.0")
	first := addr
	for range maxFailures {
		b.fail(first)
	}
	for range maxSources - 1 {
		addr = addr.Next()
		b.fail(addr)
	}
	if !b.spent(first) {
		t.Error("forgotten too early")
	}
	b.fail(addr.Next())
	if b.spent(first) || len(b.sources) != maxSources || b.order.Len() != maxSources {
		t.Errorf("%d sources, %d windows", len(b.sources), b.order.Len())
	}
	c.advance(window + logInterval)
	b.spent(first)
	if len(b.sources) != 0 || b.order.Len() != 0 {
		t.Errorf("after all windows: %d sources, %d windows", len(b.sources), b.order.Len())
	}
}

// A new window gives the source a new budget, and no second line in a second.
func TestNewWindow(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	fail := func(n int) {
		for range n {
			d.failed("192.0.2.1:1", "a-wrong-key-of-length")
		}
	}
	fail(maxFailures)
	d.clock.advance(window - logInterval/2)
	fail(1) // a line
	d.clock.advance(logInterval / 2)
	if got := d.failed("192.0.2.1:1", keyOne); got != "" {
		t.Errorf("in a new window: got %q", got)
	}
	fail(maxFailures)
	if got := d.failed("192.0.2.1:1", keyOne); got != "rate_limited" {
		t.Errorf("after another %d: got %q", maxFailures, got)
	}
	if n := d.warnings(); n != 2 {
		t.Errorf("%d lines", n)
	}
}

// The log has at most one line a second about a source, and a few in all; never
// a key.
func TestFailureLog(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	for range 100 {
		d.failed("192.0.2.1:1", "secret-guess-of-someone")
	}
	if n := d.warnings(); n != 1 {
		t.Errorf("%d lines in a second", n)
	}
	for range 5 {
		d.clock.advance(logInterval)
		d.failed("192.0.2.1:1", "secret-guess-of-someone")
	}
	if n := d.warnings(); n != 6 {
		t.Errorf("%d lines in six seconds", n)
	}
	d.clock.advance(logInterval)
	for i := range 200 {
		d.failed(fmt.Sprintf("192.0.2.%d:1", i), "secret-guess-of-someone")
	}
	if n := d.warnings(); n != 6+maxLines {
		t.Errorf("%d lines after a storm", n)
	}
	d.clock.advance(logInterval)
	d.failed("192.0.2.9:1", keyOne+"x")
	lines := d.logs.FilterMessage("authentication failed").All()
	last := lines[len(lines)-1].ContextMap()
	if last["unlogged"] != int64(200-maxLines) || last["client"] != "192.0.2.9" || last["reason"] != "unknown key" {
		t.Errorf("the last line: %v", last)
	}
	for _, e := range d.logs.All() {
		text, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}).EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text.String(), "secret") || strings.Contains(text.String(), keyOne) {
			t.Errorf("the log has a key: %s", text)
		}
	}
}

// freshFailures gives the process a new budget, for the time of a test.
func freshFailures(t *testing.T) {
	old := failures
	failures = newBudget(time.Now)
	t.Cleanup(func() { failures = old })
}

// The budget is the process's: another checker, as after a reload, gives no new
// guesses.
func TestBudgetOutlivesCheckers(t *testing.T) {
	freshFailures(t)
	const remote = "203.0.113.77:1"
	for i := range 10 {
		c, err := New(Options{Keys: []string{keyOne}})
		if err != nil {
			t.Fatal(err)
		}
		for range maxFailures / 10 {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr = remote
			r.Header.Set("Authorization", "Bearer a-wrong-key-of-length")
			if _, err := c.Check(r); err != errInvalid {
				t.Errorf("checker %d: got %v", i, err)
			}
			r.Header.Set("Authorization", "Bearer "+keyOne)
			if _, err := c.Check(r); (err != nil) != failures.spent(netip.MustParseAddr("203.0.113.77")) {
				t.Errorf("checker %d: got %v", i, err)
			}
		}
	}
	if !failures.spent(netip.MustParseAddr("203.0.113.77")) {
		t.Error("the budget is not used up")
	}
}

func TestSource(t *testing.T) {
	for _, row := range []struct{ client, remote, want string }{
		{"198.51.100.7", "192.0.2.1:9", "198.51.100.7"}, // behind a trusted proxy
		{"", "192.0.2.1:9", "192.0.2.1"},
		{"nonsense", "192.0.2.1:9", "192.0.2.1"},
		{"::ffff:192.0.2.1", "", "192.0.2.1"},
		{"2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::"},
		{"", "[fe80::1:2%eth0]:9", "fe80::"},
		{"", "@", "invalid IP"},
		{"", "", "invalid IP"},
		{"", "192.0.2.1", "invalid IP"},
		{"", "localhost:80", "invalid IP"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = row.remote
		for _, name := range []string{"X-Forwarded-For", "X-Real-Ip", "Forwarded", "Cf-Connecting-Ip", "True-Client-Ip"} {
			r.Header.Set(name, "203.0.113.9")
		}
		vars := map[string]any{caddyhttp.ClientIPVarKey: row.client}
		r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
		if got := Source(r).String(); got != row.want {
			t.Errorf("%+v: got %s", row, got)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil) // outside of Caddy
	r.RemoteAddr = "192.0.2.1:9"
	if got := Source(r).String(); got != "192.0.2.1" {
		t.Errorf("got %s", got)
	}
}

func BenchmarkCheck(b *testing.B) {
	c, err := newChecker(Options{Keys: []string{keyOne, keyTwo}}, newBudget(time.Now), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+keyTwo)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Check(r)
	}
}
