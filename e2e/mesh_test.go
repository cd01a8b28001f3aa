// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// A worker in a process of its own serves a gateway that has the same swarm
// key. One that has not never gets in.
func TestTwoProcesses(t *testing.T) {
	key := filepath.Join(t.TempDir(), "swarm.key")
	secret := make([]byte, 32)
	rand.Read(secret)
	if err := os.WriteFile(key, fmt.Appendf(nil, "/key/swarm/psk/1.0.0/\n/base16/\n%x\n", secret), 0o600); err != nil {
		t.Fatal(err)
	}
	// mesh returns the lines of a mesh block.
	mesh := func(port string, lines ...string) string {
		lines = append([]string{"", "listen /ip4/127.0.0.1/tcp/" + port, "discovery off"}, lines...)
		return strings.Join(lines, "\n\t\t\t")
	}
	port := freePorts(t, 1)[0]
	gateway := start(t, home(t), caddyfile(mesh(port, "bootstrap off", "swarm_key "+key), "agentfm"))
	peer, ok := gateway.awaitLog("mesh node is open")["peer"].(string)
	if !ok {
		t.Fatal("the log does not tell the gateway's peer id")
	}

	report := command(reportScript)
	door := newDoor(t, "127.0.0.1:"+port)
	stranger := start(t, home(t), caddyfile(
		mesh("0", fmt.Sprintf("bootstrap /ip4/127.0.0.1/tcp/%s/p2p/%s", door.port, peer)), "",
		agent("report", "Stranger", "text-report", report)))
	stranger.await("second attempt of the worker without a key", func() bool { return door.visits.Load() >= 2 })

	worker := start(t, home(t), caddyfile(
		mesh("0", fmt.Sprintf("bootstrap /ip4/127.0.0.1/tcp/%s/p2p/%s", port, peer), "swarm_key "+key), "",
		agent("report", "Member", "text-report", report)))
	gateway.awaitWorkers(1)

	resp := gateway.post("/v1/chat/completions", chatRequest("text-report", "One two.", true))
	if got := strings.Join(chatChunks(t, resp), ""); !strings.Contains(got, "- Words: 2, of them 2 different\n") {
		t.Errorf("chat: %q", got)
	}
	if got := gateway.workers().Agents; len(got) != 1 || got[0].Name != "Member" {
		t.Errorf("workers: %v", got)
	}

	worker.stop()
	gateway.await("worker offline", func() bool { return len(gateway.workers().Agents) == 0 })
}

// door forwards TCP connections, and counts those that have ended.
type door struct {
	port   string
	visits atomic.Int64
}

func newDoor(t *testing.T, target string) *door {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := &door{}
	_, d.port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer d.visits.Add(1)
				defer in.Close()
				out, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in) // it ends with the connection
					out.Close()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return d
}
