// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one that the suite started.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
}

// start starts a process with a home of its own, below dir.
func start(dir, name, program string, args ...string) (*process, error) {
	home := filepath.Join(dir, name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	p := &process{name: name, log: filepath.Join(dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = home, log, log
	p.cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return p, p.cmd.Start()
}

// stop ends the process and its children.
func (p *process) stop() {
	if p == nil || p.cmd.Process == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}
}

// ended reports whether the process has ended by itself.
func (p *process) ended() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	return err != nil || bytes.Contains(b, []byte(") Z "))
}

// tail returns the end of what the process has written.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-2000):])
}

// cpu returns the time that the process and its children have computed: of all
// threads, in user and system mode.
func (p *process) cpu() time.Duration { return cpuOf(strconv.Itoa(p.cmd.Process.Pid)) }

func cpuOf(pid string) time.Duration {
	tasks, _ := filepath.Glob("/proc/" + pid + "/task/*")
	var sum time.Duration
	for _, task := range tasks {
		if b, err := os.ReadFile(task + "/schedstat"); err == nil {
			ns, _, _ := bytes.Cut(b, []byte(" "))
			n, _ := strconv.ParseInt(string(ns), 10, 64)
			sum += time.Duration(n)
		}
		children, _ := os.ReadFile(task + "/children")
		for _, child := range strings.Fields(string(children)) {
			sum += cpuOf(child)
		}
	}
	return sum
}

// freePorts returns ports of loopback that were free a moment ago.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // at the end, so that none comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// patience is how long await waits. LiteLLM loads for long on a busy machine.
const patience = 3 * time.Minute

// await waits until check is content with the answer to a GET.
func await(ctx context.Context, p *process, url, key string, check func(status int, body string) bool) error {
	last := "no answer"
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p.ended() {
			return fmt.Errorf("%s has ended\n%s", p.name, p.tail())
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if last = fmt.Sprintf("%d %s", resp.StatusCode, b.String()); check(resp.StatusCode, b.String()) {
			return nil
		}
	}
	return fmt.Errorf("%s is not ready: %s\n%s", p.name, last, p.tail())
}
