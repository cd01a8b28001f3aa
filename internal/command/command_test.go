// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/spf13/cobra"
)

// The tests want the errors of commands themselves; that of exit codes has the real one.
var realLeave = leave

func TestMain(m *testing.M) {
	leave = func(_ *cobra.Command, err error) error { return err }
	os.Exit(m.Run())
}

// run runs `caddy agentfm` with arguments.
func run(args ...string) (stdout, stderr string, err error) {
	cmd := &cobra.Command{Use: "agentfm", SilenceUsage: true, SilenceErrors: true}
	caddycmd.Commands()["agentfm"].CobraFunc(cmd)
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	err = cmd.Execute()
	return out.String(), errOut.String(), err
}

// admin is an admin API that answers with the texts of answers, by path.
func admin(t *testing.T, answers map[string]string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		text, ok := answers[r.Method+" "+r.URL.Path+string(body)]
		if !ok || (r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/json") {
			w.WriteHeader(http.StatusServiceUnavailable)
			text = `{"error":"mesh node is not running` + "\x1b[2J" + `"}`
		}
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

const workersJSON = `[
{"peer_id":"12D3A","agent_name":"HR \u001b[2J\nAssistant\u202e","model":"llama3.2","author":"","status":"BUSY","cpu_usage_pct":12.6,"current_tasks":1,"max_tasks":4,"online":true,"last_seen":"2026-01-02T03:04:05Z","dispatch_allowed":true,"on_probation":true,"more":1},
{"peer_id":"12D3B","agent_name":"b","model":"m","author":"ann","status":"AVAILABLE","max_tasks":1,"online":false,"last_seen":"2026-01-02T03:04:05Z"}]`

const peersJSON = `[{"peer_id":"12D3A","connections":[{"address":"/ip4/1.2.3.4/tcp/1","direction":"inbound"},{"address":"x"}],"agent_version":"a\u0007","latency_ms":1.234,"is_bootstrap":true},
{"peer_id":"12D3B","connections":[],"agent_version":"","is_bootstrap":false}]`

func TestLists(t *testing.T) {
	address := admin(t, map[string]string{"GET /agentfm/workers": workersJSON, "GET /agentfm/peers": peersJSON})
	for _, c := range []struct {
		command string
		table   bool
		want    string
	}{
		{"workers", false, "BUSY\tHR ?[2J?Assistant?\tllama3.2\t1/4\t13%\tallowed, on probation\t\t2026-01-02T03:04:05Z\t12D3A\n" +
			"OFFLINE\tb\tm\t0/1\t0%\trefused\tann\t2026-01-02T03:04:05Z\t12D3B\n"},
		{"workers", true, "STATUS   NAME                MODEL     TASKS  CPU  DISPATCH               AUTHOR  LAST SEEN             PEER\n" +
			"BUSY     HR ?[2J?Assistant?  llama3.2  1/4    13%  allowed, on probation  -       2026-01-02T03:04:05Z  12D3A\n" +
			"OFFLINE  b                   m         0/1    0%   refused                ann     2026-01-02T03:04:05Z  12D3B\n"},
		{"peers", false, "12D3A\tinbound\t1.23 ms\tyes\ta?\t/ip4/1.2.3.4/tcp/1\n12D3B\t\t\t\t\t\n"},
	} {
		old := terminal
		terminal = func(any) bool { return c.table }
		got, _, err := run(c.command, "--address", address)
		terminal = old
		if err != nil || got != c.want {
			t.Errorf("%s: got %v\n%swant\n%s", c.command, err, got, c.want)
		}
	}
	if got, _, err := run("workers", "--json", "--address", address); got != workersJSON || err != nil {
		t.Errorf("as JSON: %s, %v", got, err)
	}
}

// TestPrintJSON wants a terminal not to be steered, and the JSON to mean the same.
func TestPrintJSON(t *testing.T) {
	const in = "{\"a\":\"\u009b2J\u202e\x7f\U000e0041 ü\"}\n"
	var out bytes.Buffer
	if err := printJSON(&out, []byte(in)); err != nil || out.String() != `{"a":"\u009b2J\u202e\u007f\udb40\udc41 ü"}`+"\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	var before, after map[string]string
	if json.Unmarshal([]byte(in), &before) != nil || json.Unmarshal(out.Bytes(), &after) != nil || before["a"] != after["a"] {
		t.Errorf("%q became %q", before, after)
	}
}

func TestConfig(t *testing.T) {
	address := admin(t, map[string]string{"GET /agentfm/peers": "[]"})
	file := filepath.Join(t.TempDir(), "caddy.json")
	if err := os.WriteFile(file, []byte(`{"admin":{"listen":"`+address+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--config", "-c"} {
		if got, _, err := run("peers", flag, file); got != "" || err != nil {
			t.Errorf("%s: %q, %v", flag, got, err)
		}
	}
}

func TestPing(t *testing.T) {
	old := pingPause
	pingPause = 0
	defer func() { pingPause = old }()
	address := admin(t, map[string]string{
		`POST /agentfm/ping{"peer":"12D3A"}`: `{"ok":true,"rtt_ms":1.5}`,
		`POST /agentfm/ping{"peer":"12D3B"}`: `{"ok":false,"error":"no\u001broute"}`,
	})
	for _, c := range []struct {
		args []string
		want string
		err  string
	}{
		{[]string{"12D3A"}, "answer after 1.50 ms\n", ""},
		{[]string{"12D3A", "-n", "3"}, strings.Repeat("answer after 1.50 ms\n", 3), ""},
		{[]string{"12D3A", "--json"}, `{"ok":true,"rtt_ms":1.5}`, ""},
		{[]string{"12D3B"}, "", "the peer did not answer: no?route"},
		{[]string{"12D3B", "--count", "2"}, "the peer did not answer: no?route\n", "did not answer"},
		{[]string{"12D3B", "--json"}, `{"ok":false,"error":"no\u001broute"}`, "did not answer"},
		{[]string{"12D3A", "-n", "0"}, "", "want 1 to 1000"},
		{[]string{"12D3A", "-n", "1001"}, "", "want 1 to 1000"},
	} {
		got, _, err := run(append([]string{"ping", "--address", address}, c.args...)...)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: got %q, %v", c.args, got, err)
		}
	}
}

// TestErrors wants each mistake to be named, and nothing on standard output.
func TestErrors(t *testing.T) {
	address := admin(t, nil)
	gone := httptest.NewServer(nil)
	gone.Close()
	nobody := strings.TrimPrefix(gone.URL, "http://")
	for want, args := range map[string][]string{
		`unknown command "foo"`:     {"foo"},
		`unknown command "more"`:    {"workers", "more"},
		"accepts 1 arg(s), rec":     {"ping"},
		"received 2":                {"ping", "a", "b"},
		"unknown flag: --foo":       {"peers", "--foo"},
		"--adapter is for --config": {"peers", "--adapter", "caddyfile"},
		"were all set":              {"peers", "--address", nobody, "--config", "x"},
		"no such file":              {"peers", "--config", "/does/not/exist"},
		"connection refused":        {"workers", "--address", nobody},
		"is not running?[2J":        {"workers", "--address", address},
		"asking the admin API at ":  {"ping", "x", "--address", address},
		"invalid argument":          {"genkey", "other"},
		"accepts at most 1":         {"genkey", "swarm", "api"},
		"for the keys of clients":   {"genkey", "--name", "x"},
		"--file is for the keys":    {"genkey", "--file", "x"},
		"want a file":               {"genkey", "api", "--file", ""},
		"--name: want":              {"genkey", "api", "--name", "a b"},
		"looks like a key":          {"genkey", "api", "--name", "afm_x"},
		"1 to 64 of a-z":            {"genkey", "api", "--name", ""},
	} {
		out, _, err := run(args...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\x1b") || out != "" {
			t.Errorf("%q: got %q, %v, want %s", args, out, err, want)
		}
	}
	if out, _, err := run(); err != nil || !strings.Contains(out, "genkey") {
		t.Errorf("alone: %q, %v", out, err)
	}
}

func TestGenkeySwarm(t *testing.T) {
	first, errOut, err := run("genkey")
	if err != nil || errOut != "" {
		t.Fatal(errOut, err)
	}
	psk, err := pnet.DecodeV1PSK(strings.NewReader(first))
	if err != nil || len(psk) != 32 {
		t.Errorf("%q: %v", first, err)
	}
	if second, _, _ := run("genkey", "swarm"); second == first {
		t.Error("the same key twice")
	}
}

// TestGenkeyFile adds keys to a file, which is made first, and no name twice.
func TestGenkeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "api-keys")
	var want string
	for _, name := range []string{"ann", "bob"} {
		key, notes, err := run("genkey", "api", "--name", name, "--file", file)
		if err != nil || notes != "" {
			t.Fatalf("%q, %v", notes, err)
		}
		want += fmt.Sprintf("%s sha256:%x\n", name, sha256.Sum256([]byte(strings.TrimSuffix(key, "\n"))))
	}
	if _, _, err := run("genkey", "api", "--name", "ann", "--file", file); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("a name twice: %v", err)
	}
	if b, err := os.ReadFile(file); string(b) != want || err != nil {
		t.Errorf("%q, %v; want %q", b, err, want)
	}
	if info, err := os.Stat(file); runtime.GOOS != "windows" && (err != nil || info.Mode().Perm() != 0o600) {
		t.Errorf("%v, %v", info, err)
	}
	_ = os.WriteFile(file, []byte("ann sha256:"+strings.Repeat("0", 64)), 0o600) // without an end of the line
	if _, _, err := run("genkey", "api", "--file", file); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(file); strings.Count(string(b), "\n") != 2 {
		t.Errorf("%q", b)
	}
}

func TestGenkeyAPI(t *testing.T) {
	for name, args := range map[string][]string{"": {"genkey", "api"}, "ann@x ": {"genkey", "api", "--name", "ann@x"}} {
		out, line, err := run(args...)
		key := strings.TrimSuffix(out, "\n")
		b, bad := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(key, "afm_"))
		if err != nil || bad != nil || len(b) != 32 || len(key) != 47 {
			t.Errorf("%q: %v, %v", out, err, bad)
		}
		if want := fmt.Sprintf("%ssha256:%x\n", name, sha256.Sum256([]byte(key))); line != want {
			t.Errorf("got %q, want %q", line, want)
		}
	}
}
