// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/zip"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// oddFiles leaves whatever an agent can make. $B is how programs are called, $MANY how
// many files there are to be in one folder, and $OUTSIDE a file to be linked to.
const oddFiles = `case "$1$($B cat)" in *nothing*) exit ;; esac
cd "$AGENTFM_OUTPUT" || exit 1
printf 'begun '
printf plain >plain
printf raw >"$(printf 'raw\377')"
printf long >"$(printf '%0255d' 0)"
$B mkfifo fifo
$B mknod device c 1 5 2>/dev/null
$B ln -s /etc/shadow shadow
$B ln -s . loop
[ -z "$OUTSIDE" ] || $B ln "$OUTSIDE" hard
$B truncate -s 1099511627776 sparse
i=0
while [ $i -lt 300 ]; do $B mkdir d && cd d; i=$((i+1)); done
printf deep >deep
cd "$AGENTFM_OUTPUT"
$B mkdir many
(cd many && $B seq $MANY | $B xargs $B touch)
$B setsid sh -c 'i=0; while [ $i -lt 500000 ]; do echo 0123456789; i=$((i+1)); done >growing' >/dev/null 2>&1 </dev/null &
until [ -s growing ]; do :; done
printf done
`

// B12: whatever is in an agent's folder, collecting ends soon, takes the regular files
// below the folder, tells what it leaves out, and gives the slot back.
func TestB12Files(t *testing.T) {
	many := fmt.Sprint(scaled(5000, 200_000)) // with more than 250,000 it would be stopped
	m := newMesh(t, withKey)
	odd := func(runtime string) string {
		return replaceOnce(t, agent("odd", "Odd", "odd", runtime), "max_tasks 4", "max_tasks 1\n\t\t\tmax_files 2000")
	}
	t.Run("process", func(t *testing.T) {
		outside := filepath.Join(t.TempDir(), "outside")
		writeFile(t, filepath.Dir(outside), "outside", "secret")
		w := m.worker(odd(command(writeScript(t, oddFiles), "MANY", many, "OUTSIDE", outside, "B", "env")))
		defer w.stop() // before the next of that name
		reasons := m.oddFiles(t, w)
		if !strings.Contains(reasons, "linked from outside of the folder: 1: hard") {
			t.Errorf("a file that is linked from outside: %s", reasons)
		}
	})
	t.Run("container", func(t *testing.T) {
		engine := newEngine(t)
		image := t.TempDir()
		writeFile(t, image, "agent.sh", oddFiles)
		writeFile(t, image, "Dockerfile", "FROM "+baseImage+"\nCOPY agent.sh /\nUSER 65534\nENV B=busybox MANY="+many+"\nENTRYPOINT [\"sh\", \"/agent.sh\"]\n")
		w := m.worker(odd(fmt.Sprintf("docker {\n\t\t\t\thost %s\n\t\t\t\tbuild %s\n\t\t\t\tmemory 2GiB\n\t\t\t}", engine.host, image)))
		m.oddFiles(t, w)
	})
}

// oddFiles has the one worker's agent leave odd files, and returns what was left out.
func (m *mesh) oddFiles(t *testing.T, w *process) string {
	t.Helper()
	g := m.gateway.in(t)
	g.awaitWorkers(1)
	var text, task string
	resp := g.post("/v1/chat/completions", chatRequest("odd", "x", true))
	task = resp.Header.Get("X-AgentFM-Task")
	events := newEvents(resp)
	for !strings.HasSuffix(text, "done") {
		piece := events.nextText(t)
		if text += piece; piece == "" {
			t.Fatalf("the agent says %q; the worker's log:\n%s", text, w.log)
		}
	}
	begun := time.Now()
	for events.nextText(t) != "" {
	}
	took := time.Since(begun)
	if took > 10*time.Second {
		t.Errorf("collected in %v", took)
	}
	z, err := zip.OpenReader(filepath.Join(m.gateway.cmd.Dir, "artifacts", task+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	found := make(map[string]uint64)
	for _, f := range z.File {
		if found[f.Name] = f.UncompressedSize64; f.Mode().Type()&^fs.ModeDir != 0 {
			t.Errorf("%q is a %v", f.Name, f.Mode())
		}
	}
	for name, size := range map[string]uint64{"plain": 5, "raw%FF": 3, strings.Repeat("0", 255): 4, "d/": 0, "many/": 0} {
		if got, ok := found[name]; !ok || got != size {
			t.Errorf("%.40s: %d bytes, %v", name, got, ok)
		}
	}
	if len(found) > 2000 || found["growing"] == 0 {
		t.Errorf("%d files, growing has %d bytes", len(found), found["growing"])
	}
	for _, name := range []string{"fifo", "device", "shadow", "loop", "loop/", "hard", "sparse"} {
		if _, ok := found[name]; ok {
			t.Errorf("%s is in the zip", name)
		}
	}
	left := fmt.Sprint(w.awaitLog("files of a task were left out")["files"])
	for _, want := range []string{"symbolic link: 2: ", "not a regular file: ", "over the size of all files: 1: sparse", "over the number of files: "} {
		if !strings.Contains(left, want) {
			t.Errorf("the worker's log lacks %q: %s", want, left)
		}
	}
	if told := fmt.Sprint(g.awaitLog("a worker has left out files of a task")); !strings.Contains(told, "symbolic link") {
		t.Errorf("the gateway's log has %s", told)
	}
	if a, err := g.chat(t, "odd", "nothing", false); err != nil || !strings.Contains(a.body, `"cause":"empty"`) { // in the one slot
		t.Errorf("the next task: %d %.300q, %v", a.status, a.body, err)
	}
	w.in(t).await("end of the folders", func() bool { return len(w.taskFiles(t)) == 0 })
	t.Logf("collected in %v: %d files, left out: %s", took.Round(time.Millisecond), len(found), left)
	return left
}

// taskFiles returns the paths below the folders of the tasks of a process, at most two
// levels deep.
func (p *process) taskFiles(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.cmd.Dir, "caddy", "agentfm", "tasks", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A worker that was killed leaves the files of its tasks; the next one removes them.
func TestB12Killed(t *testing.T) {
	dir := home(t)
	stay := agent("stay", "Stay", "stay", command(writeScript(t, "cd $AGENTFM_OUTPUT\nmkdir -p a/b; mkfifo a/f; chmod 0 a\nprintf here\nexec sleep 600\n")))
	config := caddyfile(localMesh, withKey, stay)
	p := start(t, dir, config)
	p.awaitWorkers(1)
	newEvents(p.post("/v1/chat/completions", chatRequest("stay", "", true))).nextText(t)
	p.kill()
	if len(p.taskFiles(t)) != 1 {
		t.Errorf("left behind: %v", p.taskFiles(t))
	}
	p = start(t, dir, config)
	p.awaitWorkers(1)
	if left := p.taskFiles(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Large files reach the gateway through little memory, and without a copy of the zip at
// the worker.
func TestL9LargeFiles(t *testing.T) {
	size := scaled[int64](64<<20, 2<<30)
	m := newMesh(t, withKey)
	w := m.worker(agent("large", "Large", "large", command(writeScript(t, fmt.Sprintf(
		"case $(cat) in *small*) head -c 1000 /dev/urandom >$AGENTFM_OUTPUT/f; exit ;; esac\n(head -c %d /dev/urandom; yes 'a line of a report, which goes on for a while' | head -c %d) >$AGENTFM_OUTPUT/f\nsha256sum <$AGENTFM_OUTPUT/f | cut -d' ' -f1\n",
		size/2, size/2)))))
	m.gateway.awaitWorkers(1)
	if a, err := m.gateway.chat(t, "large", "small", false); err != nil || a.status != http.StatusOK { // all code is loaded
		t.Fatalf("%d %.300q, %v", a.status, a.body, err)
	}
	processes := map[string]*process{"gateway": m.gateway, "worker": w}
	before := make(map[string]int64)
	for name, p := range processes {
		p.resetPeak()
		before[name] = p.liveHeap(t)
	}
	residentBefore := make(map[string]int64)
	for name, p := range processes {
		residentBefore[name], _ = p.resident()
	}
	other, stop := make(map[string]bool), make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(pollInterval):
			}
			_ = filepath.WalkDir(filepath.Join(w.cmd.Dir, "caddy", "agentfm", "tasks"), func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() && !strings.HasSuffix(path, "/output/f") {
					other[path] = true
				}
				return nil
			})
		}
	})
	begun := time.Now()
	a, err := m.gateway.chat(t, "large", "x", false)
	took := time.Since(begun)
	close(stop)
	watching.Wait()
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %.300q, %v", a.status, a.body, err)
	}
	path := filepath.Join(m.gateway.cmd.Dir, "artifacts", a.header.Get("X-AgentFM-Task")+".zip")
	if got, err := hashOf(path); err != nil || !strings.Contains(a.body, got) {
		t.Errorf("the file is %s, %v; the agent says %.300q", got, err, a.body)
	}
	for name, p := range processes {
		_, peak := p.resident()
		grown, live := (peak-residentBefore[name])>>20, (p.liveHeap(t)-before[name])>>20
		t.Logf("%s: %d MiB resident more at most, %d MiB of heap in the end", name, grown, live)
		if grown > 64 || live > 16 {
			t.Errorf("%s: too much memory", name)
		}
	}
	if len(other) > 0 {
		t.Errorf("beside the files there were %v", other)
	}
	if fi, err := os.Stat(path); err == nil {
		t.Logf("%d MiB as a zip of %d MiB in %v, with the making and hashing", size>>20, fi.Size()>>20, took.Round(time.Millisecond))
	}
	w.in(t).await("end of the folder", func() bool { return len(w.taskFiles(t)) == 0 })
}

// F10: a transfer that breaks goes on where it was, though the worker has no copy of
// the zip: it makes it again.
func TestF10FilesMadeAgain(t *testing.T) {
	size := scaled[int64](3<<20, 64<<20)
	for _, percent := range scaled([]int64{50}, []int64{10, 50, 90}) {
		m := newMesh(t, withKey)
		l := &link{rate: scaled(6<<20, 32<<20)}
		w := m.over(l, agent("files", "Files", "files", command(writeScript(t, fmt.Sprintf(
			"head -c %d /dev/urandom >$AGENTFM_OUTPUT/f\nsha256sum <$AGENTFM_OUTPUT/f | cut -d' ' -f1\n", size)))))
		m.gateway.awaitWorkers(1)
		before := l.bytes.Load()
		answered := make(chan received, 1)
		go func() {
			a, err := m.gateway.chat(t, "files", "x", false)
			if err != nil {
				t.Error(err)
			}
			answered <- a
		}()
		m.gateway.await("that much of the files", func() bool { return l.bytes.Load()-before > size*percent/100 })
		l.cut()
		a := <-answered
		got, err := hashOf(filepath.Join(m.gateway.cmd.Dir, "artifacts", a.header.Get("X-AgentFM-Task")+".zip"))
		switch {
		case a.status == http.StatusOK && (err != nil || !strings.Contains(a.body, got)):
			t.Errorf("%d %%: the files are not those of the task: %s, %v, %.200q", percent, got, err, a.body)
		case a.status != http.StatusOK && (a.status < 500 || !strings.Contains(a.body, `"code"`) || !os.IsNotExist(err)):
			t.Errorf("%d %%: %d %.300q; its files: %v", percent, a.status, a.body, err)
		}
		t.Logf("broken at %d %%: status %d, %d KiB of %d went over the link", percent, a.status, (l.bytes.Load()-before)>>10, size>>10)
		m.gateway.stop()
		w.stop()
	}
}
