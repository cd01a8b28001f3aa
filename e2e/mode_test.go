// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// agentfm runs the binary with the command line of AgentFM's own, until it ends.
func agentfm(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = dir, append([]string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}, env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run() // its status says how it went
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// swarmKey makes the key of a private swarm with the mode genkey.
func swarmKey(t *testing.T) string {
	t.Helper()
	key, notes, code := agentfm(t, t.TempDir(), nil, "-mode", "genkey")
	if code != 0 || !strings.HasPrefix(key, "/key/swarm/psk/1.0.0/\n/base16/\n") {
		t.Fatalf("genkey: status %d: %s%s", code, key, notes)
	}
	file := filepath.Join(t.TempDir(), "swarm.key")
	if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestModeCommandLine has what ends at once: the configuration that is shown is one that
// Caddy takes, and what is wrong is told with what would be right.
func TestModeCommandLine(t *testing.T) {
	dir := t.TempDir()
	config, notes, code := agentfm(t, dir, nil, "--mode", "api", "--apiport=8081", "--print-config")
	if code != 0 || !strings.Contains(config, "http://:8081 {") {
		t.Fatalf("status %d: %s%s", code, config, notes)
	}
	writeFile(t, dir, "Caddyfile", config)
	if out, notes, code := agentfm(t, dir, nil, "validate", "--config", "Caddyfile"); code != 0 {
		t.Errorf("validate: status %d: %s%s", code, out, notes)
	}
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"the modes are api, worker, relay, witness, genkey, test\n", []string{"-mode", "boss"}},
		{"the flags are -mode, -agentdir, ", []string{"-mode", "api", "-colour"}},
		{"the flags of -mode api are: -apiport, ", []string{"-mode", "api", "-agentdir", "."}},
	} {
		if out, notes, code := agentfm(t, dir, nil, tt.args...); code != 2 || out != "" || !strings.Contains(notes, tt.want) {
			t.Errorf("%q: status %d: %s%s, want %s", tt.args, code, out, notes, tt.want)
		}
	}
	if out, notes, code := agentfm(t, dir, nil, "-mode=worker", "-help"); code != 0 || !strings.Contains(out, "-agentdir ") {
		t.Errorf("help: status %d: %s%s", code, out, notes)
	}
	if out, notes, code := agentfm(t, dir, nil, "version"); code != 0 || !strings.HasPrefix(out, "agentfm ") || !strings.Contains(out, "caddy v2.") {
		t.Errorf("version: status %d: %s%s", code, out, notes)
	}
}

// TestLocalMeshGateway has the Python SDK start the binary as it is, twice at one time.
func TestLocalMeshGateway(t *testing.T) {
	python := need(t, "AGENTFM_TEST_PYTHON")
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	key := swarmKey(t)
	var bootstrap []string // each agent is a node
	for name, runtime := range map[string]string{
		"text-report": command(reportScript),
		"gated":       command(writeScript(t, gatedScript), "GATE", filepath.Join(t.TempDir(), "gate")),
	} {
		address := "/ip4/127.0.0.1/tcp/" + freePorts(t, 1)[0]
		worker := start(t, home(t), caddyfile("\n\t\t\tbootstrap off\n\t\t\tdiscovery off\n\t\t\tswarm_key "+key, "",
			agent("a", name, name, runtime+"\n\t\t\tlisten "+address)))
		bootstrap = append(bootstrap, fmt.Sprintf("%s/p2p/%s", address, worker.awaitLog("agent is on the mesh")["peer"]))
	}
	dir, ports := t.TempDir(), freePorts(t, 2)
	script, err := filepath.Abs("python/local_gateway.py")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir,
		"PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), // where it looks for "agentfm"
		"GATEWAY_PORT="+ports[0], "SECOND_PORT="+ports[1], "SWARM_KEY="+key, "BOOTSTRAP="+strings.Join(bootstrap, ","))
	if out, err := cmd.CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, ".agentfm-gateway-"+ports[0]+".log"))
		t.Errorf("%v\n%s\nlog of the gateway:\n%s", err, out, log)
	}
}

// TestModes has a relay, a gateway, a witness and a worker, all of AgentFM's command lines and
// knowing of the relay alone. The agent is in a container, and is tried in the mode test, too.
func TestModes(t *testing.T) {
	engine := newEngine(t)
	key, dir, ports := swarmKey(t), home(t), freePorts(t, 3)
	relay := spawn(t, "", home(t), nil, "-mode", "relay", "-port", ports[0], "-swarmkey", key, "-bootstrap", "off", "-witness", "-identity", "node.key", "-log-format", "json")
	inSwarm := []string{"-swarmkey", key, "-bootstrap", fmt.Sprintf("/ip4/127.0.0.1/tcp/%s/p2p/%s", ports[0], relay.awaitLog("mesh node is open")["peer"])}
	p := spawn(t, "", dir, []string{"AGENTFM_API_KEYS=" + testKey}, append([]string{"-mode", "api", "-apiport", ports[1]}, inSwarm...)...)
	p.url = "http://127.0.0.1:" + ports[1]
	spawn(t, "", home(t), nil, append([]string{"-mode=witness"}, inSwarm...)...).awaitLog("mesh node is open")

	host := []string{"DOCKER_HOST=" + engine.host}
	agentDir := t.TempDir()
	writeFile(t, agentDir, "Containerfile", "FROM "+baseImage+"\nENTRYPOINT [\"sh\", \"-c\", \"echo $GREETING, $0, by $AGENTFM_MODEL; echo kept > /tmp/output/note\"]\n")
	writeFile(t, agentDir, ".env", "GREETING=Good day\n")
	agentFlags := []string{"-agentdir", agentDir, "-image", "agentfm-mode:v1", "-agent", "Greeter", "-model", "llama3.2", "-maxtasks=2", "-maxcpu", "100"}
	worker := spawn(t, "", home(t), host, slices.Concat([]string{"-mode", "worker", "-prom-listen", "127.0.0.1:" + ports[2]}, inSwarm, agentFlags)...)
	worker.awaitLog("agent is ready")
	p.awaitWorkers(1)

	resp := p.post("/api/execute", map[string]any{"worker_id": p.workerID("Greeter"), "prompt": "Ann", "task_id": "task_mode"})
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(string(body), "Good day, Ann, by llama3.2\n") || !strings.HasSuffix(string(body), filesIncoming) {
		t.Errorf("execute: %q: %v", body, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "agentfm_artifacts", "task_mode.zip")); err != nil {
		t.Error(err)
	}
	metrics, err := httpClient.Get("http://127.0.0.1:" + ports[2] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer metrics.Body.Close()
	if text, err := io.ReadAll(metrics.Body); err != nil || !strings.Contains(string(text), "agentfm_artifacts_built_total 1\n") {
		t.Errorf("metrics: %s, %v", text, err)
	}

	out, notes, code := agentfm(t, t.TempDir(), host, append([]string{"-mode", "test", "-prompt", "Bob"}, agentFlags...)...)
	if code != 0 || out != "Good day, Bob, by llama3.2\n" || !strings.Contains(notes, "file: note (5 bytes)") {
		t.Errorf("test: status %d: %s%s", code, out, notes)
	}
}
