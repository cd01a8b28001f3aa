// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger"
	ledgerwire "github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// serveComments starts a server with a ledger and a store of tasks.
func serveComments(t *testing.T) (*ledgerNode, *gate) {
	t.Helper()
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	return n, serveTasks(t, new(fakeMesh), tasks.Options{}, func(g *gate, _ *serverSettings) { g.h.ledger = ledger.Using(n.Ledger) })
}

// TestCommentOnce wants a comment with a key to be signed once, however often it is sent, and
// the answer to be had again.
func TestCommentOnce(t *testing.T) {
	n, g := serveComments(t)
	subject, _ := peer.Decode(peerA)
	e := ledgerwire.Entry{Kind: ledgerwire.Comment, Rater: n.Self(), Subject: subject, Time: time.Now().UnixNano(), TextCID: ledgerwire.CID([]byte("signed"))}
	if err := e.Sign(n.key); err != nil {
		t.Fatal(err)
	}
	signed := fmt.Sprintf(`{"rater_peer_id":%q,"text":"signed","timestamp_unix_ns":%d,"signature":%q}`, n.Self(), e.Time, base64.StdEncoding.EncodeToString(e.Signature))
	for _, c := range []struct {
		path, body string
		size       uint64 // of the log, after it
	}{
		{"/comments/self", `{"text":"Quick and right.","rating":0.5}`, 2},
		{"/comments/self", `{"text":"Quick and right."}`, 3},
		{"/comments", signed, 4},
	} {
		path, key := "/v1/peers/"+peerA+c.path, fmt.Sprint("key-", c.size)
		first := g.do(t, "POST", path, c.body, "Idempotency-Key", key)
		if first.status != 201 {
			t.Fatalf("%s: %d %s", c.body, first.status, first.body)
		}
		for range 2 {
			sameAnswer(t, first, g.do(t, "POST", path, c.body, "Idempotency-Key", key))
		}
		g.do(t, "POST", path, c.body+" ", "Idempotency-Key", key).failed(t, 422, "idempotency_key_reused")
		if n.Size() != c.size {
			t.Errorf("%s: %d entries, want %d", c.body, n.Size(), c.size)
		}
	}
}

// TestCommentFreed wants a key to be free where nothing was signed, and no larger body to be
// taken for it.
func TestCommentFreed(t *testing.T) {
	n, g := serveComments(t)
	path := "/v1/peers/" + peerA + "/comments/self"
	send := func(body, key string) answer { return g.do(t, "POST", path, body, "Idempotency-Key", key) }
	for name, c := range map[string]struct {
		body   string
		status int
	}{
		"malformed": {"{", 400},
		"rating":    {`{"text":"x","rating":2}`, 400},
		"language":  {`{"text":"x","language":"a\nb"}`, 400}, // the ledger says so
		"too-large": {`{"text":"` + strings.Repeat("x", maxCommentBody) + `"}`, 413},
	} {
		for range 2 {
			if a := send(c.body, name); a.status != c.status || a.header.Get(headerReplayed) != "" {
				t.Errorf("%s: %d %s %v", name, a.status, a.body, a.header)
			}
		}
		if a := send(`{"text":"x"}`, name); a.status != 201 {
			t.Errorf("%s, corrected: %d %s", name, a.status, a.body)
		}
	}
	last := answer{}
	for i := 0; i < 80 && last.status != 429; i++ {
		last = send(`{"text":"x"}`, fmt.Sprint("many-", i))
	}
	size := n.Size()
	for range 2 {
		if a := send(`{"text":"x"}`, "late"); a.status != 429 || a.header.Get(headerReplayed) != "" || n.Size() != size {
			t.Errorf("%d %s %v", a.status, a.body, a.header)
		}
	}
}

// TestCommentHangUp wants one comment for each key also where the client went away meanwhile,
// and asks again.
func TestCommentHangUp(t *testing.T) {
	n, g := serveComments(t)
	path, body := "/v1/peers/"+peerA+"/comments/self", `{"text":"x"}`
	for i := range 15 {
		key := fmt.Sprint("key-", i)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
		req, err := http.NewRequestWithContext(ctx, "POST", g.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(headerKey, key)
		if resp, err := g.Client().Do(req); err == nil {
			resp.Body.Close()
		}
		cancel()
		await.Until(t, "it is answered", func() bool { return g.do(t, "POST", path, body, headerKey, key).status == 201 })
		if size := n.Size(); size != uint64(i)+1 {
			t.Fatalf("%d entries of %d comments", size, i+1)
		}
	}
}
