// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// rater is a gateway whose ledger a test reads.
type rater struct{ *process }

// said is an entry of the log about a peer.
type said struct {
	Hash string `json:"entry_hash"`
	Kind string `json:"kind"`
	CID  string `json:"text_cid"`
}

// log returns what is said of a peer.
func (r rater) log(peer string) (all []said) {
	r.t.Helper()
	var page struct {
		Entries []said `json:"entries"`
	}
	r.decode(r.get("/v1/peers/"+peer+"/log?limit=500"), &page)
	return page.Entries
}

// text returns the text of a comment, or what is said in its place.
func (r rater) text(peer, cid string) string {
	r.t.Helper()
	resp, err := r.send(r.t.Context(), http.MethodGet, "/v1/peers/"+peer+"/comments/"+cid, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// witnesses returns how many witnesses have signed the head that covers an entry; -1 when
// there is no proof of it.
func (r rater) witnesses(peer, hash string) int {
	r.t.Helper()
	resp, err := r.send(r.t.Context(), http.MethodGet, "/v1/peers/"+peer+"/proof?entry="+hash, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var proof struct {
		Head struct {
			Witnesses int `json:"witness_count"`
		} `json:"head"`
	}
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&proof) != nil {
		return -1
	}
	return proof.Head.Witnesses
}

// The examples of a relay and of a witness run as they are. What a gateway has rated and said
// outlives it: a fresh one that knows only the relay gets every rating and every text, and
// the witness's signature with them.
func TestExampleRelay(t *testing.T) {
	relay := startExample(t, "relay/Caddyfile", setting{})
	witness := startExample(t, "witness/Caddyfile", setting{env: []string{"AGENTFM_RELAY=" + relay.address()}})
	witnessID := witness.awaitLog("mesh node is open")["peer"].(string)
	config := func(bootstrap, reputation string, agents ...string) string {
		return caddyfile("\n\t\t\tlisten /ip4/127.0.0.1/tcp/0\n\t\t\tdiscovery off\n\t\t\tbootstrap "+bootstrap+"\n\t\t}\n\t\treputation {"+reputation, "agentfm", agents...)
	}
	const comments = 20
	first := rater{start(t, home(t), config(relay.address()+" "+witness.address(), "\n\t\t\twitnesses "+witnessID,
		agent("report", "Text report", "text-report", command(reportScript))))}
	first.awaitLog("serving initial configuration")
	first.awaitWorkers(1)
	worker := first.workerID("Text report")
	texts := make(map[string]string)
	for i := range comments {
		text := fmt.Sprintf("Comment %d.", i)
		resp, err := first.send(t.Context(), http.MethodPost, "/v1/peers/"+worker+"/comments/self", map[string]any{"text": text, "rating": 0.5})
		if err != nil {
			t.Fatal(err)
		}
		var made struct {
			CID string `json:"cid"`
		}
		err = json.NewDecoder(resp.Body).Decode(&made)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusCreated {
			t.Fatal(resp.Status, err)
		}
		texts[made.CID] = text
	}
	whole := func(g rater) bool {
		for cid, text := range texts {
			if g.text(worker, cid) != text {
				return false
			}
		}
		return len(g.log(worker)) == 2*comments
	}
	newest := first.log(worker)[0].Hash
	first.await("the signature of the witness", func() bool { return first.witnesses(worker, newest) == 1 })

	// What this one has, the relay had: it knows nobody else.
	second := rater{start(t, home(t), config(relay.address(), ""))}
	second.awaitLog("serving initial configuration")
	second.await("all of the first gateway, from the relay", func() bool { return whole(second) })
	second.await("what the witness has signed", func() bool { return second.witnesses(worker, newest) == 1 })
	first.kill()
	second.kill()
	third := rater{start(t, home(t), config(relay.address(), ""))}
	third.awaitLog("serving initial configuration")
	third.await("all of the first gateway, which is gone", func() bool { return whole(third) })
	third.await("what the witness has signed", func() bool { return third.witnesses(worker, newest) == 1 })
}
