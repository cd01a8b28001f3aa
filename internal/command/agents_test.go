// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// runIn runs `caddy agentfm` with a standard input.
func runIn(in io.Reader, args ...string) (stdout, stderr string, err error) {
	cmd := &cobra.Command{Use: "agentfm", SilenceUsage: true, SilenceErrors: true}
	caddycmd.Commands()["agentfm"].CobraFunc(cmd)
	var out, errOut bytes.Buffer
	cmd.SetIn(in)
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	err = cmd.Execute()
	return out.String(), errOut.String(), err
}

// agentsGateway has two workers of model m, which say what they are told, and one that
// fails. In a chat it says how many messages there were.
func agentsGateway(t *testing.T) (asked func() []string) {
	return useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Worker   string `json:"worker_id"`
			Prompt   string `json:"prompt"`
			Model    string `json:"model"`
			Messages []struct{ Role, Content string }
		}
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
		}
		switch r.URL.Path {
		case "/api/workers":
			_, _ = io.WriteString(w, `{"agents":[{"peer_id":"busy","hardware":"m (","status":"BUSY","online":true,"dispatch_allowed":true},
				{"peer_id":"full","hardware":"m (","status":"AVAILABLE","current_tasks":2,"max_tasks":4,"online":true,"dispatch_allowed":true},
				{"peer_id":"free","hardware":"m (","status":"AVAILABLE","current_tasks":1,"max_tasks":4,"online":true,"dispatch_allowed":true},
				{"peer_id":"bad","hardware":"m (","status":"AVAILABLE","max_tasks":4,"online":true}]}`)
		case "/v1/models":
			_, _ = io.WriteString(w, `{"data":[{"id":"12D3A","owned_by":"ann","agentfm_name":"HR\u001b[2J","agentfm_engine":"m","agentfm_models":["m","n"],"agentfm_status":"AVAILABLE","agentfm_current_tasks":1,"agentfm_max_tasks":4}]}`)
		case "/api/execute":
			if body.Worker == "bad" || body.Prompt == "fail" {
				problem(w, http.StatusServiceUnavailable, "mesh_overloaded")
				return
			}
			w.Header().Set("X-AgentFM-Task", "task-1")
			fmt.Fprintf(w, "%s: %s\x1b\n[AGENTFM: FILES_INCOMING]\n", body.Worker, body.Prompt)
		case "/api/tasks/task-1/artifacts":
			_, _ = w.Write(emptyFileZip)
		case "/v1/chat/completions":
			if body.Model == "none" {
				problem(w, http.StatusNotFound, "model_not_found")
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			last := body.Messages[len(body.Messages)-1]
			fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d %s %s\"}}]}\n\n", len(body.Messages), body.Messages[0].Role, last.Content)
			if last.Content == "wait" {
				_ = http.NewResponseController(w).Flush()
				if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil { // somebody types Ctrl-C
					t.Error(err)
				}
				<-r.Context().Done()
				return
			}
			if last.Content != "half" {
				_, _ = io.WriteString(w, "data: [DONE]\n\n")
			}
		default:
			problem(w, http.StatusNotFound, "not_found")
		}
	})
}

// emptyFileZip is a zip of one empty file "a".
var emptyFileZip = []byte("PK\x03\x04\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00a" +
	"PK\x01\x02\x14\x00\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00a" +
	"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00\x2f\x00\x00\x00\x1f\x00\x00\x00\x00\x00")

func TestModels(t *testing.T) {
	agentsGateway(t)
	if got, _, err := run("models"); got != "m,n\tHR?[2J\tAVAILABLE\t1/4\tann\t12D3A\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, _, err := run("models", "--json"); err != nil || !strings.Contains(got, `"id": "12D3A"`) || strings.Contains(got, "\x1b") {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv(client.EnvAPIKey, "another-key-of-nobody")
	if _, _, err := run("models"); !errors.Is(err, client.ErrAuthentication) || !strings.Contains(err.Error(), client.EnvAPIKey) {
		t.Error(err)
	}
}

func TestRun(t *testing.T) {
	agentsGateway(t)
	dir := t.TempDir()
	for _, c := range []struct {
		in, args string
		want     string
		err      string
	}{
		{"", "run --peer p hello you", "p: hello you\x1b\n", ""},
		{"typed\n", "run --peer p", "p: typed\n\x1b\n", ""},
		{"typed", "run --peer p -", "p: typed\x1b\n", ""},
		{"", "run --model M hello", "free: hello\x1b\n", ""},
		{"", "run --model other hello", "", "no worker that is online offers other"},
		{"", "run --peer bad hello", "", "mesh_overloaded"},
		{"", "run --peer p", "", "the prompt is empty"},
		{"", "run hello", "", "at least one of the flags"},
		{"", "run --model m --peer p hello", "", "none of the others can be"},
		{"", "run --peer p --peer q hello", "", "--peer with one peer id"},
		{strings.Repeat("x", maxPrompt+1), "run --peer p", "", "more than"},
	} {
		got, _, err := runIn(strings.NewReader(c.in), strings.Fields(c.args)...)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", c.args, got, err)
		}
	}
	file := filepath.Join(dir, "task-1", "a")
	got, notes, err := run("run", "--peer", "p", "--files", dir, "hello")
	if _, there := os.Stat(file); err != nil || there != nil || notes != file+"\n" || got != "p: hello\x1b\n" {
		t.Errorf("%q, %q, %v, %v", got, notes, err, there)
	}
	if _, _, err := run("run", "--peer", "p", "--files", dir, "hello"); !errors.Is(err, client.ErrArtifact) { // they are there already
		t.Error(err)
	}
	got, _, err = run("run", "--peer", "p", "--json", "--files", dir+"2", "hello")
	var r runResult
	if json.Unmarshal([]byte(got), &r) != nil || err != nil || r.Text != "p: hello\x1b\n" || r.Worker != "p" || r.Task != "task-1" || len(r.Files) != 1 || r.Seconds <= 0 || strings.Contains(got, "\x1b") {
		t.Errorf("%s, %v", got, err)
	}
	old := terminal
	terminal = func(any) bool { return true }
	defer func() { terminal = old }()
	if got, _, err := run("run", "--peer", "p", "hello"); got != "p: hello?\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestRunFilesMissing wants what an agent has said to be printed also when its files cannot
// be had, and the exit code to say why.
func TestRunFilesMissing(t *testing.T) {
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/execute" {
			w.Header().Set("X-AgentFM-Task", "task-1")
			_, _ = io.WriteString(w, "hello\n[AGENTFM: FILES_INCOMING]\n")
			return
		}
		problem(w, http.StatusNotFound, "task_not_found")
	})
	got, _, err := run("run", "--peer", "p", "--files", t.TempDir(), "hello")
	if exitCode(err) != exitNotFound || got != "hello\n" {
		t.Errorf("%q, %v", got, err)
	}
	got, _, err = run("run", "--peer", "p", "--json", "--files", t.TempDir(), "hello")
	var r runResult
	if json.Unmarshal([]byte(got), &r) != nil || r.Text != "hello\n" || r.Task != "task-1" || r.Code != "task_not_found" || r.Error == "" {
		t.Errorf("%s", got)
	}
	if exitCode(err) != exitNotFound {
		t.Errorf("%d: %v", exitCode(err), err)
	}
}

// TestRunForeignTaskID wants no answer to choose the folder of the files.
func TestRunForeignTaskID(t *testing.T) {
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/execute" {
			w.Header().Set("X-AgentFM-Task", "../../x")
			_, _ = io.WriteString(w, "hello\n[AGENTFM: FILES_INCOMING]\n")
			return
		}
		_, _ = w.Write(emptyFileZip)
	})
	root := t.TempDir()
	for _, more := range [][]string{nil, {"--json"}} {
		args := append([]string{"run", "--peer", "p", "--files", filepath.Join(root, "one", "two"), "hello"}, more...)
		if got, _, err := run(args...); !errors.Is(err, client.ErrProtocol) || got != "" {
			t.Errorf("%v: %q, %v", more, got, err)
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

func TestScatterCommand(t *testing.T) {
	agentsGateway(t)
	file := filepath.Join(t.TempDir(), "prompts")
	if err := os.WriteFile(file, []byte("one\r\n\n\"two\\nlines\"\nfail\nfour"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(text string) (lines []runResult) {
		for line := range strings.Lines(text) {
			var r runResult
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Error(err)
			}
			lines = append(lines, r)
		}
		return lines
	}
	got, notes, err := run("scatter", "--peer", "p,q", "--retries", "0", file)
	lines := read(got)
	if err == nil || err.Error() != "1 of 4 prompts failed" || len(lines) != 4 || notes != "" {
		t.Fatalf("%s, %q, %v", got, notes, err)
	}
	for i, r := range lines {
		want := []string{"one", "two\nlines", "", "four"}[i]
		if *r.Index != i || i != 2 && (r.Status != "success" || !strings.HasSuffix(r.Text, ": "+want+"\x1b\n")) || i == 2 && (r.Status != "failed" || r.Code != "mesh_overloaded" || r.Attempts != 1) {
			t.Errorf("%+v", r)
		}
	}
	if got, _, err := runIn(strings.NewReader("a\nb\n"), "scatter", "--model", "m", "--workers", "1", "-"); err != nil || len(read(got)) != 2 {
		t.Errorf("%s, %v", got, err)
	}
	for text, want := range map[string]string{"": "there is no prompt", "\"x\n": "line 1 begins with a quotation mark"} {
		if _, _, err := runIn(strings.NewReader(text), "scatter", "--model", "m", "-"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := run("scatter", "--model", "m", file+".none"); exitCode(err) != exitUsage || !strings.Contains(err.Error(), ".none") {
		t.Error(err)
	}
	if _, _, err := run("scatter", "--model", "none", file); !errors.Is(err, client.ErrModelNotFound) || !strings.Contains(err.Error(), "`models`") {
		t.Error(err)
	}
}

// TestProgress wants a bar on a terminal, beside results that are elsewhere, in their order.
func TestProgress(t *testing.T) {
	var out, notes bytes.Buffer
	old := terminal
	terminal = func(w any) bool { return w == &notes }
	defer func() { terminal = old }()
	p := &progress{total: 2, out: &out, notes: &notes, done: map[int]client.ScatterResult{}}
	p.show()
	p.add(client.ScatterResult{Index: 1, Status: client.ScatterFailed, Err: &client.Error{Message: "no"}})
	if out.Len() != 0 {
		t.Error(out.String())
	}
	p.add(client.ScatterResult{Index: 0, Status: client.ScatterSuccess})
	p.end()
	if want := "\r[..............................] 0/2, 0 failed \r[###############...............] 1/2, 1 failed \r[##############################] 2/2, 1 failed \n"; notes.String() != want {
		t.Errorf("%q", notes.String())
	}
	if lines := strings.Split(out.String(), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], `{"index":0,"status":"success"`) || !strings.Contains(lines[1], `"error":"agentfm: no"`) {
		t.Errorf("%q", lines)
	}
}

func TestChat(t *testing.T) {
	agentsGateway(t)
	for _, c := range []struct{ in, args, want, err string }{
		{"hello", "chat --model m", "1 user hello\n", ""},
		{"", "chat --peer p --prompt hello --system brief --max-tokens 5", "2 system hello\n", ""},
		{"", "chat --model m --prompt half", "1 user half", "ended early"},
		{"", "chat --model none --prompt x", "", "`models` shows what there is"},
		{"", "chat --model m", "", "the prompt is empty"},
		{"", "chat --prompt x", "", "at least one of the flags"},
	} {
		got, _, err := runIn(strings.NewReader(c.in), strings.Fields(c.args)...)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", c.args, got, err)
		}
	}
}

// TestChatLoop wants each message to be sent with those before, Ctrl-C to stop an answer and
// nothing else, and what is not whole to be forgotten.
func TestChatLoop(t *testing.T) {
	agentsGateway(t)
	old := interactive
	interactive = func(io.Reader) bool { return true }
	defer func() { interactive = old }()
	got, notes, err := runIn(strings.NewReader("one\n\n two \nwait\nhalf\nthree\n/clear\nfour\n/exit\nfive\n"), "chat", "--model", "m")
	got = strings.Replace(got, "5 user wait", "", 1) // when it came before it was stopped
	if err != nil || got != "1 user one\n3 user two\n5 user half"+"5 user three\n1 user four\n" {
		t.Errorf("%q, %v", got, err)
	}
	if strings.Count(notes, "> ") != 9 || !strings.Contains(notes, "\nstopped\n") || !strings.Contains(notes, "ended early") {
		t.Errorf("%q", notes)
	}
	if _, notes, err := runIn(strings.NewReader(""), "chat", "--model", "m"); err != nil || notes != "> \n" { // Ctrl-D
		t.Errorf("%q, %v", notes, err)
	}
}
