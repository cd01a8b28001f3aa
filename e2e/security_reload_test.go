// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// newAnyClient returns a client of a version of HTTP, up to 3, and a function
// that closes its connections.
func newAnyClient(t *testing.T, version int) (*http.Client, func()) {
	if version < 3 {
		c := newClient(t, version)
		return c, c.CloseIdleConnections
	}
	tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	closeAll := func() { _ = tr.Close() } // for the second time at the end: an error of no interest
	t.Cleanup(closeAll)
	return &http.Client{Transport: tr, Timeout: patience}, closeAll
}

// sdkRetries is how often the official clients of OpenAI send a request again.
const sdkRetries = 2

// tally counts what became of requests.
type tally struct {
	served, again atomic.Int64
}

// askAgain sends a request as the official clients do: with a key that says it
// may be sent again, and again when it found no answer or a server's error.
func (c *tally) askAgain(ctx context.Context, client *http.Client, url, body string) (a received, err error) {
	key := rand.Text()
	for try := 0; ; try++ {
		a, err = ask(ctx, client, "POST", url, strings.NewReader(body), append(bearer(testKey), "Idempotency-Key", key)...)
		if err == nil && a.status < 500 {
			c.served.Add(1)
			return a, nil
		}
		if ctx.Err() != nil || try == sdkRetries {
			return a, err
		}
		c.again.Add(1)
	}
}

// load sends requests over HTTP/1.1, 2 and 3 until ctx ends, none of which may
// fail for good. The returned function waits for the clients.
func (f *front) load(ctx context.Context, t *testing.T, clients int, c *tally) (wait func()) {
	var wg sync.WaitGroup
	for i := range clients {
		client, closeAll := newAnyClient(t, 1+i%3)
		wg.Go(func() {
			defer closeAll()
			for ctx.Err() == nil {
				a, err := c.askAgain(ctx, client, "https://"+f.host+"/v1/completions", `{"model":"work","prompt":"x"}`)
				if ctx.Err() == nil && (err != nil || a.status != 200 || !strings.Contains(a.body, `"text":"done"`)) {
					t.Errorf("HTTP %d: %d %.300q %v", 1+i%3, a.status, a.body, err)
				}
			}
		})
	}
	return wg.Wait
}

// changing is a site whose configurations can be told apart.
const changing = "header X-Round round-0\n\t" + withKey

// nextRound loads a configuration that differs from all before.
func (f *front) nextRound(n int) {
	f.t.Helper()
	f.reload(func(caddyfile string) string {
		caddyfile = strings.ReplaceAll(caddyfile, "round-0", fmt.Sprintf("round-%d", n))
		return strings.ReplaceAll(caddyfile, "api_keys "+testKey, fmt.Sprintf("api_keys %s\n\t\ttask_timeout %ds", testKey, 600+n))
	})
}

// startApart starts a front whose agents are in a process of their own.
func startApart(t *testing.T, agents ...string) (f *front, workers *process) {
	t.Helper()
	address := "/ip4/127.0.0.1/tcp/" + freePorts(t, 1)[0]
	f = startFrontOn(t, "\n\t\t\tlisten "+address+"\n\t\t\tbootstrap off\n\t\t\tdiscovery off", "", changing)
	peer, _ := f.awaitLog("mesh node is open")["peer"].(string)
	m := mesh{f.process, address + "/p2p/" + peer}
	workers = m.worker(agents...)
	f.awaitWorkers(len(agents))
	return f, workers
}

// wantSameMesh wants the node never to have been opened again, nor to have lost
// a worker.
func wantSameMesh(t *testing.T, f *front, workers *process) {
	t.Helper()
	for message, want := range map[string]int{"mesh node is open": 1, "worker is online": 1, "worker is offline": 0} {
		if n := f.count(message); n != want {
			t.Errorf("the gateway's log says %q %d times", message, n)
		}
	}
	if n := workers.count("connected to bootstrap node"); n != 1 {
		t.Errorf("the worker connected to the gateway %d times", n)
	}
}

// F1: reloads under load, over all versions of HTTP, lose no request of a client
// that tries again, no peer, and leave nothing behind.
func TestF1ReloadUnderLoad(t *testing.T) {
	f, workers := startApart(t, manySlots(t, agent("work", "Work", "work", command(writeScript(t, "printf done\n")))))
	var warm, c tally
	run := func(c *tally, reloads int) {
		ctx, end := context.WithCancel(t.Context())
		wait := f.load(ctx, t, scaled(8, 64), c)
		for n := range reloads {
			before := c.served.Load()
			f.await("requests between reloads", func() bool { return c.served.Load() > before+int64(scaled(60, 600)) })
			f.nextRound(n + 1)
		}
		before := c.served.Load()
		f.await("requests after the reloads", func() bool { return c.served.Load() > before+8 })
		end()
		wait()
		httpClient.CloseIdleConnections()
	}
	run(&warm, 1) // what is made once is made now
	goroutines, files := f.settled(t)
	run(&c, scaled(5, 100))
	var nowGoroutines int64
	var nowFiles int
	f.await("as many goroutines and files as before", func() bool {
		nowGoroutines, nowFiles = f.goroutines(t), f.files()
		return nowGoroutines <= goroutines+5 && nowFiles <= files+5
	})
	t.Logf("%d requests were served, %d of them at another try; goroutines %d, then %d; files %d, then %d",
		c.served.Load(), c.again.Load(), goroutines, nowGoroutines, files, nowFiles)
	wantSameMesh(t, f, workers)
}

// settled waits until the numbers of goroutines and of open files do not change
// any more, and returns them.
func (f *front) settled(t *testing.T) (goroutines int64, files int) {
	t.Helper()
	looks := 0
	f.await("the numbers of goroutines and files settle", func() bool {
		g, n := f.goroutines(t), f.files()
		if looks++; g != goroutines || n != files {
			goroutines, files, looks = g, n, 0
		}
		return looks == 20
	})
	return goroutines, files
}

// countLines is an agent that takes its time over numbered lines.
const countLines = `n=0
while [ $n -lt $LINES ]; do echo "line $n"; n=$((n + 1)); sleep $PAUSE; done
`

// F2: streams that are under way come to their end across reloads without a gap,
// over all versions of HTTP.
func TestF2ReloadMidStream(t *testing.T) {
	lines := 30
	f, workers := startApart(t,
		manySlots(t, agent("count", "Count", "count", command(writeScript(t, countLines), "LINES", strconv.Itoa(lines), "PAUSE", scaled("0.1", "1")))))
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	var streams sync.WaitGroup
	var begun, ended atomic.Int64
	total := scaled(10, 200)
	for i := range total {
		client, _ := newAnyClient(t, 1+i%3)
		streams.Go(func() {
			defer ended.Add(1)
			req := newRequest(t, "POST", "https://"+f.host+"/v1/completions", `{"model":"count","prompt":"x","stream":true}`, bearer(testKey)...)
			resp, err := client.Do(req)
			begun.Add(1)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var body strings.Builder
			if _, err := io.Copy(&body, resp.Body); err != nil || resp.StatusCode != 200 {
				t.Errorf("HTTP %d: %d, broken off after %d bytes: %v", 1+i%3, resp.StatusCode, body.Len(), err)
				return
			}
			wantText(t, fmt.Sprintf("HTTP %d", 1+i%3), eventText(t, body.String()), want.String())
		})
	}
	f.await("all streams", func() bool { return begun.Load() == int64(total) })
	reloads, tick := 0, time.NewTicker(scaled(500*time.Millisecond, time.Second)) // spread over the streams
	defer tick.Stop()
	for ; reloads < scaled(3, 20) && ended.Load() == 0; reloads++ {
		f.nextRound(reloads + 1)
		<-tick.C
	}
	streams.Wait()
	t.Logf("%d streams across %d reloads", total, reloads)
	if reloads == 0 {
		t.Error("no reload fell into the streams")
	}
	wantSameMesh(t, f, workers)
}

// F2b: configurations that are broken, each in its own way, are refused; the old
// one serves all the while, and the command validate opens nothing for either.
// e2e/lifecycle tries the same inside of one process, at every step of a load.
func TestF2bBrokenConfigs(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	broken := t.TempDir()
	writeFile(t, broken, "keys", "alice short\n")
	writeFile(t, broken, "none", "# nobody\n")
	writeFile(t, broken, "swarm", "/key/swarm/psk/1.0.0/\n/base16/\nnot hex\n")
	writeFile(t, broken, "identity", "no key at all")
	own := agent("work", "Work", "work", command(writeScript(t, "printf done\n")))
	f := startFront(t, "", changing, manySlots(t, own))
	f.awaitWorkers(1)
	peer := f.workerID("Work")
	other := func(lines string) func(string) string {
		return func(text string) string {
			block := replaceOnce(t, agent("other", "Other", "other", "process {\n\t\t\t\tcommand true\n\t\t\t}"), "max_tasks 4", "max_tasks 4\n\t\t\t"+lines)
			return replaceOnce(t, text, "\tagentfm_worker {\n", "\tagentfm_worker {\n"+block)
		}
	}
	mesh := func(lines string) func(string) string {
		return func(text string) string { return replaceOnce(t, text, "\t\tmesh {", "\t\tmesh {\n\t\t\t"+lines) }
	}
	keys := func(file string) func(string) string {
		return func(text string) string {
			return strings.ReplaceAll(text, "api_keys "+testKey, "api_keys "+testKey+"\n\t\tapi_keys_file "+filepath.Join(broken, file))
		}
	}
	rows := []struct {
		name   string
		change func(string) string
		valid  bool // as far as can be told without opening anything
	}{
		{"listener clash", func(s string) string { return s + fmt.Sprintf("http://:%d {\n\tbind 127.0.0.1\n}\n", port) }, true},
		{"bad key file", keys("keys"), false},
		{"key file without a key", keys("none"), false},
		{"no key file", keys("missing"), false},
		{"key file is a folder", keys("."), false},
		{"agent's port busy", other(fmt.Sprintf("listen /ip4/127.0.0.1/tcp/%d", port)), true},
		{"agent's identity damaged", other("identity " + filepath.Join(broken, "identity")), true},
		{"swarm key damaged", mesh("swarm_key " + filepath.Join(broken, "swarm")), false},
		{"other identity", mesh("identity other"), true},
		{"unknown option", mesh("nonsense x"), false},
	}
	var c tally
	ctx, end := context.WithCancel(t.Context())
	defer end()
	wait := f.load(ctx, t, 3, &c)
	listening := f.listening(t)
	for _, row := range rows {
		text := row.change(f.config)
		before := c.served.Load()
		a := wantAsk(t, httpClient, "POST", f.admin+"/load", text, "Content-Type", "text/caddyfile")
		if a.status == 200 || !strings.Contains(a.body, `"error"`) {
			t.Errorf("%s: %d %s", row.name, a.status, a.body)
		}
		f.await("requests after "+row.name, func() bool { return c.served.Load() > before+6 })
		if valid, out := f.validate(t, text); valid != row.valid {
			t.Errorf("%s: valid %t: %s", row.name, valid, out)
		}
	}
	if valid, out := f.validate(t, f.config); !valid { // though every port in it is taken
		t.Errorf("the configuration that runs is not valid: %s", out)
	}
	end()
	wait()
	t.Logf("%d requests were served, %d of them at another try", c.served.Load(), c.again.Load())
	if got := f.workerID("Work"); got != peer || f.count("mesh node is open") != 1 || f.count("worker is offline") != 0 {
		t.Errorf("the agent is %s, was %s", got, peer)
	}
	f.await("the ports of before, and no others", func() bool { return f.listening(t) == listening })
	// The refused ones left nothing that a good one would meet.
	f.nextRound(1)
	if a := wantAsk(t, newClient(t, 1), "GET", f.url+"/health", ""); a.header.Get("X-Round") != "round-1" {
		t.Errorf("afterwards: %d %v", a.status, a.header)
	}
}

// validate runs the command validate on the data of the process, and checks that
// no file is new afterwards.
func (f *front) validate(t *testing.T, caddyfile string) (valid bool, output string) {
	t.Helper()
	before := f.fileNames(t)
	dir := t.TempDir()
	writeFile(t, dir, "Caddyfile", caddyfile)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "validate", "--config", filepath.Join(dir, "Caddyfile"))
	cmd.Dir, cmd.Env = f.dir, f.cmd.Env
	out, err := cmd.CombinedOutput()
	if after := f.fileNames(t); after != before {
		t.Errorf("validate changed the files from\n%s\nto\n%s", before, after)
	}
	return err == nil, string(out)
}

// fileNames lists the files of the process, but for the folders of tasks and what
// Caddy touches by the clock.
func (f *front) fileNames(t *testing.T) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(filepath.Join(f.dir, "caddy"), func(path string, d os.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err): // it was there a moment ago
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "tasks":
			return filepath.SkipDir
		case !d.IsDir() && filepath.Ext(path) != ".lock":
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, "\n")
}

// listening counts the sockets of the process that listen, for TCP and UDP alike;
// 0 where there is no /proc.
func (p *process) listening(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	own := make(map[string]bool)
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			own[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	n := 0
	for file, state := range map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"} {
		table, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.cmd.Process.Pid, file))
		for line := range strings.Lines(string(table)) {
			if fields := strings.Fields(line); len(fields) > 9 && fields[3] == state && own[fields[9]] {
				n++
			}
		}
	}
	return n
}

// settle is how long a container lives here after its first line.
const settle = 5 * time.Second

// F2b: a task in a container goes on across reloads, and across the removal of
// all that began it.
func TestF2bReloadMidContainer(t *testing.T) {
	engine := newEngine(t)
	image := t.TempDir()
	writeFile(t, image, "Dockerfile", fmt.Sprintf("FROM %s\nUSER 65534\nENTRYPOINT [\"sh\", \"-c\", \"echo first; sleep %d; echo second\"]\n", baseImage, int(settle.Seconds())))
	f := startFront(t, "", changing, agent("slow", "Slow", "slow", fmt.Sprintf("docker {\n\t\t\t\thost %s\n\t\t\t\tbuild %s\n\t\t\t}", engine.host, image)))
	f.awaitWorkers(1)
	c := newClient(t, 2)
	resp, err := c.Do(newRequest(t, "POST", "https://"+f.host+"/v1/chat/completions",
		`{"model":"slow","stream":true,"messages":[{"role":"user","content":"x"}]}`, bearer(testKey)...))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	chat := newEvents(resp)
	text := chat.nextText(t)
	f.nextRound(1)
	f.reload(func(string) string { return "{\n\tadmin " + strings.TrimPrefix(f.admin, "http://") + "\n}\n" })
	for piece := chat.nextText(t); piece != ""; piece = chat.nextText(t) {
		text += piece
	}
	if text != "first\nsecond\n" {
		t.Errorf("got %q", text)
	}
}
