// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
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

// behind returns the address of the gateway's node behind a link.
func (m *mesh) behind(l *link) string {
	m.gateway.t.Helper()
	parts := strings.Split(m.address, "/") // /ip4/127.0.0.1/tcp/PORT/p2p/ID
	newLink(m.gateway.t, "127.0.0.1:"+parts[4], l)
	parts[4] = l.port
	return strings.Join(parts, "/")
}

// over starts a worker behind a link to the gateway. Once that is cut, they find
// another way.
func (m *mesh) over(l *link, agents ...string) *process {
	m.gateway.t.Helper()
	return (&mesh{m.gateway, m.behind(l)}).worker(agents...)
}

// F9: a worker that vanishes without a word is replaced, and what it answers when it
// is back does not count.
func TestF9Vanished(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	m := newMesh(t, scaled(replaceOnce(t, withKey, "\n\t}", "\n\t\tfirst_byte_timeout 2s\n\t}"), withKey))
	g := m.gateway
	links := map[string]*link{"one": {}, "two": {}}
	for name, l := range links {
		// Who is asked first waits.
		script := "if mkdir $STATE/begun 2>/dev/null && echo " + name + " >$STATE/new && mv $STATE/new $STATE/first; then\n" +
			"until [ -e $STATE/go ]; do sleep 0.02; done\nfi\nprintf 'by " + name + "'\n"
		m.over(l, agent(name, name, "m", command(writeScript(t, script), "STATE", state)))
	}
	g.awaitWorkers(2)
	answered := make(chan received, 1)
	go func() {
		a, err := g.chat(t, "m", "x", false)
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	first := ""
	g.await("the first attempt", func() bool {
		b, err := os.ReadFile(filepath.Join(state, "first"))
		first = strings.TrimSpace(string(b))
		return err == nil
	})
	l := links[first]
	l.silence(true)
	begun := time.Now()
	a := <-answered
	if a.status != 200 || strings.Count(a.body, `"by `) != 1 || strings.Contains(a.body, "by "+first) || a.header.Get("X-AgentFM-Attempts") != "2" {
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

// F10: a connection that breaks while files are on their way, or carries nothing for
// a while: they arrive whole, or the client is told that they do not.
func TestF10PartitionOfFiles(t *testing.T) {
	t.Parallel()
	m := newMesh(t, withKey)
	g := m.gateway
	content := make([]byte, scaled(3<<20, 64<<20))
	_, _ = crand.Read(content)
	var packed bytes.Buffer
	z := zip.NewWriter(&packed)
	f, err := z.CreateHeader(&zip.FileHeader{Name: "f", Method: zip.Store})
	if err == nil {
		_, err = f.Write(content)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	size, sum := int64(packed.Len()), fmt.Sprintf("%x", sha256.Sum256(packed.Bytes()))
	l := &link{rate: scaled(6<<20, 32<<20)}
	address := m.behind(l)
	w := newStrangerBehind(t, address)
	w.serveTasks(address, "files", func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			rw.Header().Set("ETag", wire.ArtifactTag(sum))
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(packed.Bytes()))
			return
		}
		taskEvents(rw, r, func(e *wire.EventWriter) {
			_ = e.Artifact(wire.Artifact{Size: size, SHA256: sum})
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		})
	})
	folder := filepath.Join(g.cmd.Dir, "artifacts")
	want := fmt.Sprintf("%x", sha256.Sum256(content))
	for _, percent := range scaled([]int64{10, 50, 90}, []int64{10, 50, 90, 1, 99, 25, 75}) {
		g.awaitModel("files")
		before := l.bytes.Load()
		answered := make(chan received, 1)
		go func() {
			a, err := g.chat(t, "files", "x", false)
			if err != nil {
				t.Error(err)
			}
			answered <- a
		}()
		through := func() int64 { return l.bytes.Load() - before }
		g.await("that much of the files", func() bool { return through() > size*percent/100 })
		if percent == 50 {
			l.silence(true)
			still := through()
			for range 10 {
				time.Sleep(pollInterval) // nothing is to happen
			}
			if n := through() - still; n > 128<<10 || len(answered) > 0 {
				t.Errorf("%d bytes came over a link that is silent", n)
			}
			l.silence(false)
		} else {
			l.cut()
		}
		var a received
		for a.status == 0 {
			select {
			case a = <-answered:
			default:
				zips, _ := filepath.Glob(filepath.Join(folder, "*.zip"))
				for _, z := range zips {
					if got, err := hashOf(z); err != nil || got != want {
						t.Errorf("%d %%: %s is there and not whole: %v", percent, z, err)
					}
				}
				time.Sleep(pollInterval)
			}
		}
		got, err := hashOf(filepath.Join(folder, a.header.Get("X-AgentFM-Task")+".zip"))
		switch {
		case a.status == 200 && (err != nil || got != want):
			t.Errorf("%d %%: the files are not those of the task: %s, %v, %.200q", percent, got, err, a.body)
		case a.status != 200 && (a.status < 500 || !strings.Contains(a.body, `"code"`) || !os.IsNotExist(err)):
			t.Errorf("%d %%: %d %.300q; its files: %v", percent, a.status, a.body, err)
		}
		t.Logf("broken at %d %%: status %d; %d KiB of %d went over the link", percent, a.status, through()>>10, size>>10)
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

// F11: over a slow link everything comes, and comes whole.
func TestF11SlowLinks(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]*link{
		"latency": {delay: scaled(20*time.Millisecond, 150*time.Millisecond), jitter: scaled(15*time.Millisecond, 50*time.Millisecond)},
		"slow":    {rate: scaled(512<<10, 64<<10), slice: 4 << 10},
		"sliced":  {slice: 100, delay: 200 * time.Microsecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, withKey)
			m.over(l, openAIAgent("mock", "mock", newModelServer(t).url, 16), agent("text", "Text", "text", command(writeScript(t, "cat\n"))))
			m.gateway.awaitWorkers(2)
			m.gateway.awaitModel("mock")
			each(scaled(16, 320), 4, func(i int) {
				if a, err := m.longChat(t, i); broken(a, err) {
					t.Errorf("request %d: %d %.300q, %v", i, a.status, a.body, err)
				}
			})
		})
	}
}

// F11: over a link that breaks all the time nothing is lost: what breaks is told, and
// succeeds when it is asked for again.
func TestF11Resets(t *testing.T) {
	t.Parallel()
	m := newMesh(t, withKey)
	l := &link{slice: 4 << 10, rate: 256 << 10}
	address := m.behind(l)
	newStrangerBehind(t, address).serveTasks(address, "text", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		task, err := wire.DecodeTask(b)
		if err != nil {
			return
		}
		taskEvents(w, r, func(e *wire.EventWriter) {
			_, _ = io.WriteString(e, task.Data)
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		})
	})
	newStrangerBehind(t, address).serveChats(address, "mock", (&modelServer{}).ServeHTTP)
	m.gateway.awaitModel("text")
	m.gateway.awaitModel("mock")
	ctx, cancel := context.WithCancel(t.Context())
	cutting := make(chan struct{})
	var well, again atomic.Int64
	go func() {
		defer close(cutting)
		const often = 500 * time.Millisecond
		before := int64(0)
		for wait := often; ctx.Err() == nil; l.cut() {
			if well := well.Load(); well == before { // on a slow machine, less often
				wait = min(2*wait, 10*time.Second)
			} else {
				wait, before = often, well
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	}()
	each(scaled(24, 480), 6, func(i int) {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pollInterval) { // as a client does
			m.gateway.awaitModel([]string{"mock", "text"}[i%2])
			if a, err := m.longChat(t, i); !broken(a, err) {
				well.Add(1)
				return
			}
			again.Add(1)
		}
		t.Errorf("request %d failed for %v", i, patience)
	})
	cancel()
	<-cutting
	t.Logf("%d requests were sent again", again.Load())
}

// longChat sends a chat whose answer is to be all of what was sent, or broken.
func (m *mesh) longChat(t *testing.T, i int) (received, error) {
	t.Helper()
	text := fmt.Sprintf("echo %d ", i) + strings.Repeat("all of it ", 1000) + "end"
	a, err := m.gateway.chat(t, []string{"mock", "text"}[i%2], text, i%4 < 2)
	if n := strings.Count(a.body, "all of it "); !broken(a, err) && (n != 1000 && i%4 != 1 || !strings.Contains(a.body, "end")) {
		t.Errorf("request %d: %d of 1000 pieces, and no error: %.300q", i, n, a.body)
	}
	return a, err
}
