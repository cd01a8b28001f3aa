// SPDX-License-Identifier: Apache-2.0

package command

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/client"
)

const (
	taskID      = "task_0000000000000000000000000000000000aa"
	otherTaskID = "task_0000000000000000000000000000000000bb"
	gatewayKey  = "a-key-of-the-gateway"

	taskJSON = `{"task_id":"` + taskID + `","status":"failed","reason":"exit_code","message":"it\u001b[2Jfailed","worker_id":"12D3A","agent_name":"HR","model":"m","attempts":2,
"created_at":"2026-01-02T03:04:05Z","started_at":"2026-01-02T03:04:06Z","ended_at":"2026-01-02T03:04:08.5Z","prompt_bytes":5,"output_bytes":7,"has_files":true,
"webhook":{"url":"https://a.example/","status":"given_up","attempts":10,"last_status":500,"last_attempt_at":"2026-01-02T04:04:05Z",
"history":[{"at":"2026-01-02T04:00:00Z","duration_seconds":1.5,"error":"timeout"},{"at":"2026-01-02T04:04:05Z","duration_seconds":0.25,"status":500}]}}`
	otherTaskJSON = `{"task_id":"` + otherTaskID + `","status":"running","worker_id":"12D3A","agent_name":"HR","model":"m","attempts":1,"created_at":"2026-01-02T03:04:05Z"}`
)

// useGateway makes commands use a gateway that answers with the key, and returns what it was
// asked.
func useGateway(t *testing.T, answer http.HandlerFunc) (asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		all = append(all, r.Method+" "+r.URL.RequestURI())
		mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer "+gatewayKey {
			problem(w, http.StatusUnauthorized, "invalid_api_key")
			return
		}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	t.Setenv(client.EnvGatewayURL, s.URL)
	t.Setenv(client.EnvAPIKey, gatewayKey)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// problem answers with an error of a gateway.
func problem(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"message":"because \u001b[2J","code":%q}}`, code)
}

func TestTasksLists(t *testing.T) {
	asked := useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		page := `{"tasks":[` + taskJSON + `],"has_more":true}`
		if r.FormValue("before") == taskID {
			page = `{"tasks":[` + otherTaskJSON + `],"has_more":false}`
		}
		_, _ = io.WriteString(w, page)
	})
	for _, c := range []struct {
		args string
		want string
	}{
		{"tasks list", taskID + "\tfailed\texit_code\tHR\tm\t2026-01-02T03:04:05Z\t2.5s\n" + otherTaskID + "\trunning\t\tHR\tm\t2026-01-02T03:04:05Z\t\n"},
		{"tasks list --limit 1", taskID + "\tfailed\texit_code\tHR\tm\t2026-01-02T03:04:05Z\t2.5s\n"},
		{"webhooks list", taskID + "\tgiven_up\t10\t500\t2026-01-02T04:04:05Z\t\thttps://a.example/\n"},
	} {
		if got, _, err := run(strings.Fields(c.args)...); got != c.want || err != nil {
			t.Errorf("%s: got %v\n%swant\n%s", c.args, err, got, c.want)
		}
	}
	if got, _, err := run("tasks", "list", "--json", "--status", "failed"); err != nil || !strings.HasPrefix(got, "[\n") || !strings.Contains(got, otherTaskID) || strings.Contains(got, "\x1b") {
		t.Errorf("got %v\n%s", err, got)
	}
	if _, _, err := run("webhooks", "list", "--status", "given_up"); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"GET /api/tasks?limit=50&status=failed", "GET /api/tasks?limit=50&webhook=given_up"} {
		if !slices.Contains(asked(), want) {
			t.Errorf("%s is not in %q", want, asked())
		}
	}
}

func TestTaskShow(t *testing.T) {
	asked := useGateway(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, taskJSON) })
	const want = "task\t" + taskID + "\nstatus\tfailed\nreason\texit_code\nmessage\tit?[2Jfailed\nagent\tHR\nmodel\tm\nworker\t12D3A\nattempts\t2\n" +
		"submitted\t2026-01-02T03:04:05Z\nstarted\t2026-01-02T03:04:06Z\nended\t2026-01-02T03:04:08Z\ntook\t2.5s\nprompt\t5 bytes\noutput\t7 bytes\nfiles\tyes\n" +
		"webhook\thttps://a.example/\nwebhook status\tgiven_up\nwebhook attempts\t10\n" +
		"attempt\t2026-01-02T04:00:00Z timeout after 1.5s\nattempt\t2026-01-02T04:04:05Z 500 after 250ms\n"
	for _, command := range []string{"show", "cancel"} {
		if got, _, err := run("tasks", command, taskID); got != want || err != nil {
			t.Errorf("%s: got %v\n%s", command, err, got)
		}
	}
	if got, _, err := run("tasks", "show", taskID, "--json"); err != nil || !strings.Contains(got, `"reason": "exit_code"`) || strings.Contains(got, "\x1b") {
		t.Errorf("got %v\n%s", err, got)
	}
	if want := []string{"GET /api/tasks/" + taskID, "DELETE /api/tasks/" + taskID, "GET /api/tasks/" + taskID}; !slices.Equal(asked(), want) {
		t.Errorf("got %q", asked())
	}
}

// TestTaskLogs wants an output to be printed to its end, over connections that break, and
// anew when the task runs again.
func TestTaskLogs(t *testing.T) {
	step, task := 0, `{"task_id":"`+taskID+`","status":"completed"}`
	steps := []struct{ want, output string }{
		{"follow=true", "one\n"}, // and breaks off
		{"follow=true&offset=4&run=1", "!409 output_restarted"},
		{"follow=true", "tw\x1b["},
		{"follow=true&offset=4&run=1", "o\n."}, // and ends
	}
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch path := strings.TrimPrefix(r.URL.Path, "/api/tasks/"+taskID); {
		case path == "":
			_, _ = io.WriteString(w, task)
			return
		case path != "/output":
			problem(w, http.StatusNotFound, "not_found")
			return
		case r.URL.RawQuery == "":
			w.Header().Set("X-AgentFM-Task-Status", "running")
			_, _ = io.WriteString(w, "so far\x1b")
			return
		}
		s := steps[step]
		if step++; r.URL.RawQuery != s.want {
			t.Errorf("step %d: got %s, want %s", step, r.URL.RawQuery, s.want)
		}
		if text, ok := strings.CutPrefix(s.output, "!"); ok {
			status, code, _ := strings.Cut(text, " ")
			n, _ := strconv.Atoi(status)
			problem(w, n, code)
			return
		}
		w.Header().Set("X-AgentFM-Task-Run", "1")
		_, _ = io.WriteString(w, s.output)
		if !strings.HasSuffix(s.output, ".") {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	got, notes, err := run("tasks", "logs", "-f", taskID)
	if got != "one\ntw\x1b[o\n." || !strings.Contains(notes, "runs again") || err != nil {
		t.Errorf("got %q, %q, %v", got, notes, err)
	}
	step = 0
	want := strings.ReplaceAll(`{TASK,"text":"one\n"}|{TASK,"restarted":true}|{TASK,"text":"tw\u001b["}|{TASK,"text":"o\n."}|{TASK,"status":"completed"}|`, "TASK", `"task_id":"`+taskID+`"`)
	if got, notes, err := run("tasks", "logs", "-f", taskID, "--json"); strings.ReplaceAll(got, "\n", "|") != want || notes != "" || err != nil {
		t.Errorf("got %s, %q, %v", got, notes, err)
	}
	task, step = strings.Replace(task, "completed", `failed","reason":"exit_code","message":"bad`, 1), 3
	steps[3].want = "follow=true"
	if got, _, err := run("tasks", "logs", "--follow", taskID); got != "o\n." || exitCode(err) != exitAgent || !errors.Is(err, client.ReasonExitCode) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, _, err := run("tasks", "logs", taskID); got != "so far\x1b" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, _, err := run("tasks", "logs", taskID, "--json"); !strings.Contains(got, `"status": "running"`) || !strings.Contains(got, `"text": "so far\u001b"`) || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestPlainWriter wants a terminal not to be steered, and runes not to be cut.
func TestPlainWriter(t *testing.T) {
	var out strings.Builder
	w := &plainWriter{out: &out}
	for _, b := range []byte("a\x1b[2J\tü\u202e\n\xff\xffb€") {
		if n, err := w.Write([]byte{b}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got, want := out.String(), "a?[2J\tü?\n??b€"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTaskArtifacts(t *testing.T) {
	t.Chdir(t.TempDir())
	tag := fmt.Sprintf(`"%x"`, sha256.Sum256([]byte("zip")))
	body := "zip"
	useGateway(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", tag)
		if body == "half" {
			w.Header().Set("Content-Length", "100")
		}
		_, _ = io.WriteString(w, body)
	})
	fetch := func(args ...string) error {
		_, _, err := run(append([]string{"tasks", "artifacts", taskID}, args...)...)
		return err
	}
	if out, _, err := run("tasks", "artifacts", taskID); out != taskID+".zip\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if b, err := os.ReadFile(taskID + ".zip"); string(b) != "zip" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if err := fetch(); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over another: %v", err)
	}
	for text, want := range map[string]string{"zap": "SHA-256", "half": "changed while they were fetched"} {
		body = text
		if err := fetch("-o", "other.zip"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	tag = `"not-a-hash"`
	body = "other"
	if err := fetch("-o", filepath.Join(".", "other.zip")); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir("."); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestWebhooksRedeliver(t *testing.T) {
	asked := useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, otherTaskID) {
			problem(w, http.StatusConflict, "webhook_pending")
			return
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, taskJSON)
	})
	if got, _, err := run("webhooks", "redeliver", taskID); got != taskID+": queued\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	got, notes, err := run("webhooks", "redeliver", otherTaskID, taskID)
	if got != taskID+": queued\n" || !strings.Contains(notes, otherTaskID+": agentfm: because  [2J (webhook_pending, status 409)") || err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("got %q, %q, %v", got, notes, err)
	}
	if !slices.Contains(asked(), "POST /api/tasks/"+taskID+"/webhook") {
		t.Errorf("got %q", asked())
	}
}

// TestGatewayErrors wants each mistake to be named, with what to do, and no key to be shown.
func TestGatewayErrors(t *testing.T) {
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/elsewhere/api/tasks":
			http.Redirect(w, r, "https://b.example/", http.StatusMovedPermanently)
		case "/html/api/tasks":
			_, _ = io.WriteString(w, "<html>")
		case "/other/api/tasks":
			http.NotFound(w, r)
		default:
			problem(w, http.StatusNotFound, "task_not_found")
		}
	})
	gateway := os.Getenv(client.EnvGatewayURL)
	keys := write(t, "keys", "two keys\n")
	good := write(t, "key", gatewayKey+"\n")
	wrong := write(t, "wrong", "another-key-of-another\n")
	for _, c := range []struct{ args, want string }{
		{"tasks show " + taskID, "agentfm: because  [2J (task_not_found, status 404)"},
		{"tasks show " + taskID + " --api-key-file " + good, "task_not_found, status 404"},
		{"tasks show " + taskID + " --api-key-file " + wrong, client.EnvAPIKey},
		{"tasks show " + taskID + " --api-key-file " + keys, "does not hold a key"},
		{"tasks show " + taskID + " --api-key-file /does/not/exist", "no such file"},
		{"tasks show ..", "the id of the task is missing"},
		{"tasks artifacts ../x", "not the id of a task"},
		{"tasks show", "accepts 1 arg(s)"},
		{"tasks show a b", "accepts 1 arg(s)"},
		{"tasks list more", "unknown command"},
		{"tasks list --limit 0", "want 1 to 10000"},
		{"tasks lst", "unknown command"},
		{"tasks cancel", "accepts 1 arg(s)"},
		{"tasks logs -f", "accepts 1 arg(s)"},
		{"tasks artifacts", "accepts 1 arg(s)"},
		{"webhooks redeliver", "requires at least 1 arg"},
		{"webhooks list x", "unknown command"},
		{"tasks list --key x", "unknown flag"},
		{"tasks list --gateway ftp://x", "the base URL must begin with http://"},
		{"tasks list --gateway http://u:p@x", "the base URL must have no user"},
		{"tasks list --gateway " + gateway + "/elsewhere", "to https://b.example/"},
		{"tasks list --gateway " + gateway + "/html", "a page of a proxy or another server"},
		{"tasks list --gateway " + gateway + "/other", "404 page not found (status 404); --gateway, or "},
		{"tasks list --gateway http://127.0.0.1:1", "connection refused"},
	} {
		out, notes, err := run(strings.Fields(c.args)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || out != "" || strings.Contains(err.Error()+notes, "another-key") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: got %q, %v, want %s", c.args, out, err, c.want)
		}
	}
	if out, _, err := run("tasks"); err != nil || !strings.Contains(out, "artifacts") {
		t.Errorf("alone: %q, %v", out, err)
	}
}
