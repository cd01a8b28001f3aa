// SPDX-License-Identifier: Apache-2.0

package localgateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// envRole makes this test binary a gateway of its own.
const envRole = "LOCALGATEWAY_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

// play is a gateway that does what its role says.
func play(role string) int {
	fmt.Fprintln(os.Stderr, "this is", role)
	if role == "fails" {
		return 3
	}
	if role == "taken" {
		fmt.Fprintln(os.Stderr, "listen: address already in use")
		return 1
	}
	stop := make(chan os.Signal, 1)
	if role == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(stop, syscall.SIGTERM)
	}
	s := &http.Server{Addr: os.Getenv(EnvAddress), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if role == "never" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(`{"status":"ok","online_workers":1}`))
	})}
	go func() { _ = s.ListenAndServe() }()
	<-stop
	_ = s.Close()
	if role == "bad end" {
		return 4
	}
	return 0
}

// options start this test binary in a role.
func options(role string) Options {
	return Options{Program: os.Args[0], Env: []string{envRole + "=" + role}, StopTimeout: 20 * time.Second}
}

// temp is the folder for temporary files of a test.
func temp(t *testing.T) string {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	return dir
}

// empty wants nothing to be left.
func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Error(left, err)
	}
}

func TestGateway(t *testing.T) {
	dir := temp(t)
	var log bytes.Buffer
	o := options("good")
	o.APIKey, o.Log = "a-key-of-the-test", &log
	g, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.Client(client.WithRetries(0))
	if err != nil || c.APIKey() != o.APIKey || c.BaseURL() != g.URL() || !strings.HasPrefix(g.URL(), "http://127.0.0.1:") {
		t.Error(c, err)
	}
	h, err := c.Health(t.Context())
	if err != nil || h.OnlineWorkers != 1 {
		t.Error(h, err)
	}
	c.CloseIdleConnections()
	select {
	case <-g.Ended():
		t.Error("it has ended")
	default:
	}
	config, err := os.ReadFile(filepath.Join(g.o.Dir, "Caddyfile"))
	if err != nil || strings.Contains(string(config), o.APIKey) || !strings.Contains(string(config), "api_keys {$GATEWAY_KEY}") {
		t.Errorf("%s, %v", config, err)
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	<-g.Ended()
	if !strings.Contains(g.Log(), "this is good") || !strings.Contains(log.String(), "this is good") {
		t.Errorf("%q, %q", g.Log(), log.String())
	}
	empty(t, dir)
}

// TestFailures wants each gateway that does not start, or end, to say why and leave nothing.
func TestFailures(t *testing.T) {
	dir := temp(t)
	for role, want := range map[string]string{"fails": "exit status 3", "taken": "address already in use", "never": "not ready"} {
		o := options(role)
		if role == "never" {
			o.StartTimeout = 300 * time.Millisecond
		}
		_, err := Start(t.Context(), o)
		if !errors.Is(err, client.ErrGateway) || !strings.Contains(err.Error(), want) || role == "never" && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", role, err)
		}
		empty(t, dir)
	}
	for role, want := range map[string]string{"bad end": "exit status 4", "stubborn": "was killed"} {
		o := options(role)
		if role == "stubborn" {
			o.StopTimeout = 10 * time.Millisecond
		}
		g, err := Start(t.Context(), o)
		if err != nil {
			t.Errorf("%s: %v", role, err)
			continue
		}
		if err := g.Stop(); !errors.Is(err, client.ErrGateway) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", role, err)
		}
		<-g.Ended()
		empty(t, dir)
	}
	if _, err := Start(t.Context(), Options{Program: "/does/not/exist"}); !errors.Is(err, client.ErrGateway) || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	t.Setenv("PATH", dir)
	if _, err := Start(t.Context(), Options{}); !errors.Is(err, client.ErrGateway) || !strings.Contains(err.Error(), "agentfm") || !strings.Contains(err.Error(), "caddy") {
		t.Error(err)
	}
}

// TestDir wants a folder that is given to stay.
func TestDir(t *testing.T) {
	o := options("good")
	o.Dir, o.Caddyfile = filepath.Join(t.TempDir(), "state"), "# mine\n"
	g, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(o.Dir, "Caddyfile")); err != nil || string(b) != "# mine\n" {
		t.Errorf("%s, %v", b, err)
	}
}

func TestTail(t *testing.T) {
	var log tail
	for range 5 {
		_, _ = log.Write(bytes.Repeat([]byte("x"), maxLog))
	}
	_, _ = log.Write([]byte("end"))
	if s := log.String(); len(s) != maxLog || !strings.HasSuffix(s, "xend") || cap(log.b) > 4*maxLog {
		t.Error(len(s), cap(log.b))
	}
}
