// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testKey is a key of the owner "ann".
func testKey(name string) Key {
	return Key{Owner: "ann", Route: "POST /", Name: name, Print: sha256.Sum256([]byte("body")), Limit: time.Minute}
}

// replayed is the answer to a key that was kept; an error when the request is to be served.
func replayed(t *testing.T, p *Part, k Key) (head Head, body string, err error) {
	t.Helper()
	c, err := p.Begin(t.Context(), k, func(kept *Kept) error {
		var b strings.Builder
		for {
			piece, err := kept.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			b.Write(piece)
		}
		head, body = kept.Head, b.String()
		if kept.Size != int64(len(body)) {
			return fmt.Errorf("the size is %d, of %d bytes", kept.Size, len(body))
		}
		return nil
	})
	if c != nil {
		c.Leave()
		return head, "", errors.New("the request is to be served")
	}
	return head, body, err
}

// takeKey takes a key.
func takeKey(t *testing.T, p *Part, k Key) *KeyClaim {
	t.Helper()
	c, err := p.Begin(t.Context(), k, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// keep answers the request of a key.
func keep(t *testing.T, c *KeyClaim, body string) {
	t.Helper()
	for piece := range bytes.SplitAfterSeq([]byte(body), []byte("\n")) {
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Keep(Head{Status: 200, Header: http.Header{"Location": {"/x"}}, Trailer: http.Header{"X-T": {"ok"}}}); err != nil {
		t.Fatal(err)
	}
}

// lost returns the reason for which an answer is not kept.
func lost(err error) Lost {
	if e, ok := errors.AsType[*LostError](err); ok {
		return e.Reason
	}
	return Lost(fmt.Sprint(err))
}

// TestKeys goes through what a key can come to.
func TestKeys(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{}, Options{})
	k := testKey("one")
	c := takeKey(t, p, k)
	if _, err := p.begin(t.Context(), k, nil); !errors.Is(err, ErrKeyInUse) {
		t.Errorf("in flight: %v", err)
	}
	other := k
	other.Print = sha256.Sum256([]byte("other"))
	if _, err := p.begin(t.Context(), other, nil); !errors.Is(err, ErrKeyReused) {
		t.Errorf("in flight, another body: %v", err)
	}
	waited := make(chan string)
	go func() { _, body, _ := replayed(t, p, k); waited <- body }()
	keep(t, c, "answer")
	if got := <-waited; got != "answer" {
		t.Errorf("who waits gets %q", got)
	}
	head, body, err := replayed(t, p, k)
	if want := (Head{Status: 200, Header: http.Header{"Location": {"/x"}}, Trailer: http.Header{"X-T": {"ok"}}}); err != nil || body != "answer" || !reflect.DeepEqual(head, want) {
		t.Errorf("got %+v %q %v", head, body, err)
	}
	if _, _, err := replayed(t, p, other); !errors.Is(err, ErrKeyReused) {
		t.Errorf("another body: %v", err)
	}
	for _, change := range []func(*Key){
		func(k *Key) { k.Owner = "bob" }, func(k *Key) { k.Owner = "" }, func(k *Key) { k.Route = "POST /other" }, func(k *Key) { k.Name = "two" },
	} {
		other := k
		change(&other)
		if err := takeKey(t, p, other).Free(); err != nil {
			t.Error(err)
		}
	}

	c = takeKey(t, p, testKey("free"))
	if err := c.Free(); err != nil {
		t.Error(err)
	}
	other = testKey("free")
	other.Print[0]++ // nothing was begun: it belongs to nobody
	c = takeKey(t, p, other)
	if err := c.Lose(LostClient); err != nil {
		t.Error(err)
	}
	if _, _, err := replayed(t, p, other); lost(err) != LostClient {
		t.Error(err)
	}
	c = takeKey(t, p, testKey("left"))
	c.Leave()
	if _, _, err := replayed(t, p, testKey("left")); lost(err) != LostGateway {
		t.Error(err)
	}
}

// TestKeyExpires moves the clock.
func TestKeyExpires(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{}, Options{})
	var later atomic.Int64
	p.service.Load().limits.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	k := testKey("one")
	keep(t, takeKey(t, p, k), "first")
	running := takeKey(t, p, testKey("running"))
	later.Store(int64(KeepKey - time.Minute))
	if _, body, err := replayed(t, p, k); err != nil || body != "first" {
		t.Errorf("got %q %v", body, err)
	}
	later.Store(int64(KeepKey + time.Second))
	k.Print[0]++
	keep(t, takeKey(t, p, k), "second")
	if _, body, err := replayed(t, p, k); err != nil || body != "second" {
		t.Errorf("got %q %v", body, err)
	}
	if _, err := p.begin(t.Context(), testKey("running"), nil); !errors.Is(err, ErrKeyInUse) {
		t.Errorf("what is served stays so: %v", err)
	}
	keep(t, running, "long")
}

// TestKeyAnswers wants answers of any size to be kept whole, or not at all.
func TestKeyAnswers(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{}, Options{})
	for _, size := range []int{0, 1, maxInline, maxInline + 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 7} {
		line := strings.Repeat("x", 999) + "\n"
		body := strings.Repeat(line, size/len(line)+1)[:size]
		k := testKey(fmt.Sprint("size ", size))
		keep(t, takeKey(t, p, k), body)
		if _, got, err := replayed(t, p, k); err != nil || got != body {
			t.Errorf("size %d: got %d bytes, %v", size, len(got), err)
		}
	}
	c := takeKey(t, p, testKey("large"))
	c.answer.limit = 10
	keep(t, c, "more than that")
	if _, _, err := replayed(t, p, testKey("large")); lost(err) != LostSize {
		t.Error(err)
	}
	store := p.service.Load().current.Load().store
	if err := store.answers.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := replayed(t, p, testKey(fmt.Sprint("size ", chunkSize))); lost(err) != LostAge {
		t.Error(err)
	}
	k := testKey("damaged")
	if _, err := store.js.Publish(t.Context(), k.subject(), []byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := replayed(t, p, k); lost(err) != LostStore {
		t.Error(err)
	}
}

// TestKeyRestart wants what is kept to be there after a restart, and what was under way not
// to be served again.
func TestKeyRestart(t *testing.T) {
	dir := t.TempDir()
	runner := &fakeRunner{run: says("done", nil)}
	p := open(t, dir, runner, Options{})
	large := strings.Repeat("line\n", chunkSize)
	keep(t, takeKey(t, p, testKey("answered")), "answer")
	keep(t, takeKey(t, p, testKey("large")), large)
	takeKey(t, p, testKey("begun"))

	tasked := func(name string) Key {
		k := testKey(name)
		k.Task = NewID("", Target{})
		return k
	}
	begin := func(k Key) *Record {
		c := takeKey(t, p, k)
		return &Record{Owner: k.Owner, ID: c.Task, Site: "site", State: Queued, Created: time.Now()}
	}
	store := p.service.Load().current.Load().store
	accepted, unqueued, unwritten := tasked("accepted"), tasked("unqueued"), tasked("unwritten")
	r := begin(accepted)
	if _, err := p.Submit(t.Context(), Submission{ID: r.ID, Owner: r.Owner, Site: "site", Prompt: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.put(t.Context(), begin(unqueued), 0); err != nil {
		t.Fatal(err)
	}
	begin(unwritten)
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}

	p = open(t, dir, runner, Options{})
	for name, want := range map[string]string{"answered": "answer", "large": large} {
		if _, body, err := replayed(t, p, testKey(name)); err != nil || body != want {
			t.Errorf("%s: got %d bytes, %v", name, len(body), err)
		}
	}
	if _, _, err := replayed(t, p, testKey("begun")); lost(err) != LostGateway {
		t.Error(err)
	}
	again := accepted
	again.Task = NewID("", Target{})
	if c := takeKey(t, p, again); !c.Accepted || c.Task != accepted.Task {
		t.Errorf("the task that was accepted is not found: %+v", c)
	}
	for _, k := range []Key{unqueued, unwritten} {
		first := k.Task
		k.Task = NewID("", Target{})
		if c := takeKey(t, p, k); c.Accepted || c.Task != k.Task {
			t.Errorf("%s: got %+v", k.Name, c)
		}
		if r, err := p.Get(t.Context(), "ann", first); err == nil && (r.State != Failed || r.Reason != ReasonNotAccepted) {
			t.Errorf("%s: got %+v", k.Name, r)
		}
	}
}

// TestKeyLate wants a task of which nobody knew whether it was accepted not to run when it
// comes into the queue after another has taken its place.
func TestKeyLate(t *testing.T) {
	runner := &fakeRunner{run: says("done", nil)}
	p := open(t, t.TempDir(), runner, Options{})
	k := testKey("one")
	k.Task = NewID("ann", Target{})
	first := k.Task
	takeKey(t, p, k).Leave()
	k.Task = NewID("ann", Target{})
	if c := takeKey(t, p, k); c.Accepted || c.Task != k.Task {
		t.Errorf("got %+v", c)
	}
	for _, id := range []string{first, k.Task} {
		if _, err := p.Submit(t.Context(), Submission{ID: id, Owner: "ann", Site: "site", Prompt: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if r := ended(t, p, k.Task); r.State != Completed {
		t.Errorf("got %+v", r)
	}
	empty(t, p)
	if r := ended(t, p, first); r.Reason != ReasonNotAccepted || len(runner.seen()) != 1 {
		t.Errorf("got %+v after the runs %q", r, runner.seen())
	}
}

// TestKeysAtRandom has many ask with the same keys at one time, over restarts: no request
// may be served twice.
func TestKeysAtRandom(t *testing.T) {
	trials := 2000
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		trials = 100_000
	}
	const rounds, clients = 4, 16
	dir := t.TempDir()
	var mu sync.Mutex
	effects := make(map[string]int)
	answers := make(map[string]string)
	seen := make(map[string]int)
	var next atomic.Int64
	for range rounds {
		p := open(t, dir, &fakeRunner{}, Options{})
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				for range trials / rounds / clients {
					k := testKey(fmt.Sprint(next.Add(1)/8 - rand.Int64N(40))) // those of one moment are alike
					oneTrial(t, p, k, func(what, body string) {
						mu.Lock()
						defer mu.Unlock()
						seen[what]++
						switch what {
						case "served":
							effects[k.Name]++
							answers[k.Name] = body
						case "replayed":
							if answers[k.Name] != body {
								t.Errorf("key %q: got %q, want %q", k.Name, body, answers[k.Name])
							}
						}
					})
				}
			})
		}
		all.Wait()
		if err := p.Cleanup(); err != nil {
			t.Fatal(err)
		}
	}
	for name, n := range effects {
		if n > 1 {
			t.Errorf("the request of key %q was served %d times", name, n)
		}
	}
	t.Logf("%d keys, %v", len(effects), seen)
}

// oneTrial asks once with a key. Its request is served, and ends in one way or another.
func oneTrial(t *testing.T, p *Part, k Key, note func(what, body string)) {
	var got string
	c, err := p.begin(t.Context(), k, func(kept *Kept) error {
		for {
			b, err := kept.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			got += string(b)
		}
	})
	switch {
	case errors.Is(err, ErrKeyInUse):
		note("in use", "")
	case err != nil && lost(err) != LostClient && lost(err) != LostGateway:
		t.Error(err)
	case err != nil:
		note("lost", "")
	case c == nil:
		note("replayed", got)
	default:
		if rand.N(4) == 0 { // no worker had room
			note("freed", "")
			_ = c.Free()
			return
		}
		body := strings.Repeat("x", rand.N(2*maxInline))
		note("served", body)
		time.Sleep(rand.N(2 * time.Millisecond))
		_, _ = c.Write([]byte(body))
		switch rand.N(4) {
		case 0:
			c.Leave()
		case 1:
			_ = c.Lose(LostClient)
		default:
			err = c.Keep(Head{Status: 200})
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// FuzzKeyRecord wants records that are read to be written as they were.
func FuzzKeyRecord(f *testing.F) {
	for _, r := range []keyRecord{
		{State: keyBegun, Print: "00", Task: NewID("", Target{}), Created: time.Unix(1, 0).UTC()},
		{State: keyAnswered, Head: &Head{Status: 200, Header: http.Header{"A": {"b"}}}, Size: 3, body: []byte("a\nb")},
		{State: keyAnswered, Head: &Head{Status: 502}, Size: 1 << 20, Place: "answer.x"},
		{State: keyLost, Lost: LostClient},
	} {
		b, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"state":"answered"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeKey(b)
		if err != nil {
			return
		}
		out, err := r.encode()
		if err != nil {
			return // of a time that has no text
		}
		again, err := decodeKey(out)
		if err != nil {
			t.Fatalf("%q became %q: %v", b, out, err)
		}
		if twice, _ := again.encode(); !bytes.Equal(out, twice) {
			t.Errorf("%q became %q", out, twice)
		}
	})
}
