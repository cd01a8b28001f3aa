// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
)

// natsBinary builds the NATS server, once.
var natsBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lifecycle-nats")
	if err != nil {
		return "", err
	}
	natsDir = dir
	cmd := exec.Command("go", "build", "-o", dir, "github.com/nats-io/nats-server/v2")
	cmd.Env = outerEnv
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the NATS server: %w\n%s", err, out)
	}
	return filepath.Join(dir, "nats-server"), nil
})

var natsDir string

// natsCluster is the NATS servers that gateways share, each a process.
type natsCluster []*natsProcess

// natsProcess is one of them.
type natsProcess struct {
	t    *testing.T
	dir  string
	port int
	cmd  *exec.Cmd
}

// natsPassword is that of the user "gateway".
const natsPassword = "correct-horse-battery"

// startNATS starts one server, or a cluster of more.
func startNATS(t *testing.T, servers int) natsCluster {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	var c natsCluster
	var routes []string
	for range servers {
		c = append(c, &natsProcess{t: t, dir: t.TempDir(), port: freeport.Get(t)})
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", freeport.Get(t)))
	}
	for i, n := range c {
		conf := fmt.Sprintf("server_name: n%d\nlisten: 127.0.0.1:%d\nauthorization { user: gateway, password: %q }\n", i, n.port, natsPassword) +
			fmt.Sprintf("jetstream { store_dir: %q, max_file_store: 64GB, sync_interval: always }\n", filepath.Join(n.dir, "store"))
		if servers > 1 {
			conf += fmt.Sprintf("cluster { name: tasks, listen: %q, routes: [%s] }\n", strings.TrimPrefix(routes[i], "nats://"), strings.Join(routes, ", "))
		}
		if err := os.WriteFile(filepath.Join(n.dir, "conf"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		n.start()
		t.Cleanup(func() {
			n.kill()
			if t.Failed() {
				log, _ := os.ReadFile(filepath.Join(n.dir, "log"))
				t.Logf("NATS server %d:\n%s", i, log[max(0, len(log)-20_000):])
			}
		})
	}
	return c
}

// start starts the server, with what it had before.
func (n *natsProcess) start() {
	n.t.Helper()
	binary, err := natsBinary()
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(binary, "-c", filepath.Join(n.dir, "conf"), "-l", filepath.Join(n.dir, "log"))
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	await(n.t, "the NATS server listens", func() bool {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", n.port), time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// kill ends the server at once.
func (n *natsProcess) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// app is what gateways are told of the servers.
func (c natsCluster) app() string {
	urls := make([]string, len(c))
	for i, n := range c {
		urls[i] = fmt.Sprintf("nats://127.0.0.1:%d", n.port)
	}
	return fmt.Sprintf("tasks {\n\t\t\tnats %s {\n\t\t\t\tuser gateway {env.NATS_PASSWORD}\n\t\t\t}\n\t\t\tin_flight 64\n\t\t}", strings.Join(urls, " "))
}

// team is gateways that share a store, and a process with the agents.
type team struct {
	t        *testing.T
	configs  []config
	gateways []*process
}

// startTeam starts two gateways and the agents.
func startTeam(t *testing.T, nats natsCluster, agents ...agent) *team {
	t.Helper()
	m := &team{t: t}
	c := config{
		name: "run", app: nats.app(), files: t.TempDir(), env: []string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1", "NATS_PASSWORD=" + natsPassword},
	}
	worker := config{name: "agents", agents: agents}
	for range 2 {
		c.listen = fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", freeport.Get(t))
		p := start(t, newPlace(t), c)
		await(t, "the gateway is ready", func() bool { return p.status("/health") == http.StatusOK }) // and has its key
		m.configs, m.gateways = append(m.configs, c), append(m.gateways, p)
		worker.peers = append(worker.peers, c.listen+"/p2p/"+p.place.peerID(t, "gateway").String())
	}
	start(t, newPlace(t), worker)
	m.awaitWorker(agents[0].key)
	return m
}

// restart starts a gateway that was killed.
func (m *team) restart(i int) {
	m.t.Helper()
	m.gateways[i] = start(m.t, m.gateways[i].place, m.configs[i])
}

// awaitWorker waits until each gateway has an agent.
func (m *team) awaitWorker(name string) {
	m.t.Helper()
	for _, g := range m.gateways {
		g.awaitWorker(name)
	}
}

// checkLogs wants no secret in what the gateways have written.
func (m *team) checkLogs() {
	m.t.Helper()
	for _, g := range m.gateways {
		log, err := os.ReadFile(filepath.Join(g.place.dir, "log"))
		if err != nil || bytes.Contains(log, []byte(natsPassword)) {
			m.t.Errorf("the log has the password (%v)", err)
		}
	}
}
