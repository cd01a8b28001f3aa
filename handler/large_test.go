// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	ledgerwire "github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

const (
	// hotPeers are so many peers that all others speak of.
	hotPeers = 10
	// bulkRounds is how many ratings by each peer are stored at once: pages that many entries
	// change are written once.
	bulkRounds = 4
)

// TestLargeMesh asks about a mesh of 10,000 workers, whose ledger has 1,000,000 entries by them
// about each other, or a small part of that: AGENTFM_TEST_WORKERS says how many workers,
// AGENTFM_TEST_ROUNDS how often each rates another. Ten of them are rated by all. With the whole of it, 99 of 100
// answers have come as a whole within 10 ms.
func TestLargeMesh(t *testing.T) {
	workers, rounds := 100, 10
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		workers, rounds = 10_000, 100
	}
	workers, rounds = await.Times(t, "AGENTFM_TEST_WORKERS", workers), await.Times(t, "AGENTFM_TEST_ROUNDS", rounds)
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	players := newRaters(t, workers)
	begun := time.Now()
	for first := 0; first < rounds; first += bulkRounds {
		rateAll(t, n.Store(), players, first, min(bulkRounds, rounds-first))
	}
	t.Logf("%d entries signed and stored in %s", workers*rounds, time.Since(begun))
	f := new(fakeMesh)
	for i, p := range players {
		w := worker(p.id.String(), fmt.Sprint("Agent number ", i), "meta/llama-3.2-8b-instruct")
		w.Description = "Answers questions about the rules of the house, in two languages."
		w.HasGPU, w.GPUUsedGB, w.GPUTotalGB, w.CPUPercent = true, float64(i%70)/7, 24, float64(i%101)
		w.Memo = new(mesh.Memo)
		f.listed = append(f.listed, &w)
	}
	hot := players[0].id
	n.judge(hot.String(), true) // has scores made
	for begun := time.Now(); n.Standing(players[1].id).Score == 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > 5*time.Minute {
			t.Fatal("no scores are made")
		}
	}
	g := serve(t, f, func(g *gate, _ *serverSettings) { g.h.ledger = ledger.Using(n.Ledger) })

	var list struct {
		Online int              `json:"online_count"`
		Agents []map[string]any `json:"agents"`
	}
	if err := json.Unmarshal([]byte(g.do(t, "GET", "/api/workers", "").body), &list); err != nil || list.Online != workers || len(list.Agents) != workers {
		t.Fatalf("%d workers of %d, %v", len(list.Agents), list.Online, err)
	}
	if a := list.Agents[0]; a["peer_id"] != hot.String() || a["honesty_score"] != n.Standing(hot).Score || a["on_probation"] != true {
		t.Errorf("the first: %v, its score %v", a, n.Standing(hot).Score)
	}
	var summary peerAnswer
	if err := json.Unmarshal([]byte(g.do(t, "GET", "/v1/peers/"+hot.String(), "").body), &summary); err != nil || summary.Entries < workers-1 || summary.Raters.Unverified != min(workers-1, 2000) {
		t.Errorf("the first: %+v, %v", summary, err)
	}
	about := func(what string) func(int) string {
		return func(i int) string { return "/v1/peers/" + players[i*13%workers].id.String() + what }
	}
	for what, path := range map[string]func(int) string{
		"workers":                            func(int) string { return "/api/workers" },
		"summary":                            about(""),
		"newest line":                        about("/log?limit=1"),
		"summary of who is rated by all":     func(i int) string { return "/v1/peers/" + players[i%hotPeers].id.String() },
		"newest line of who is rated by all": func(i int) string { return "/v1/peers/" + players[i%hotPeers].id.String() + "/log?limit=1" },
	} {
		p50, p99, size := answerTimes(t, g, path)
		t.Logf("%s, %d bytes: p50 %s, p99 %s", what, size, p50, p99)
		if workers*rounds >= 1_000_000 && p99 > 10*time.Millisecond {
			t.Errorf("%s: 99 of 100 answers took up to %s", what, p99)
		}
	}
}

// answerTimes asks for paths, one after another, and returns how long whole answers take, and
// the size of the last.
func answerTimes(t *testing.T, g *gate, path func(int) string) (p50, p99 time.Duration, size int64) {
	t.Helper()
	var took []time.Duration
	buf := make([]byte, 64<<10)
	for i := range 300 {
		begun := time.Now()
		resp, err := g.Client().Get(g.URL + path(i))
		if err != nil {
			t.Fatal(err)
		}
		size, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
		took = append(took, time.Since(begun))
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(path(i), resp.Status, err)
		}
		<-g.repl
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], size
}

// rater is a peer that rates others.
type rater struct {
	key  crypto.PrivKey
	id   peer.ID
	prev ledgerwire.Hash
}

// newRaters makes so many.
func newRaters(t *testing.T, n int) []*rater {
	t.Helper()
	out := make([]*rater, n)
	for i := range out {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = &rater{key: key, id: id}
	}
	return out
}

// rateAll has each rater rate others for some rounds: in the first rounds the ten that all rate.
func rateAll(t *testing.T, s *store.Store, raters []*rater, first, rounds int) {
	t.Helper()
	entries := make([]*ledgerwire.Entry, len(raters)*rounds)
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, r := range raters {
		g.Go(func() error {
			for round := range rounds {
				e := &ledgerwire.Entry{
					Kind: ledgerwire.Rating, Rater: r.id, Subject: raters[ratee(i, first+round, len(raters))].id, Dimension: ledgerwire.Honesty, Score: 0.5,
					Context: "task:successes=5,failures=0,window=3600s", Time: time.Now().UnixNano(), Prev: r.prev,
				}
				if err := e.Sign(r.key); err != nil {
					return err
				}
				r.prev, entries[round*len(raters)+i] = e.Hash(), e
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	outcomes, reasons, err := s.Accept(context.Background(), entries)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range outcomes {
		if o != store.Stored {
			t.Fatal(o, reasons[i])
		}
	}
}

// ratee returns whom of so many a rater rates in a round.
func ratee(rater, round, of int) int {
	id := (rater + 1 + round*7919) % of
	if round < hotPeers {
		id = round
	}
	if id == rater {
		id = (id + 1) % of
	}
	return id
}
