// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/Agent-FM/caddy-agentfm/client"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// rater is somebody who keeps a log.
type rater struct {
	t   *testing.T
	key crypto.PrivKey
	id  peer.ID
}

func newRater(t *testing.T) *rater {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &rater{t, key, id}
}

// log returns a proof of each entry of a log: ratings of a peer, and last a comment.
func (r *rater) log(about peer.ID, scores ...float64) (proofs []client.Proof) {
	r.t.Helper()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (hashes []tlog.Hash, err error) {
		for _, i := range indexes {
			hashes = append(hashes, stored[i])
		}
		return hashes, nil
	})
	check := func(err error) {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	var prev wire.Hash
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range len(scores) + 1 {
		e := &wire.Entry{Kind: wire.Comment, TextCID: wire.CID([]byte("text")), Language: "en"}
		if i < len(scores) {
			e = &wire.Entry{Kind: wire.Rating, Dimension: wire.Honesty, Score: scores[i], Context: "\u202ewhy"}
		}
		e.Rater, e.Subject, e.Prev, e.Time = r.id, about, prev, at.UnixNano()
		check(e.Sign(r.key))
		prev = e.Hash()
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), tlog.Hash(prev), reader)
		check(err)
		stored = append(stored, hashes...)
		proofs = append(proofs, client.Proof{EntryHash: prev.String(), Position: int64(i), SignedEntry: e.Marshal()})
	}
	n := int64(len(proofs))
	root, err := tlog.TreeHash(n, reader)
	check(err)
	h := &wire.Head{Peer: r.id, Size: uint64(n), Root: wire.Hash(root), Time: at.UnixNano()}
	check(h.Sign(r.key))
	for i := range proofs {
		path, err := tlog.ProveRecord(n, int64(i), reader)
		check(err)
		for _, h := range path {
			proofs[i].AuditPath = append(proofs[i].AuditPath, hex.EncodeToString(h[:]))
		}
		proofs[i].Head = client.LogHead{TreeSize: n, RootHash: h.Root.String(), PeerID: r.id.String(), Signature: h.Signature, TimestampUnixNS: h.Time}
	}
	return proofs
}

// lines are proofs as they are saved.
func lines(t *testing.T, proofs ...client.Proof) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range proofs {
		if err := json.NewEncoder(&b).Encode(p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// TestReputationVerify wants proofs to hold, and none that was changed in anything.
func TestReputationVerify(t *testing.T) {
	a, b, about := newRater(t), newRater(t), newRater(t).id
	good := a.log(about, 0.5, -1, 1)
	file := filepath.Join(t.TempDir(), "proofs")
	verify := func(content []byte, flags ...string) (string, error) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, _, err := run(append([]string{"reputation", "verify", file}, flags...)...)
		return out, err
	}
	out, err := verify(lines(t, append(good, b.log(about)...)...))
	first := "2026-01-02T03:04:05Z\tRating\thonesty +0.50\t?why\t" + about.String() + "\t" + a.id.String() + "\t1 of 4\t" + good[0].EntryHash + "\n"
	if err != nil || !strings.HasPrefix(out, first) || strings.Count(out, "\n") != 5 || !strings.Contains(out, "text 1220") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := verify(lines(t, good...), "--json"); err != nil || !strings.Contains(out, `"score": -1`) || strings.Contains(out, "\u202e") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _, err := runIn(bytes.NewReader(lines(t, good[2])), "reputation", "verify", "-"); err != nil || !strings.Contains(out, "3 of 4") {
		t.Errorf("%v\n%s", err, out)
	}
	other := b.log(about, 0.5)
	for name, c := range map[string]struct {
		change func(p *client.Proof)
		says   string
	}{
		"another score":     {func(p *client.Proof) { p.SignedEntry = changed(t, p.SignedEntry) }, "signed_entry: "},
		"another entry":     {func(p *client.Proof) { p.SignedEntry = good[1].SignedEntry }, "another than the one that is proven"},
		"of another":        {func(p *client.Proof) { p.SignedEntry = other[0].SignedEntry }, "another than the one that is proven"},
		"the log of others": {func(p *client.Proof) { p.Head = other[0].Head }, "the path does not lead"},
		"another place":     {func(p *client.Proof) { p.Position = 1 }, "the path does not lead"},
		"another head":      {func(p *client.Proof) { p.Head.TimestampUnixNS++ }, "the signature of the head"},
		"no signature":      {func(p *client.Proof) { p.Head.Signature = nil }, "its head is not signed"},
		"no entry":          {func(p *client.Proof) { p.SignedEntry = nil }, "no signed_entry"},
		"junk":              {func(p *client.Proof) { p.SignedEntry = []byte("junk") }, "signed_entry: "},
	} {
		bad := good[0]
		c.change(&bad)
		if out, err := verify(lines(t, good[1], bad)); err == nil || !strings.Contains(err.Error(), "proof 2: ") || !strings.Contains(err.Error(), c.says) || out != "" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	forked := a.log(about, 0.5, 0.25, 1)
	if _, err := verify(lines(t, good[0], forked[0])); err == nil || !strings.Contains(err.Error(), "has signed two logs") {
		t.Errorf("two heads: %v", err)
	}
	if _, err := verify(lines(t, good[1], a.log(about, 0.5, 0.25)[1])); err == nil || !strings.Contains(err.Error(), "has signed two logs") {
		t.Errorf("two entries in a place: %v", err)
	}
	for content, says := range map[string]string{
		"": "there is no proof in it", "\x1b[2J": "proof 1: ", "{}": "not signed", "[]": "proof 1: ", string(lines(t, good[0])) + "{": "proof 2: ",
		`{"entry_hash":"` + strings.Repeat("x", maxProof): "proof 1: it has more than",
	} {
		if _, err := verify([]byte(content)); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%.20q: %v", content, err)
		}
	}
}

// changed is a signed entry with another score.
func changed(t *testing.T, b []byte) []byte {
	t.Helper()
	e, err := wire.ParseEntry(b)
	if err != nil {
		t.Fatal(err)
	}
	e.Score = -e.Score
	return e.Marshal()
}

func FuzzVerifyProofs(f *testing.F) {
	f.Add([]byte(`{"entry_hash":"00","position":0,"audit_path":[],"head":{"tree_size":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if all, err := verifyProofs(bytes.NewReader(b)); err == nil && len(all) == 0 {
			t.Error("nothing is verified, and no error")
		}
	})
}

func TestReputationShow(t *testing.T) {
	a := newRater(t)
	about := newRater(t).id
	proofs := a.log(about, 0.5)
	at := "/v1/peers/" + about.String()
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case at:
			_, _ = io.WriteString(w, `{"peer_id":"`+about.String()+`","agent_name":"HR\u001b[2J","online":true,"honesty_score":0.25,"dispatch_allowed":true,"on_probation":true,"entries_count":2,
				"last_entry_at":"2026-01-02T03:04:05Z","rater_summary":{"verified_raters_count":1,"unverified_raters_count":3}}`)
		case at + "/log":
			_, _ = io.WriteString(w, `{"entries":[
				{"received_at":"2026-01-02T03:04:06Z","kind":"Comment","entry_hash":"`+proofs[1].EntryHash+`","rater_peer_id":"12D3","rater_status":"verified","text_cid":"1220ab"},
				{"received_at":"2026-01-02T03:04:05Z","kind":"Rating","entry_hash":"`+proofs[0].EntryHash+`","rater_peer_id":"12D3","rater_status":"unverified","dimension":"honesty","score":0,"context":"a\tb"},
				{"received_at":"2026-01-02T03:04:04Z","kind":"Rating","entry_hash":"`+strings.Repeat("0", 64)+`"}]}`)
		case at + "/proof":
			for _, p := range proofs {
				if p.EntryHash == r.FormValue("entry") {
					_, _ = w.Write(lines(t, p))
					return
				}
			}
			problem(w, http.StatusNotFound, "entry_not_found")
		default:
			problem(w, http.StatusNotFound, "not_found")
		}
	})
	show := []string{"reputation", "show", about.String()}
	want, _, err := run("peers", "get", about.String())
	if out, _, shown := run(show...); err != nil || shown != nil || out != want || !strings.Contains(out, "honesty\t0.25\n") {
		t.Errorf("%v, %v\n%s", err, shown, out)
	}
	if out, _, err := run(append(show, "--json")...); err != nil || !strings.Contains(out, `"on_probation": true`) || strings.Contains(out, "\x1b") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _, err := run(append(show, "--proofs", "--entries", "1")...); err != nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, proofs[1].EntryHash) {
		t.Errorf("%v\n%s", err, out)
	}
	out, stderr, err := run(append(show, "--proofs", "--json")...) // as without
	if err != nil || strings.Count(out, "\n") != 2 || !strings.Contains(stderr, "1 entries have no proof") {
		t.Fatalf("%v\n%s%s", err, out, stderr)
	}
	if out, _, err := runIn(strings.NewReader(out), "reputation", "verify", "-"); err != nil || strings.Count(out, "\n") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	for args, want := range map[string]int{
		"reputation show":                         exitUsage,
		"reputation show x --proofs --entries -1": exitUsage,
		"reputation show x --entries 5":           exitUsage,
		"reputation show x":                       exitNotFound,
		"reputation verify":                       exitUsage,
		"reputation verify /nowhere":              exitFailed,
	} {
		if _, _, err := run(strings.Fields(args)...); err == nil || exitCode(err) != want && !strings.Contains(err.Error(), "none of the others can be") {
			t.Errorf("%s: %d, want %d: %v", args, exitCode(err), want, err)
		}
	}
}

// TestRecover has the running Caddy begin an epoch, if that is said to be meant.
func TestRecover(t *testing.T) {
	address := admin(t, map[string]string{
		`POST /agentfm/recover{"force":false}`: `{"entries":3}`,
		`POST /agentfm/recover{"force":true}`:  `{"entries":4}`,
	})
	if out, _, err := run("reputation", "recover", "--yes", "--address", address); err != nil || out != "a new epoch has begun; 3 entries were signed anew\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, _, err := run("reputation", "recover", "--yes", "--json", "--address", address); err != nil || !strings.Contains(out, `"entries":3`) {
		t.Errorf("%q, %v", out, err)
	}
	if out, _, err := run("reputation", "recover", "--yes", "--force", "--address", address); err != nil || !strings.Contains(out, "4 entries") {
		t.Errorf("%q, %v", out, err)
	}
	if _, _, err := run("reputation", "recover", "--address", address); exitCode(err) != exitUsage {
		t.Errorf("without --yes: %v", err)
	}
	if _, _, err := run("reputation", "recover", "--yes", "--address", admin(t, nil)); err == nil || !strings.Contains(err.Error(), "not running") || strings.Contains(err.Error(), "does Caddy run") {
		t.Error(err)
	}
}
