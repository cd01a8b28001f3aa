// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	ledgerwire "github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// ledgerNode is a node with a ledger, and how it may judge workers.
type ledgerNode struct {
	*ledger.Ledger
	key   crypto.PrivKey
	judge func(worker string, well bool)
}

// openLedger opens a ledger on a node that is alone.
func openLedger(t *testing.T, s ledger.Settings) *ledgerNode {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h, err := mesh.NewHost(ctx, mesh.RoleGateway, key, []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, mesh.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := mesh.NewPubSub(ctx, h, func(peer.ID) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	n := &ledgerNode{key: key}
	n.Ledger, err = ledger.Open(mesh.Node{
		Context: ctx, Host: h, PubSub: ps, Key: key,
		Bootstrap: func() []peer.AddrInfo { return nil },
		Entry:     func(peer.ID, string) {},
		Trust:     func(func(string) mesh.Trust) {},
		Judge:     func(f func(string, bool)) { n.judge = f },
		Log:       zap.NewNop,
	}, t.TempDir(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		n.Close()
		_ = h.Close()
	})
	return n
}

// serveLedger starts a server with a ledger and a worker.
func serveLedger(t *testing.T, n *ledgerNode, settings ...setting) *gate {
	t.Helper()
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dispatch: answers(script{output: []string{"hi"}})}
	return serve(t, f, append(settings, func(g *gate, _ *serverSettings) { g.h.ledger = ledger.Using(n.Ledger) })...)
}

// TestVerified calls a rater honest when it is proven by several tasks, not for a score that
// others have raised.
func TestVerified(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	g := serveLedger(t, n)
	id, err := peer.Decode(peerA)
	if err != nil {
		t.Fatal(err)
	}
	if a := g.do(t, "POST", "/v1/peers/"+peerA+"/comments/self", `{"text":"Good.","rating":1}`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	n.judge(peerA, true)
	await.Until(t, "its score is good", func() bool { return n.Standing(id).Score > 0.3 })
	if verified(n.Ledger, id) {
		t.Error("one task and a client's rating make it verified")
	}
	n.judge(peerA, true)
	n.judge(peerA, true)
	await.Until(t, "it is verified", func() bool { return verified(n.Ledger, id) })
}

func TestPeersWithoutLedger(t *testing.T) {
	g := serve(t, &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}})
	want := `{"peer_id":"` + peerA + `","agent_name":"HR","author":"ann","online":true,"last_seen":"2023-11-14T22:15:00Z","honesty_score":0,` +
		`"is_equivocator":false,"dispatch_allowed":true,"on_probation":false,"entries_count":0,"advertised_image_ref":"","advertised_image_digest":"",` +
		`"advertised_capability":"","rater_summary":{"verified_raters_count":0,"unverified_raters_count":0}}`
	if a := g.do(t, "GET", "/v1/peers/"+peerA, ""); a.status != 200 || a.body != want {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, path := range []string{"/reputation", "/log", "/proof?entry=" + strings.Repeat("0", 64), "/comments/1220" + strings.Repeat("0", 64)} {
		if a := g.do(t, "GET", "/v1/peers/"+peerA+path, ""); a.status != 503 || !strings.Contains(a.body, `"ledger_unavailable"`) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

func TestPeers(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	g := serveLedger(t, n)
	at := "/v1/peers/" + peerA
	a := g.do(t, "POST", at+"/comments/self", `{"text":"Quick <b>and</b> right.","language":"en","rating":0.5}`)
	var made struct {
		CID  string `json:"cid"`
		Hash string `json:"ledger_hash"`
	}
	if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.status != 201 {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	if a := g.do(t, "GET", at+"/comments/"+made.CID, ""); a.status != 200 || a.body != "Quick <b>and</b> right." || a.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%d %s %v", a.status, a.body, a.header)
	}
	if a := g.do(t, "GET", at+"/comments/"+made.CID+".json", ""); a.body != `{"cid":"`+made.CID+`","body":"Quick <b>and</b> right.","language":"en"}` {
		t.Errorf("%d %s", a.status, a.body)
	}
	var log struct {
		Returned int `json:"returned"`
		Entries  []struct {
			Hash, Kind, Rater string
			Score             *float64
			Status            string
		}
	}
	a = g.do(t, "GET", at+"/log", "")
	text := strings.NewReplacer(`"entry_hash"`, `"Hash"`, `"kind"`, `"Kind"`, `"rater_peer_id"`, `"Rater"`, `"score"`, `"Score"`, `"rater_status"`, `"Status"`, `"entries"`, `"Entries"`).Replace(a.body)
	if err := json.Unmarshal([]byte(text), &log); err != nil || a.status != 200 || log.Returned != 2 {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	if e := log.Entries; e[0].Kind != "Comment" || e[0].Hash != made.Hash || e[1].Kind != "Rating" || *e[1].Score != 0.5 || e[1].Rater != n.Self().String() || e[1].Status != "verified" {
		t.Errorf("%s", a.body)
	}
	if a := g.do(t, "GET", at+"/log?limit=1&offset=1", ""); !strings.Contains(a.body, `"returned":1`) || !strings.Contains(a.body, `"dimension":"honesty"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	checkProof(t, g, at, made.Hash)

	await.Until(t, "the rating counts", func() bool {
		return strings.Contains(g.do(t, "GET", at+"/reputation", "").body, `"scores":{"honesty":0.`)
	})
	if a := g.do(t, "GET", "/v1/about", ""); !strings.Contains(a.body, `"reputation_floor":-0.5,"ledger_tree_size":2`) {
		t.Errorf("%s", a.body)
	}
}

// checkProof verifies the proof of an entry with nothing but what the answer has.
func checkProof(t *testing.T, g *gate, at, hash string) {
	t.Helper()
	a := g.do(t, "GET", at+"/proof?entry="+hash, "")
	var p struct {
		Hash     string   `json:"entry_hash"`
		Position uint64   `json:"position"`
		Path     []string `json:"audit_path"`
		Head     struct {
			Size uint64  `json:"tree_size"`
			Root string  `json:"root_hash"`
			Peer peer.ID `json:"peer_id"`
			Sig  []byte  `json:"signature"`
			Time int64   `json:"timestamp_unix_ns"`
		} `json:"head"`
	}
	if err := json.Unmarshal([]byte(a.body), &p, json.MatchCaseInsensitiveNames(true)); err != nil || a.status != 200 {
		t.Fatalf("%d %s, %v", a.status, a.body, err)
	}
	parse := func(s string) ledgerwire.Hash {
		h, err := ledgerwire.ParseHash(s)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	path := make([]ledgerwire.Hash, len(p.Path))
	for i, s := range p.Path {
		path[i] = parse(s)
	}
	head := ledgerwire.Head{Peer: p.Head.Peer, Size: p.Head.Size, Root: parse(p.Head.Root), Time: p.Head.Time, Signature: p.Head.Sig}
	if err := head.Verify(); err != nil {
		t.Error(err)
	}
	if err := tree.VerifyInclusion(p.Position, p.Head.Size, parse(p.Hash), path, head.Root); err != nil {
		t.Error(err)
	}
}

// TestProofHasWitnesses wants the signatures of witnesses in a proof, and the entry.
func TestProofHasWitnesses(t *testing.T) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e := &ledgerwire.Entry{Kind: ledgerwire.Rating, Dimension: ledgerwire.Honesty}
	h := &ledgerwire.Head{Size: 1, Root: ledgerwire.Hash{1}, Time: 1}
	w, err := h.Cosign(key)
	if err != nil {
		t.Fatal(err)
	}
	h.Witnesses = []ledgerwire.Witness{w}
	got := newProof(&store.Proof{Entry: e, Head: h})
	if s := got.Head.Sigs; got.Head.Witnesses != 1 || len(s) != 1 || s[0].Peer != w.Peer.String() || !bytes.Equal(s[0].Signature, w.Signature) {
		t.Errorf("%+v", got.Head)
	}
	if !bytes.Equal(got.Entry, e.Marshal()) || got.Hash != e.Hash().String() {
		t.Errorf("%+v", got)
	}
	h.Witnesses = nil
	if b, err := json.Marshal(newProof(&store.Proof{Entry: e, Head: h})); err != nil || !strings.Contains(string(b), `"witness_count":0,"witness_sigs":[]`) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestPeerErrors(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	g := serveLedger(t, n)
	at := "/v1/peers/" + peerA
	sign := func(text string) (now int64, signature string) {
		subject, _ := peer.Decode(peerA)
		e := ledgerwire.Entry{Kind: ledgerwire.Comment, Rater: n.Self(), Subject: subject, Time: time.Now().UnixNano(), TextCID: ledgerwire.CID([]byte(text))}
		if err := e.Sign(n.key); err != nil {
			t.Fatal(err)
		}
		return e.Time, base64.StdEncoding.EncodeToString(e.Signature)
	}
	now, signature := sign("signed")
	signed := func(rater, text string) string {
		return fmt.Sprintf(`{"rater_peer_id":%q,"text":%q,"timestamp_unix_ns":%d,"signature":%q}`, rater, text, now, signature)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v1/peers/", "", 404, "not_found"},
		{"GET", "/v1/peers/nobody", "", 400, "bad_peer_id"},
		{"GET", at + "/more", "", 404, "not_found"},
		{"POST", at, "{}", 405, "method_not_allowed"},
		{"GET", at + "/comments", "", 405, "method_not_allowed"},
		{"GET", at + "/log?limit=0", "", 400, "invalid_request_error"},
		{"GET", at + "/log?limit=501", "", 400, "invalid_request_error"},
		{"GET", at + "/log?offset=1000001", "", 400, "invalid_request_error"},
		{"GET", at + "/proof", "", 400, "bad_request"},
		{"GET", at + "/proof?entry=" + strings.Repeat("0", 64), "", 404, "entry_not_found"},
		{"GET", at + "/comments/12", "", 400, "bad_cid"},
		{"GET", at + "/comments/1220" + strings.Repeat("0", 64), "", 404, "comment_not_found"},
		{"POST", at + "/comments/self", `{"text":" "}`, 400, "missing_field"},
		{"POST", at + "/comments/self", `{"text":"` + strings.Repeat("x", 10241) + `"}`, 400, "body_too_large"},
		{"POST", at + "/comments/self", `{"text":"x","rating":1.5}`, 400, "bad_rating"},
		{"POST", at + "/comments/self", `{"text":"x","attached_rating_hash":"12"}`, 400, "invalid_request_error"},
		{"POST", at + "/comments/self", `{"text":"x","language":"a\nb"}`, 400, "invalid_request_error"},
		{"POST", "/v1/peers/" + n.Self().String() + "/comments/self", `{"text":"x","rating":1}`, 400, "invalid_request_error"},
		{"POST", at + "/comments", signed(peerB, "signed"), 403, "non_self_submitter"},
		{"POST", at + "/comments", signed(n.Self().String(), "other"), 401, "bad_signature"},
		{"POST", at + "/comments", signed("", "signed"), 400, "missing_field"},
	} {
		if a := g.do(t, c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, `"code":"`+c.code+`"`) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, a.status, a.body)
		}
	}
	if a := g.do(t, "POST", at+"/comments", signed(n.Self().String(), "signed")); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
	last := 0
	for range 80 {
		if last = g.do(t, "POST", at+"/comments/self", `{"text":"x"}`).status; last != 201 {
			break
		}
	}
	if last != 429 {
		t.Errorf("as many ratings as one likes: %d", last)
	}
}

func TestFeedback(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	g := serveLedger(t, n)
	body := `{"worker_id":"` + peerA + `","prompt":"x","feedback":"Fine","feedback_rating":0.5}`
	if a := g.do(t, "POST", "/api/execute", body); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if n.Size() != 2 {
		t.Errorf("%d entries", n.Size())
	}
	g.mesh.dispatch = answers(script{output: []string{"hi"}, end: io.ErrUnexpectedEOF})
	g.do(t, "POST", "/api/execute", body)
	if n.Size() != 2 {
		t.Errorf("%d entries after a task that failed", n.Size())
	}
}

// TestGate has a worker fail until it is refused, and be there no more for tasks of its own.
func TestGate(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	g := serveLedger(t, n)
	for path, want := range map[string]string{
		"/api/workers": `"dispatch_allowed":true,"on_probation":true`, "/v1/models": `"agentfm_dispatch_allowed":true,"agentfm_on_probation":true`,
		"/v1/peers/" + peerA: `"dispatch_allowed":true,"on_probation":true`,
	} {
		if a := g.do(t, "GET", path, ""); !strings.Contains(a.body, want) {
			t.Errorf("%s of a newcomer: %s", path, a.body)
		}
	}
	for range 10 {
		n.judge(peerA, false)
	}
	await.Until(t, "the worker is refused", func() bool {
		return strings.Contains(g.do(t, "GET", "/api/workers", "").body, `"dispatch_allowed":false,"dispatch_refuse_reason":"reputation_below_floor"`)
	})
	for path, body := range map[string]string{
		"/api/execute":       `{"worker_id":"` + peerA + `","prompt":"x"}`,
		"/api/execute/async": `{"worker_id":"` + peerA + `","prompt":"x"}`,
	} {
		if a := g.do(t, "POST", path, body); a.status != 403 || !strings.Contains(a.body, `"message":"dispatch refused: reputation_below_floor"`) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := g.do(t, "GET", "/v1/models", ""); !strings.Contains(a.body, `"agentfm_dispatch_allowed":false`) {
		t.Errorf("%s", a.body)
	}
}
