// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

// TestMayUseNoCopy wants rights to cost no memory for each worker that is looked at.
func TestMayUseNoCopy(t *testing.T) {
	id := &Identity{models: map[string]bool{"hr assistant": true, "müller": true}}
	if n := testing.AllocsPerRun(100, func() {
		id.MayUse("12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL", "Some Agent", "Llama3.2:70b")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if long := strings.Repeat("X", 100); !id.MayUse(" HR Assistant ") || !id.MayUse("x", "MÜLLER") || id.MayUse(long) {
		t.Error("case and space matter")
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreCurrent(), // packages that we import start some
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),       // ends up to 5 s after Caddy
		goleak.IgnoreTopFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"), // told to end, not waited for
	)
}

const (
	keyOne = "sixteen-chars-ab"
	keyTwo = "a-second-key-that-is-long"
)

// clock is a clock that stands until it is told to go on.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// desk is a checker with all that a test wants to see of it.
type desk struct {
	*Checker
	clock *clock
	logs  *observer.ObservedLogs

	mu       sync.Mutex
	outcomes []metrics.Login
}

// newDesk returns a desk with a budget of its own.
func newDesk(t *testing.T, o Options) *desk {
	t.Helper()
	d := &desk{clock: newClock()}
	var core zapcore.Core
	core, d.logs = observer.New(zapcore.DebugLevel)
	o.Logger = zap.New(core)
	var err error
	if d.Checker, err = newChecker(o, newBudget(d.clock.now), d.clock.now); err != nil {
		t.Fatal(err)
	}
	d.observe = func(outcome metrics.Login) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.outcomes = append(d.outcomes, outcome)
	}
	return d
}

// ask checks a request from an address with these values of Authorization.
func (d *desk) ask(remote string, values ...string) (*Identity, *Error) {
	r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
	r.RemoteAddr = remote
	for _, v := range values {
		r.Header.Add("Authorization", v)
	}
	return d.Check(r)
}

// failed returns the code of the error for a key from an address; empty for none.
func (d *desk) failed(remote, key string) string {
	if _, err := d.ask(remote, "Bearer "+key); err != nil {
		return err.Code
	}
	return ""
}

// warnings counts the lines about failed logins.
func (d *desk) warnings() int { return d.logs.FilterMessage("authentication failed").Len() }

// writeKeys writes a key file.
func writeKeys(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestHeaders has every form of the header, its answer and its outcome.
func TestHeaders(t *testing.T) {
	const (
		challenge = `Bearer realm="agentfm"`
		invalid   = challenge + `, error="invalid_token"`
	)
	file := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, file, "late the-key-that-expired expires=2030-01-01T12:00:00Z\n"+
		"soon the-key-that-will-expire expires=2030-01-01T12:00:01Z\n"+
		"hashed "+Hash("known-by-its-hash-only")+"\n")
	for _, row := range []struct {
		name      string
		values    []string
		status    int // 0 for success
		code      string
		challenge string
		outcome   string
	}{
		{"none", nil, 401, "unauthorized", challenge, "missing"},
		{"empty", []string{""}, 401, "unauthorized", challenge, "missing"},
		{"two", []string{"Bearer " + keyOne, "Bearer " + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"two, one empty", []string{"", "Bearer " + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"two schemes", []string{"Basic eDp5", "Bearer " + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"Basic", []string{"Basic " + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"Digest", []string{`Digest username="` + keyOne + `"`}, 401, "unauthorized", challenge, "malformed"},
		{"longer scheme", []string{"Bearers " + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"scheme only", []string{"Bearer"}, 401, "unauthorized", challenge, "malformed"},
		{"scheme and spaces", []string{"Bearer   "}, 401, "unauthorized", challenge, "malformed"},
		{"key only", []string{keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"space before", []string{" Bearer " + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"tab", []string{"Bearer\t" + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"space and tab", []string{"Bearer \t" + keyOne}, 401, "unauthorized", challenge, "malformed"},
		{"space inside", []string{"Bearer " + keyOne + " " + keyTwo}, 401, "unauthorized", challenge, "malformed"},
		{"64 KiB", []string{"Bearer " + strings.Repeat("k", 64<<10)}, 401, "unauthorized", challenge, "malformed"},
		{"513 bytes", []string{"Bearer " + strings.Repeat("k", 513)}, 401, "unauthorized", challenge, "malformed"},
		{"512 bytes", []string{"Bearer " + strings.Repeat("k", 512)}, 401, "invalid_api_key", invalid, "invalid"},
		{"wrong", []string{"Bearer sixteen-chars-xy"}, 401, "invalid_api_key", invalid, "invalid"},
		{"cut", []string{"Bearer " + keyOne[:15]}, 401, "invalid_api_key", invalid, "invalid"},
		{"longer", []string{"Bearer " + keyOne + "0"}, 401, "invalid_api_key", invalid, "invalid"},
		{"other case", []string{"Bearer " + strings.ToUpper(keyOne)}, 401, "invalid_api_key", invalid, "invalid"},
		{"quoted", []string{`Bearer "` + keyOne + `"`}, 401, "invalid_api_key", invalid, "invalid"},
		{"not ASCII", []string{"Bearer \xc3\xa9\xff0123456789abcdef"}, 401, "invalid_api_key", invalid, "invalid"},
		{"its hash", []string{"Bearer " + Hash(keyOne)}, 401, "invalid_api_key", invalid, "invalid"},
		{"a name", []string{"Bearer late"}, 401, "invalid_api_key", invalid, "invalid"},
		{"expired", []string{"Bearer the-key-that-expired"}, 401, "invalid_api_key", invalid, "invalid"},
		{"revoked", []string{"Bearer the-key-of-last-year"}, 401, "invalid_api_key", invalid, "invalid"},
		{"right", []string{"Bearer " + keyOne}, 0, "", "", "ok"},
		{"right, the second", []string{"Bearer " + keyTwo}, 0, "", "", "ok"},
		{"right, by hash", []string{"Bearer known-by-its-hash-only"}, 0, "", "", "ok"},
		{"right, not yet expired", []string{"Bearer the-key-that-will-expire"}, 0, "", "", "ok"},
		{"lower case", []string{"bearer " + keyOne}, 0, "", "", "ok"},
		{"upper case", []string{"BEARER " + keyOne}, 0, "", "", "ok"},
		{"two spaces", []string{"Bearer  " + keyOne}, 0, "", "", "ok"},
		{"space after", []string{"Bearer " + keyOne + " "}, 0, "", "", "ok"},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := newDesk(t, Options{Keys: []string{keyOne, keyTwo}, File: file})
			id, err := d.ask("192.0.2.1:99", row.values...)
			if !slices.Equal(d.outcomes, []metrics.Login{metrics.Login(row.outcome)}) {
				t.Errorf("outcomes %q", d.outcomes)
			}
			if row.status == 0 {
				if err != nil || id == nil || id.ID == "" {
					t.Errorf("got %v, %v", id, err)
				}
				return
			}
			if id != nil || err == nil {
				t.Fatalf("got %v, %v", id, err)
			}
			w := httptest.NewRecorder()
			err.setHeaders(w.Header())
			if err.Status != row.status || err.Code != row.code || err.Error() == "" ||
				w.Header().Get("WWW-Authenticate") != row.challenge || w.Header().Get("Retry-After") != "" {
				t.Errorf("got %+v", err)
			}
		})
	}
}

// A key in another header decides nothing: some clients send both.
func TestOtherHeaders(t *testing.T) {
	d := newDesk(t, Options{Keys: []string{keyOne}})
	for _, name := range []string{"X-Api-Key", "Api-Key", "Proxy-Authorization", "X-Authorization", "Cookie"} {
		r := httptest.NewRequest(http.MethodGet, "/?api_key="+keyOne, nil)
		r.Header.Set(name, keyOne)
		if _, err := d.Check(r); err != errMissing {
			t.Errorf("%s: got %v", name, err)
		}
		r.Header.Set(name, "another")
		r.Header.Set("Authorization", "Bearer "+keyOne)
		if _, err := d.Check(r); err != nil {
			t.Errorf("%s beside a key: got %v", name, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, file, "ann the-key-of-ann-123 models=\"HR Assistant, Llama3.2\" scope=read\nthe-key-without-name scope=run\n")
	d := newDesk(t, Options{Keys: []string{keyOne}, File: file})
	get := func(key string) *Identity {
		t.Helper()
		id, err := d.ask("192.0.2.1:99", "Bearer "+key)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ann := get("the-key-of-ann-123")
	if ann.ID != "ann" || !ann.MayRead() || ann.MayRun() {
		t.Errorf("got %+v", ann)
	}
	for _, names := range [][]string{{"hr assistant"}, {"HR ASSISTANT "}, {"LLAMA3.2"}, {"peer", "agent", "llama3.2"}} {
		if !ann.MayUse(names...) {
			t.Errorf("ann may not use %q", names)
		}
	}
	for _, names := range [][]string{nil, {""}, {"hr"}, {"llama3"}, {"peer", "agent", "mistral"}, {"*"}} {
		if ann.MayUse(names...) {
			t.Errorf("ann may use %q", names)
		}
	}
	if m := ann.metadata(); m["scope"] != "read" || m["models"] != "hr assistant,llama3.2" {
		t.Errorf("metadata %q", m)
	}
	sum := strings.TrimPrefix(Hash("the-key-without-name"), "sha256:")
	if id := get("the-key-without-name"); id.ID != "key-"+sum[:8] || id.MayRead() || !id.MayRun() || !id.MayUse("any") {
		t.Errorf("got %+v", id)
	}
	sum = strings.TrimPrefix(Hash(keyOne), "sha256:")
	if id := get(keyOne); id.ID != "key-"+sum[:8] || !id.MayRead() || !id.MayRun() || !id.MayUse() {
		t.Errorf("got %+v", id)
	}
	var none *Identity
	if none.MayRead() || none.MayRun() || none.MayUse("x") {
		t.Error("the nil identity has rights")
	}
}

func TestNewKey(t *testing.T) {
	seen := make(map[string]bool)
	for range 100 {
		key := NewKey()
		if len(key) != 47 || !strings.HasPrefix(key, "afm_") || seen[key] {
			t.Fatalf("got %q", key)
		}
		seen[key] = true
		plain, err := hashKey(key)
		if err != nil {
			t.Fatal(err)
		}
		hashed, err := hashKey(Hash(key))
		if err != nil || hashed != plain {
			t.Errorf("%s is not %s: %v", Hash(key), key, err)
		}
	}
}

// Comparing goes through all keys, wherever the right one is, and the last of
// equal ones does not differ from the first.
func TestFind(t *testing.T) {
	var set keySet
	for i := range 1000 {
		hash, err := hashKey(fmt.Sprintf("the-key-of-number-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		set = append(set, key{hash: hash, line: i})
	}
	for _, i := range []int{0, 1, 500, 999} {
		if k := set.find(fmt.Sprintf("the-key-of-number-%d", i)); k == nil || k.line != i {
			t.Errorf("%d: got %v", i, k)
		}
	}
	for _, token := range []string{"", "the-key-of-number-1000", "the-key-of-number-"} {
		if k := set.find(token); k != nil {
			t.Errorf("%q: got %v", token, k)
		}
	}
	if keySet(nil).find("") != nil {
		t.Error("a key of no set")
	}
}

func BenchmarkFind(b *testing.B) {
	set := make(keySet, maxKeys)
	for b.Loop() {
		set.find(keyOne)
	}
}

func FuzzBearer(f *testing.F) {
	for _, v := range []string{"", "Bearer", "Bearer x", "bearer  x ", "Basic x", "Bearer\tx", "Bearer x y"} {
		f.Add(v, "")
		f.Add(v, v)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		h := http.Header{"Authorization": {first}}
		if second != "" {
			h.Add("Authorization", second)
		}
		key, err := bearer(h)
		if err != nil {
			if key != "" || err == errMissing && (first != "" || second != "") {
				t.Errorf("%q, %q: got %q, %v", first, second, key, err)
			}
			return
		}
		if second != "" || key == "" || len(key) > maxKey || strings.ContainsAny(key, " \t") ||
			!strings.EqualFold(first[:7], "Bearer ") || !strings.Contains(first[7:], key) {
			t.Errorf("%q, %q: got %q", first, second, key)
		}
	})
}
