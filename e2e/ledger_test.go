// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Two gateways, of which the second knows the first alone: it gets every rating and the text
// of every comment, also those from before it was there. The first is killed while it
// signs, and goes on with the same log.
func TestLedger(t *testing.T) {
	port := freePorts(t, 1)[0]
	first := home(t)
	config := caddyfile("\n\t\t\tlisten /ip4/127.0.0.1/tcp/"+port+"\n\t\t\tdiscovery off\n\t\t\tbootstrap off", "agentfm",
		agent("report", "Text report", "text-report", command(reportScript)))
	a := start(t, first, config)
	a.awaitLog("serving initial configuration")
	a.awaitWorkers(1)
	peer := a.awaitLog("mesh node is open")["peer"].(string)
	worker := a.workerID("Text report")
	path := "/v1/peers/" + worker

	say := func(body map[string]any) (made struct {
		CID string `json:"cid"`
	}) {
		t.Helper()
		resp, err := a.send(t.Context(), http.MethodPost, path+"/comments/self", body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || resp.StatusCode != http.StatusCreated {
			t.Fatal(resp.Status, err)
		}
		return made
	}
	made := say(map[string]any{"text": "Quick and right.", "rating": 0.8, "language": "en"})
	resp := a.post("/api/execute", map[string]any{"worker_id": worker, "prompt": "One two.", "feedback": "Fine", "feedback_rating": 0.5})
	if out, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", resp.Status, out)
	}

	entries := func(p *process) int {
		var summary struct {
			Entries int `json:"entries_count"`
		}
		p.decode(p.get(path), &summary)
		return summary.Entries
	}
	text := func(p *process) string {
		resp, err := p.send(t.Context(), http.MethodGet, path+"/comments/"+made.CID, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	b := start(t, home(t), caddyfile(
		fmt.Sprintf("\n\t\t\tlisten /ip4/127.0.0.1/tcp/0\n\t\t\tdiscovery off\n\t\t\tbootstrap /ip4/127.0.0.1/tcp/%s/p2p/%s", port, peer), "agentfm"))
	b.awaitLog("serving initial configuration")
	b.await("entries of the first gateway", func() bool { return entries(b) == 4 })
	b.await("text of the comment", func() bool { return text(b) == "Quick and right." })

	for range 5 {
		say(map[string]any{"text": "Again."})
	}
	a.kill()
	a = start(t, first, config)
	a.awaitLog("serving initial configuration")
	a.awaitWorkers(1)
	if n := entries(a); n != 9 {
		t.Errorf("after the kill there are %d entries", n)
	}
	say(map[string]any{"text": "After the crash."})
	b.await("what was said after the crash", func() bool { return entries(b) == 10 })
	if text(a) != "Quick and right." || strings.Contains(b.log.String(), "two logs") || strings.Contains(a.log.String(), "signs no more") {
		t.Error("the log of the first gateway is another after the crash")
	}
}
