// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Row F12: the relay that all nodes begin with is killed, and returns. Who has met works on
// as if nothing were: a task that runs, and new ones. Within a minute of its return all know
// it again, and whom they could not meet meanwhile.
func TestF12RelayGone(t *testing.T) {
	address := "/ip4/127.0.0.1/tcp/" + freePorts(t, 1)[0]
	relay := start(t, home(t), caddyfile("\n\t\t\tlisten "+address+"\n\t\t\tbootstrap off\n\t\t\tdiscovery dht\n\t\t\trelay", ""))
	peer, _ := relay.awaitLog("mesh node is open")["peer"].(string)
	mesh := "\n\t\t\tlisten /ip4/127.0.0.1/tcp/0\n\t\t\tdiscovery dht\n\t\t\tbootstrap " + address + "/p2p/" + peer
	gate := filepath.Join(t.TempDir(), "gate")
	gateway := start(t, home(t), caddyfile(mesh, withKey))
	worker := start(t, home(t), caddyfile(mesh, "", agent("gated", "Gated", "gated", command(writeScript(t, gatedScript), "GATE", gate))))
	gateway.awaitWorkers(1)

	running := newEvents(gateway.post("/v1/chat/completions", chatRequest("gated", "", true)))
	first := running.nextText(t)
	relay.kill()
	newcomer := start(t, home(t), caddyfile(mesh, "", agent("new", "New", "new", command(writeScript(t, "printf done\n")))))
	for _, p := range []*process{gateway, worker, newcomer} {
		p.awaitLog("bootstrap node cannot be reached")
	}
	time.Sleep(scaled(0, 5*time.Minute))
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text := running.nextText(t); text != ""; text = running.nextText(t) {
		first += text
	}
	if want := "first line\nsecond line\n"; first != want {
		t.Errorf("the task that ran said %q, want %q", first, want)
	}
	wantAnswer := func(p *process, model, want string) {
		t.Helper()
		if got := strings.Join(chatChunks(t, p.post("/v1/chat/completions", chatRequest(model, "", true))), ""); got != want {
			t.Errorf("%s said %q, want %q", model, got, want)
		}
	}
	wantAnswer(gateway, "gated", "first line\nsecond line\n")

	start(t, relay.cmd.Dir, relay.config)
	back := time.Now()
	later := start(t, home(t), caddyfile(mesh, withKey)) // which the worker has never met
	for _, p := range []*process{gateway, later} {
		p.awaitWorkers(2)
		wantAnswer(p, "gated", "first line\nsecond line\n")
		wantAnswer(p, "new", "done")
	}
	if took := time.Since(back); took > time.Minute {
		t.Errorf("the mesh was whole again after %v", took)
	}
	if n := gateway.count("worker is offline"); n != 0 {
		t.Errorf("the gateway lost its worker %d times", n)
	}
}
