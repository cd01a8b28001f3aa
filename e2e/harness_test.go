// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package e2e tests the ready-made binary from outside: real processes, real
// clients, a real Docker engine. e2e/run sets up what the tests need and says
// where it is in AGENTFM_TEST_* variables; a test that misses one is skipped,
// or fails when AGENTFM_TEST_STRICT is 1.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/e2e/internal/build"
	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
)

const (
	// root is the repository, seen from here.
	root = ".."

	// testKey is the API key of the gateways that want one.
	testKey = "a-key-of-the-test-gateway"

	// pollInterval is how often a condition is looked at.
	pollInterval = 50 * time.Millisecond
)

// nightly says that the tests that measure over time run at full length; see
// e2e/nightly.
var nightly = os.Getenv("AGENTFM_TEST_NIGHTLY") == "1"

// scaled returns the first value, or in a nightly run the second.
func scaled[T any](everyday, night T) T {
	if nightly {
		return night
	}
	return everyday
}

// patience is how long a condition may take to come true. It is long for a
// machine that is busy with other tests, and never slept through.
var patience = scaled(2*time.Minute, 30*time.Minute)

var httpClient = &http.Client{Timeout: patience}

func TestMain(m *testing.M) {
	code := m.Run()
	stopBackend()
	os.RemoveAll(binaryDir)
	os.Exit(code)
}

var binaryDir string

// binary builds the ready-made binary, once.
var binary = sync.OnceValues(func() (string, error) {
	var err error
	if binaryDir, err = os.MkdirTemp("", "agentfm-e2e"); err != nil {
		return "", err
	}
	return build.Build(binaryDir, root, nil)
})

// need returns the value of an AGENTFM_TEST_* variable.
func need(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		missing(t, name+" is not set (e2e/run sets it)")
	}
	return value
}

// needProgram skips the test where a program is not installed.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, err.Error())
	}
}

// missing ends a test that lacks something.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("AGENTFM_TEST_STRICT") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// process is one running binary.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string // of its site
	log  *logBuffer
	done chan struct{} // closed at its end

	admin  string // URL of its admin API
	config string // its Caddyfile
}

// home is where a process keeps its state, and its working folder. A second
// process with the same home is the same node.
func home(t *testing.T) string {
	dir := t.TempDir()
	examples, err := filepath.Abs(filepath.Join(root, "examples"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(examples, filepath.Join(dir, "examples")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs the binary with a Caddyfile. In it, ADMIN stands for the address
// of the admin API and SITE for the address of the site.
func start(t *testing.T, home, caddyfile string) *process {
	t.Helper()
	return startWith(t, home, caddyfile, nil)
}

// startWith is start, with more of an environment.
func startWith(t *testing.T, home, caddyfile string, env []string) *process {
	t.Helper()
	return startAs(t, "", home, caddyfile, env)
}

// startAs is startWith, with another program than the binary.
func startAs(t *testing.T, program, home, caddyfile string, env []string) *process {
	t.Helper()
	ports := freePorts(t, 2)
	p := launch(t, program, home, strings.NewReplacer("SITE", ":"+ports[0], "ADMIN", "127.0.0.1:"+ports[1]).Replace(caddyfile), env)
	p.url, p.admin = "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	return p
}

// launch runs a program, or the binary when it is empty, with a Caddyfile as it
// stands and with more of an environment.
func launch(t *testing.T, program, home, caddyfile string, env []string) *process {
	t.Helper()
	config := filepath.Join(home, "Caddyfile")
	if err := os.WriteFile(config, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	p := spawn(t, program, home, env, "run", "--config", config)
	p.config = caddyfile
	return p
}

// spawn runs a program, or the binary when it is empty, with these arguments and with more
// of an environment.
func spawn(t *testing.T, program, home string, env []string, args ...string) *process {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	if program == "" {
		var err error
		if program, err = binary(); err != nil {
			t.Fatal(err)
		}
	}
	p := &process{t: t, log: &logBuffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir = home
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home}, env...)
	p.cmd.Stderr = p.log
	p.cmd.WaitDelay = 5 * time.Second // a child that outlives the process may hold its standard error
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in p.cmd.ProcessState
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if _, race, found := strings.Cut(p.log.String(), "WARNING: DATA RACE"); found {
			t.Errorf("data race in the process:%.6000s", race)
		}
		if t.Failed() {
			t.Logf("%q\nCaddyfile:\n%s\nlog of process %d:\n%s", args, p.config, p.cmd.Process.Pid, p.log)
		}
	})
	return p
}

// in returns the process for use in a subtest.
func (p *process) in(t *testing.T) *process {
	q := *p
	q.t = t
	return &q
}

// stop ends the process as a service manager does, and checks that it ended
// well. It does nothing when the process has ended.
func (p *process) stop() {
	p.t.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it fails only when the process has ended
	select {
	case <-p.done:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			p.t.Errorf("after SIGTERM: %v", p.cmd.ProcessState)
		}
	case <-time.After(patience):
		p.t.Errorf("still running %v after SIGTERM", patience)
		p.kill()
	}
}

// kill ends the process at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it fails only when the process has ended
	<-p.done
}

// reload gives the process another Caddyfile: what change makes of its own.
func (p *process) reload(change func(caddyfile string) string) {
	p.t.Helper()
	resp, err := httpClient.Post(p.admin+"/load", "text/caddyfile", strings.NewReader(change(p.config)))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("reload: %s: %s, %v", resp.Status, text, err)
	}
}

// await waits until a condition holds while the process runs.
func (p *process) await(what string, holds func() bool) {
	p.t.Helper()
	await(p.t, what, func() bool {
		p.t.Helper()
		select {
		case <-p.done:
			p.t.Fatalf("%s: the process has ended: %v", what, p.cmd.ProcessState)
		default:
		}
		return holds()
	})
}

// await waits until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(pollInterval) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// awaitWorkers waits until n workers take tasks.
func (p *process) awaitWorkers(n int) {
	p.t.Helper()
	p.await(fmt.Sprintf("%d available workers", n), func() bool {
		resp, err := p.send(p.t.Context(), http.MethodGet, "/api/workers", nil)
		if err != nil {
			return false // not serving yet
		}
		defer resp.Body.Close()
		var list workerList
		p.decode(resp, &list)
		available := 0
		for _, w := range list.Agents {
			if w.Status == "AVAILABLE" {
				available++
			}
		}
		return available == n
	})
}

// awaitLog waits for a log entry and returns it.
func (p *process) awaitLog(message string) map[string]any {
	p.t.Helper()
	var found map[string]any
	p.await("log entry "+message, func() bool {
		for line := range strings.Lines(p.log.String()) {
			var entry map[string]any
			if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == message {
				found = entry
				return true
			}
		}
		return false
	})
	return found
}

// workerID returns the peer id of the agent with that name.
func (p *process) workerID(name string) string {
	p.t.Helper()
	for _, w := range p.workers().Agents {
		if w.Name == name {
			return w.PeerID
		}
	}
	p.t.Fatalf("no agent %q online", name)
	return ""
}

type workerList struct {
	Agents []struct {
		PeerID string `json:"peer_id"`
		Name   string `json:"name"`
		Status string `json:"status"`

		CurrentTasks int `json:"current_tasks"`
	} `json:"agents"`
}

func (p *process) workers() workerList {
	p.t.Helper()
	var list workerList
	p.decode(p.get("/api/workers"), &list)
	return list
}

func (p *process) get(path string) *http.Response {
	p.t.Helper()
	return p.do(p.t.Context(), http.MethodGet, path, nil)
}

func (p *process) post(path string, body any) *http.Response {
	p.t.Helper()
	return p.do(p.t.Context(), http.MethodPost, path, body)
}

// do sends a request, with the body as JSON, and wants status 200.
func (p *process) do(ctx context.Context, method, path string, body any) *http.Response {
	p.t.Helper()
	resp, err := p.send(ctx, method, path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body) // whatever there is, for the message
		p.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return resp
}

func (p *process) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	p.t.Helper()
	var payload bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&payload).Encode(body); err != nil {
			p.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, &payload)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return httpClient.Do(req)
}

func (p *process) decode(resp *http.Response, v any) {
	p.t.Helper()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		p.t.Fatal(err)
	}
}

// logBuffer keeps what a process writes, for readers at any time.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// freePorts returns ports of the loopback interface that are free now.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		ports = append(ports, strconv.Itoa(freeport.Get(t)))
	}
	return ports
}

// localMesh keeps a node away from all others.
const localMesh = `
			listen /ip4/127.0.0.1/tcp/0
			bootstrap off
			discovery off`

// mesh is a gateway, and workers in processes of their own.
type mesh struct {
	gateway *process
	address string // of the gateway's node
}

// newMesh starts a gateway with the lines of its site's block, and more of an environment.
func newMesh(t *testing.T, site string, env ...string) *mesh {
	t.Helper()
	return joinMesh(t, "", "off", site, env...)
}

// joinMesh is newMesh, with another program than the binary unless that is empty, and the
// address of another node that it knows, or "off".
func joinMesh(t *testing.T, program, bootstrap, site string, env ...string) *mesh {
	t.Helper()
	address := "/ip4/127.0.0.1/tcp/" + freePorts(t, 1)[0]
	gateway := startAs(t, program, home(t), caddyfile("\n\t\t\tlisten "+address+"\n\t\t\tbootstrap "+bootstrap+"\n\t\t\tdiscovery off", site), env)
	peer, ok := gateway.awaitLog("mesh node is open")["peer"].(string)
	if !ok {
		t.Fatal("the log does not tell the gateway's peer id")
	}
	return &mesh{gateway, address + "/p2p/" + peer}
}

// worker starts a process with agents, which the gateway will know in a while.
func (m *mesh) worker(agents ...string) *process {
	m.gateway.t.Helper()
	return start(m.gateway.t, home(m.gateway.t), caddyfile(
		"\n\t\t\tlisten /ip4/127.0.0.1/tcp/0\n\t\t\tbootstrap "+m.address+"\n\t\t\tdiscovery off", "", agents...))
}

// caddyfile puts a Caddyfile together from the lines of the mesh block, of the
// site's block (no site when it is empty) and of one block for each agent.
func caddyfile(mesh, site string, agents ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\tadmin ADMIN\n\tagentfm {\n\t\tmesh {%s\n\t\t}\n\t\tartifacts artifacts\n\t}\n", mesh)
	if len(agents) > 0 {
		fmt.Fprintf(&b, "\tagentfm_worker {\n%s\t}\n", strings.Join(agents, ""))
	}
	b.WriteString("}\n")
	if site != "" {
		fmt.Fprintf(&b, "SITE {\n\tbind 127.0.0.1\n\t%s\n}\n", site)
	}
	return b.String()
}

// agent returns the block of an agent.
func agent(key, name, model, runtime string) string {
	return fmt.Sprintf("\t\tagent %s {\n\t\t\tname %q\n\t\t\tmodel %s\n\t\t\tmax_tasks 4\n\t\t\tmax_cpu off\n\t\t\truntime %s\n\t\t}\n",
		key, name, model, runtime)
}

// command returns the runtime of an agent that is a local shell script, with
// pairs of names and values for its environment.
func command(script string, env ...string) string {
	block := fmt.Sprintf("process {\n\t\t\t\tcommand sh %q\n\t\t\t\tprompt stdin\n", script)
	for pair := range slices.Chunk(env, 2) {
		block += fmt.Sprintf("\t\t\t\tenv %s %q\n", pair[0], pair[1])
	}
	return block + "\t\t\t}"
}

// writeScript writes an agent into a file and returns its path.
func writeScript(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sh")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// gatedScript waits between its two lines until the file $GATE is there.
const gatedScript = `printf 'first line\n'
until [ -e "$GATE" ]; do sleep 0.02; done
printf 'second line\n'
`

// ended reports whether a process that is not our child has ended. One that
// nobody has collected yet counts.
func ended(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // "pid (name) state …"; on Linux alone
	return err == nil && bytes.Contains(stat, []byte(") Z "))
}
