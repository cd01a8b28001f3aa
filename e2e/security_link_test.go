// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/zip"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// link is a TCP connection's way between two nodes, which a test makes worse.
type link struct {
	port  string
	bytes atomic.Int64 // that went through

	mu    sync.Mutex
	conns map[net.Conn]bool
	heal  chan struct{} // closed while bytes go through

	delay, jitter time.Duration // of each piece
	slice         int           // largest piece
	rate          int           // bytes a second; 0 for no limit
}

func newLink(t *testing.T, target string, l *link) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, l.port, _ = net.SplitHostPort(listener.Addr().String())
	l.conns, l.heal = make(map[net.Conn]bool), make(chan struct{})
	close(l.heal)
	t.Cleanup(func() { _ = listener.Close(); l.silence(false); l.cut() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return // closed
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			l.mu.Lock()
			l.conns[in], l.conns[out] = true, true
			l.mu.Unlock()
			go l.carry(in, out)
			go l.carry(out, in)
		}
	}()
	return l
}

// carry carries what comes from one side to the other.
func (l *link) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, max(l.slice, 32<<10))
	if l.slice > 0 {
		buf = buf[:l.slice]
	}
	for {
		n, err := from.Read(buf)
		pause := l.delay
		if l.jitter > 0 {
			pause += rand.N(2*l.jitter) - l.jitter
		}
		if l.rate > 0 {
			pause += time.Duration(n) * time.Second / time.Duration(l.rate)
		}
		if pause > 0 {
			time.Sleep(pause) // the link's own time
		}
		l.mu.Lock()
		heal := l.heal
		l.mu.Unlock()
		<-heal
		l.bytes.Add(int64(n))
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// silence has nothing come through, and nobody told, until it is undone.
func (l *link) silence(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.heal:
		if on {
			l.heal = make(chan struct{})
		}
	default:
		if !on {
			close(l.heal)
		}
	}
}

// cut resets the connections.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	clear(l.conns)
}

// over starts a worker behind a link to the gateway.
func (m *mesh) over(l *link, agents ...string) *process {
	m.gateway.t.Helper()
	parts := strings.Split(m.address, "/") // /ip4/127.0.0.1/tcp/PORT/p2p/ID
	newLink(m.gateway.t, "127.0.0.1:"+parts[4], l)
	parts[4] = l.port
	return (&mesh{m.gateway, strings.Join(parts, "/")}).worker(agents...)
}

// F9: a worker that vanishes without a word is replaced, and what it answers when it
// is back does not count.
func TestF9Vanished(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	m := newMesh(t, scaled(replaceOnce(t, withKey, "\n\t}", "\n\t\tfirst_byte_timeout 2s\n\t}"), withKey))
	g := m.gateway
	l := &link{}
	script := func(name, wait string) string {
		return command(writeScript(t, "echo $$ >>$STATE/"+name+"\n"+wait+"\nprintf 'by "+name+"'\n"), "STATE", state)
	}
	m.over(l, agent("first", "First", "m", script("first", "until [ -e $STATE/go ]; do sleep 0.02; done\necho late >>$STATE/first-late")))
	g.awaitWorkers(1)
	answered := make(chan received, 1)
	go func() {
		a, err := g.chat(t, "m", "x", false)
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	exists := func(name string) func() bool {
		return func() bool { _, err := os.Stat(filepath.Join(state, name)); return err == nil }
	}
	g.await("the first attempt", exists("first"))
	m.worker(agent("second", "Second", "m", script("second", "")))
	g.awaitWorkers(2)
	l.silence(true)
	begun := time.Now()
	a := <-answered
	if a.status != 200 || !strings.Contains(a.body, `"by second"`) || strings.Contains(a.body, "by first") || a.header.Get("X-AgentFM-Attempts") != "2" {
		t.Errorf("%d %.300q, attempt %s", a.status, a.body, a.header.Get("X-AgentFM-Attempts"))
	}
	t.Logf("the second attempt answered %v after the worker had vanished", time.Since(begun).Round(time.Millisecond))
	writeFile(t, state, "go", "")
	l.silence(false)
	g.awaitWorkers(2)
	if a, err := g.chat(t, "m", "x", false); err != nil || a.status != 200 || strings.Count(a.body, "by ") != 1 {
		t.Errorf("afterwards: %d %.300q, %v", a.status, a.body, err)
	}
}

// F10: a connection that breaks while files are on their way: they arrive whole, or
// the client is told that they do not.
func TestF10PartitionOfFiles(t *testing.T) {
	t.Parallel()
	m := newMesh(t, withKey)
	g := m.gateway
	size := scaled(3<<20, 64<<20)
	l := &link{rate: scaled(6<<20, 32<<20)}
	m.over(l, agent("files", "Files", "files", command(writeScript(t, fmt.Sprintf(
		"head -c %d /dev/urandom >$AGENTFM_OUTPUT/f\nsha256sum <$AGENTFM_OUTPUT/f | cut -d' ' -f1\n", size)))))
	g.awaitWorkers(1)
	folder := filepath.Join(g.cmd.Dir, "artifacts")
	for _, percent := range scaled([]int64{10, 50, 90}, []int64{10, 50, 90, 1, 99, 25, 75}) {
		before := l.bytes.Load()
		answered := make(chan received, 1)
		go func() {
			a, err := g.chat(t, "files", "x", false)
			if err != nil {
				t.Error(err)
			}
			answered <- a
		}()
		g.await("that much of the files", func() bool { return l.bytes.Load()-before > int64(size)*percent/100 || len(answered) > 0 })
		l.cut()
		var a received
		for a.status == 0 {
			select {
			case a = <-answered:
			default:
				zips, _ := filepath.Glob(filepath.Join(folder, "*.zip"))
				for _, z := range zips {
					if _, err := hashOf(z); err != nil {
						t.Errorf("%d %%: %s is there and not whole: %v", percent, z, err)
					}
				}
				time.Sleep(pollInterval)
			}
		}
		id := a.header.Get("X-AgentFM-Task")
		got, err := hashOf(filepath.Join(folder, id+".zip"))
		switch {
		case a.status == 200 && (err != nil || !strings.Contains(a.body, got)):
			t.Errorf("%d %%: the files are not those of the task: %s, %v, %.200q", percent, got, err, a.body)
		case a.status != 200 && (a.status < 500 || !strings.Contains(a.body, `"code"`) || !os.IsNotExist(err)):
			t.Errorf("%d %%: %d %.300q; its files: %v", percent, a.status, a.body, err)
		}
		t.Logf("cut at %d %%: status %d", percent, a.status)
		g.awaitWorkers(1)
	}
	if parts, _ := filepath.Glob(filepath.Join(folder, ".*")); len(parts) > 0 {
		t.Errorf("left behind: %v", parts)
	}
}

// hashOf returns the hash of the file in a zip.
func hashOf(path string) (string, error) {
	z, err := zip.OpenReader(path)
	if err != nil {
		return "", err
	}
	defer z.Close()
	f, err := z.Open("f")
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}

// F11: over a bad link nothing is lost: what is slow comes whole, and what breaks is
// told, and succeeds when it is asked for again.
func TestF11BadLinks(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]*link{
		"latency": {delay: scaled(20*time.Millisecond, 150*time.Millisecond), jitter: scaled(15*time.Millisecond, 50*time.Millisecond)},
		"slow":    {rate: scaled(512<<10, 64<<10), slice: 4 << 10},
		"sliced":  {slice: 100, delay: 200 * time.Microsecond},
		"resets":  {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, withKey)
			model := newModelServer(t)
			m.over(l, openAIAgent("mock", "mock", model.url, 16), agent("text", "Text", "text", command(writeScript(t, "cat\n"))))
			m.gateway.awaitWorkers(2)
			m.gateway.awaitModel("mock")
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for tick := time.NewTicker(300 * time.Millisecond); name == "resets"; l.cut() {
					select {
					case <-stop:
						tick.Stop()
						return
					case <-tick.C:
					}
				}
			}()
			var again, failed atomic.Int64
			each(scaled(16, 320), 4, func(i int) {
				text := fmt.Sprintf("%d ", i) + strings.Repeat("all of it ", 400) + "end"
				kind, prompt := "text", text
				if i%2 == 0 {
					kind, prompt = "mock", "echo "+text
				}
				for try := range 20 {
					a, err := m.gateway.chat(t, kind, prompt, i%4 < 2)
					if !broken(a, err) {
						if n := strings.Count(a.body, "all of it "); n != 400 || !strings.Contains(a.body, "end") {
							t.Errorf("request %d: %d of 400 pieces, and no error: %.300q", i, n, a.body)
						}
						return
					}
					if name != "resets" {
						t.Errorf("request %d, try %d: %d %.300q, %v", i, try, a.status, a.body, err)
						return
					}
					again.Add(1)
					m.gateway.awaitModel(kind)
				}
				failed.Add(1)
			})
			close(stop)
			<-stopped
			if failed.Load() > 0 {
				t.Errorf("%d requests failed 20 times", failed.Load())
			}
			t.Logf("%d requests were sent again", again.Load())
		})
	}
}
