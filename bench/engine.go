// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// engineSocket is where a Docker engine usually listens.
const engineSocket = "unix:///var/run/docker.sock"

// engine returns the address of a Docker engine: one that answers, or one without a
// network that it starts, which stop ends.
func engine(ctx context.Context) (host string, stop func(), err error) {
	for _, host := range []string{os.Getenv("AGENTFM_TEST_DOCKER_HOST"), os.Getenv("DOCKER_HOST"), engineSocket} {
		if answers(ctx, host) {
			return host, func() {}, nil
		}
	}
	program, err := exec.LookPath("dockerd")
	if err != nil || os.Getuid() != 0 {
		return "", nil, errors.New("there is no Docker engine, and only root can start one")
	}
	dir, err := os.MkdirTemp("/tmp", "bench") // the path of a socket is short
	if err != nil {
		return "", nil, err
	}
	host = "unix://" + filepath.Join(dir, "docker.sock")
	p, err := start(dir, "dockerd", program, "--host", host, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge", "none", "--iptables=false", "--ip6tables=false")
	if err != nil {
		return "", nil, err
	}
	stop = func() {
		p.stop()
		_ = os.RemoveAll(dir)
	}
	for range 300 {
		if answers(ctx, host) {
			return host, stop, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	return "", nil, errors.New("a Docker engine could not be started")
}

// answers reports whether something listens on a Unix socket.
func answers(ctx context.Context, host string) bool {
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return host != ""
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
