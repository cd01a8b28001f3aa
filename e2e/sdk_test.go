// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/client"
	"github.com/Agent-FM/caddy-agentfm/client/localgateway"
)

// webhookSecret is that of the gateways of these tests.
const webhookSecret = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="

// startSDK starts a gateway with three agents: one that reports, one that waits for the
// file gate, and one that fails half-way.
func startSDK(t *testing.T) (p *process, gate string) {
	t.Helper()
	gate = filepath.Join(t.TempDir(), "gate")
	p = startWith(t, home(t), caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("report", "Text report", "text-report", command(reportScript)),
		agent("gated", "Gated", "gated", command(writeScript(t, gatedScript), "GATE", gate)),
		agent("broken", "Broken", "broken", command(writeScript(t, "echo half\nexit 3\n")))),
		[]string{"AGENTFM_WEBHOOK_SECRET=" + webhookSecret, "AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"})
	p.awaitWorkers(3)
	return p, gate
}

// sdk returns a client of the process.
func (p *process) sdk(opts ...client.Option) *client.Client {
	p.t.Helper()
	c, err := client.New(append([]client.Option{client.WithBaseURL(p.url), client.WithAPIKey(testKey)}, opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// TestExamplesGo runs the example programs of the Go SDK as they are.
func TestExamplesGo(t *testing.T) {
	p, _ := startSDK(t)
	programs := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", programs, "./examples/go/...")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	gateway, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	hook := "127.0.0.1:" + freePorts(t, 1)[0]
	for _, e := range []struct {
		name, arg string
		want      []string
	}{
		{"quickstart", "text-report", []string{"load=", "Words: 6", "Duration: ", "artifact: artifacts/", "report.md", "Words: 4"}},
		{"scatter", "text-report", []string{"[0] ok (", "[11] ok ("}},
		{"webhook", "text-report", []string{"queued task task_", "-> completed, signed standard", "Words: 6", "/report.md]"}},
		{"openai", "text-report", []string{"Words: 6", p.url + "/v1"}},
		{"localgateway", gateway, []string{"hello from http://127.0.0.1:"}},
		{"pick", "text-report", []string{"picked 12D3", "text-report true", "Words: 6", "by 12D3"}},
	} {
		t.Run(e.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(programs, e.name), e.arg)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "AGENTFM_GATEWAY_URL="+p.url, "AGENTFM_API_KEY="+testKey,
				"AGENTFM_WEBHOOK_SECRET="+webhookSecret, "WEBHOOK_ADDRESS="+hook, "WEBHOOK_URL=http://"+hook+"/")
			out, err := cmd.CombinedOutput()
			if err != nil || strings.Contains(string(out), "failed") {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range e.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("without %q:\n%s", want, out)
				}
			}
		})
	}
}

// TestDocGo runs the first program of the page about the Go SDK as it is; the other one
// needs OpenAI's library, which has a module of its own.
func TestDocGo(t *testing.T) {
	p, _ := startSDK(t)
	page, err := os.ReadFile(filepath.Join(root, "docs/client.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(page), "```go\n")
	code, _, _ = strings.Cut(code, "```")
	dir := t.TempDir()
	file, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "main")
	if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, file)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "AGENTFM_GATEWAY_URL="+p.url, "AGENTFM_API_KEY="+testKey)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Words: 6") || !strings.Contains(string(out), "report.md]") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSDK uses the Go SDK against a gateway, for what the examples do not show.
func TestSDK(t *testing.T) {
	p, gate := startSDK(t)
	c := p.sdk()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	t.Run("errors", func(t *testing.T) { sdkErrors(ctx, t, p.in(t)) })
	t.Run("stream", func(t *testing.T) { sdkStream(ctx, t, p.in(t)) })
	t.Run("task", func(t *testing.T) { sdkTask(ctx, t, c, gate) })
	t.Run("cancel", func(t *testing.T) { sdkCancel(ctx, t, c, gate) })
	t.Run("webhook", func(t *testing.T) { sdkWebhook(ctx, t, c) })
	t.Run("scatter", func(t *testing.T) {
		results, err := c.Tasks.Scatter(ctx, []string{"a", "b", "c"}, client.ScatterOptions{
			Peers: []string{p.workerID("Broken"), p.workerID("Text report")},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Status != client.ScatterSuccess || r.WorkerID != p.workerID("Text report") {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("peers", func(t *testing.T) { sdkPeers(ctx, t, c, p.workerID("Text report")) })
	t.Run("about", func(t *testing.T) {
		a, err := c.About(ctx)
		if err != nil || !strings.HasPrefix(a.PeerID, "12D3") {
			t.Error(a, err)
		}
		m, err := c.OpenAI.Model(ctx, "text-report")
		if err != nil || m.PeerID != p.workerID("Text report") {
			t.Error(m, err)
		}
		answer, err := c.OpenAI.Complete(ctx, client.CompletionRequest{Model: "text-report", Prompt: "To be."})
		if err != nil || !strings.Contains(answer.Text(), "Words: 2") || answer.Served.TaskID == "" {
			t.Error(answer, err)
		}
	})
}

// sdkErrors wants each answer to be the error that it should be.
func sdkErrors(ctx context.Context, t *testing.T, p *process) {
	c := p.sdk()
	nobody := "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"
	run := func(c *client.Client, r client.RunRequest) error { _, err := c.Tasks.Run(ctx, r); return err }
	chat := func(model string) error {
		_, err := c.OpenAI.Chat(ctx, client.ChatRequest{Model: model, Messages: []client.ChatMessage{{Role: "user", Content: "x"}}})
		return err
	}
	_, embeddings := c.OpenAI.Embeddings(ctx, "text-report", []string{"x"})
	_, task := c.Tasks.Get(ctx, "task_00000000000000000000000000")
	for name, e := range map[string]struct {
		err    error
		is     []error
		status int
	}{
		"no key":      {run(p.sdk(client.WithoutAPIKey()), client.RunRequest{WorkerID: nobody, Prompt: "x"}), []error{client.ErrAuthentication, client.CodeUnauthorized}, 401},
		"wrong key":   {run(p.sdk(client.WithAPIKey("a-key-that-is-not-one")), client.RunRequest{WorkerID: nobody, Prompt: "x"}), []error{client.ErrAuthentication, client.CodeInvalidAPIKey}, 401},
		"no worker":   {run(c, client.RunRequest{WorkerID: nobody, Prompt: "x"}), []error{client.ErrWorkerNotFound, client.CodeWorkerNotFound}, 404},
		"no peer id":  {run(c, client.RunRequest{WorkerID: "x", Prompt: "x"}), []error{client.ErrInvalidRequest, client.CodeInvalidRequest}, 400},
		"no model":    {chat("nobody"), []error{client.ErrModelNotFound, client.CodeModelNotFound}, 404},
		"empty model": {chat(""), []error{client.ErrInvalidRequest, client.CodeModelRequired}, 400},
		"half-way":    {run(c, client.RunRequest{WorkerID: p.workerID("Broken"), Prompt: "x"}), []error{client.ErrWorkerStream, client.CodeWorkerStreamFailed}, 0},
		"embeddings":  {embeddings, []error{client.CodeUnknownURL, client.ErrNotFound}, 404},
		"task":        {task, []error{client.CodeTaskNotFound, client.ErrNotFound}, 404},
	} {
		got, ok := errors.AsType[*client.Error](e.err)
		if !ok || got.Status != e.status || got.RequestID == "" {
			t.Errorf("%s: %+v", name, e.err)
		}
		for _, is := range e.is {
			if !errors.Is(e.err, is) {
				t.Errorf("%s: %v is not %v", name, e.err, is)
			}
		}
	}
}

// sdkStream wants a stream to come piece by piece, and to stop the agent when it is closed.
func sdkStream(ctx context.Context, t *testing.T, p *process) {
	stream, err := p.sdk().Tasks.Stream(ctx, client.RunRequest{WorkerID: p.workerID("Gated"), Prompt: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if stream.Served.TaskID == "" || stream.Served.Agent != "Gated" || stream.Served.Attempts != 1 {
		t.Errorf("%+v", stream.Served)
	}
	for chunk, err := range stream.All() {
		if err != nil || chunk.Text != "first line\n" {
			t.Fatal(chunk, err)
		}
		break
	}
	p.await("the agent to be stopped", func() bool {
		for _, w := range p.workers().Agents {
			if w.Name == "Gated" {
				return w.CurrentTasks == 0
			}
		}
		return false
	})
}

// sdkTask follows a task to its end, and fetches what it leaves.
func sdkTask(ctx context.Context, t *testing.T, c *client.Client, gate string) {
	ack, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "gated", Prompt: "x"})
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for piece, err := range c.Tasks.Follow(ctx, ack.TaskID) {
		if err != nil && !errors.Is(err, client.ErrProtocol) { // of a gateway that has no follow
			t.Error(err)
		}
		if text += piece; strings.HasPrefix(text, "first line\n") || err != nil {
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	task, err := c.Tasks.Wait(ctx, ack.TaskID)
	if err != nil || task.Status != client.TaskCompleted || task.Err() != nil || task.Agent != "Gated" {
		t.Fatalf("%+v, %v", task, err)
	}
	output, err := c.Tasks.Output(ctx, ack.TaskID)
	if err != nil || output.Text != "first line\nsecond line\n" || output.Status != client.TaskCompleted {
		t.Error(output, err)
	}
	names := ""
	for ev, err := range c.Tasks.Events(ctx, ack.TaskID, "") {
		if errors.Is(err, client.CodeNotFound) { // a gateway that has no events
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names += ev.Name + " "
	}
	if names != "" && names != "queued running completed " {
		t.Error(names)
	}
	once := client.IdempotencyKey("sdk-" + ack.TaskID)
	failed, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "broken", Prompt: "x"}, once)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "broken", Prompt: "x"}, once); err != nil || again.TaskID != failed.TaskID {
		t.Error(again, err)
	}
	if _, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "broken", Prompt: "y"}, once); !errors.Is(err, client.CodeIdempotencyKeyReused) {
		t.Error(err)
	}
	if task, err = c.Tasks.Wait(ctx, failed.TaskID); err != nil || !errors.Is(task.Err(), client.ReasonExitCode) || !errors.Is(task.Err(), client.ErrTaskFailed) {
		t.Errorf("%+v, %v", task, err)
	}
	if _, err := c.Tasks.Artifacts(ctx, failed.TaskID, t.TempDir()); !errors.Is(err, client.CodeTaskNotFound) {
		t.Error(err)
	}
	var listed []string
	for task, err := range c.Tasks.List(ctx, client.TaskQuery{PageSize: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, task.ID)
	}
	if len(listed) < 2 || !slices.Contains(listed, ack.TaskID) || !slices.Contains(listed, failed.TaskID) {
		t.Error(listed)
	}
	if err := os.Remove(gate); err != nil {
		t.Error(err)
	}
}

// sdkCancel cancels a task that runs.
func sdkCancel(ctx context.Context, t *testing.T, c *client.Client, _ string) {
	ack, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "gated", Prompt: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if task, err := c.Tasks.Cancel(ctx, ack.TaskID); err != nil || task.Status != client.TaskCancelled {
		t.Error(task, err)
	}
	if task, err := c.Tasks.Wait(ctx, ack.TaskID); err != nil || !errors.Is(task.Err(), client.ReasonCancelled) {
		t.Error(task, err)
	}
	done, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "text-report", Prompt: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tasks.Wait(ctx, done.TaskID); err != nil {
		t.Error(err)
	}
	if _, err := c.Tasks.Cancel(ctx, done.TaskID); !errors.Is(err, client.CodeTaskEnded) {
		t.Error(err)
	}
}

// sdkWebhook is told of a task's end, and once more when it asks.
func sdkWebhook(ctx context.Context, t *testing.T, c *client.Client) {
	told := make(chan client.WebhookPayload, 10)
	receiver := httptest.NewServer(&client.WebhookHandler{
		Secrets: []string{"an old secret", webhookSecret}, RequireStandard: true,
		Callback: func(_ *http.Request, p client.WebhookPayload) error { told <- p; return nil },
	})
	defer receiver.Close()
	_, port, _ := net.SplitHostPort(receiver.Listener.Addr().String())
	ack, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "text-report", Prompt: "x", WebhookURL: "http://127.0.0.1:" + port + "/hook"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-told:
		if p.TaskID != ack.TaskID || p.Status != client.TaskCompleted || p.Signed != client.StandardSignature || p.ID == "" || p.ArtifactsURL == "" {
			t.Errorf("%+v", p)
		}
	case <-ctx.Done():
		t.Fatal("nobody has told")
	}
	await(t, "the delivery to be noted", func() bool {
		task, err := c.Tasks.Get(ctx, ack.TaskID)
		return err == nil && task.Webhook.Status == "delivered"
	})
	if _, err := c.Tasks.RedeliverWebhook(ctx, ack.TaskID); err != nil && !errors.Is(err, client.ErrRateLimited) { // ten seconds between two
		t.Error(err)
	}
}

// sdkPeers comments on a worker, finds that in the log, and proves that it is there.
func sdkPeers(ctx context.Context, t *testing.T, c *client.Client, peer string) {
	rating := 0.5
	receipt, err := c.Peers.Comment(ctx, peer, client.CommentRequest{Text: "Quick, and right. ü", Language: "en", Rating: &rating})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := c.Peers.CommentBody(ctx, peer, receipt.CID); err != nil || text != "Quick, and right. ü" {
		t.Error(text, err)
	}
	kinds := map[string]int{}
	for e, err := range c.Peers.Log(ctx, peer) {
		if err != nil {
			t.Fatal(err)
		}
		kinds[e.Kind]++
		if e.Kind == "Comment" && (e.Hash != receipt.LedgerHash || e.TextCID != receipt.CID || e.Language != "en") || e.Kind == "Rating" && e.Score != 0.5 {
			t.Errorf("%+v", e)
		}
	}
	if kinds["Comment"] != 1 || kinds["Rating"] != 1 {
		t.Error(kinds)
	}
	about, err := c.About(ctx)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := c.Peers.Proof(ctx, peer, receipt.LedgerHash)
	if err != nil || !proof.Head.Signed() || proof.Head.Verify() != nil || proof.Head.PeerID != about.PeerID {
		t.Errorf("%+v, %v", proof, err)
	}
	summary, err := c.Peers.Get(ctx, peer)
	if err != nil || summary.Agent != "Text report" || !summary.Online || summary.EntriesCount != 2 || summary.Raters == nil {
		t.Errorf("%+v, %v", summary, err)
	}
	await(t, "the rating to count", func() bool { // scores are computed once a second
		r, err := c.Peers.Reputation(ctx, peer)
		return err == nil && r.RatingCount == 1 && r.Scores["honesty"] > 0
	})
	_, comment := c.Peers.CommentBody(ctx, peer, "1220"+strings.Repeat("0", 64))
	_, bad := c.Peers.Get(ctx, "x")
	_, entry := c.Peers.Proof(ctx, peer, strings.Repeat("0", 64))
	for is, err := range map[client.Code]error{client.CodeCommentNotFound: comment, client.CodeBadPeerID: bad, client.CodeEntryNotFound: entry} {
		if !errors.Is(err, is) {
			t.Errorf("%v is not %s", err, is)
		}
	}
}

// TestClientCommands uses the commands of the binary as a shell does.
func TestClientCommands(t *testing.T) {
	p, gate := startSDK(t)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFile(t, dir, "key", "another-key-of-nobody")
	for _, c := range []struct {
		args, in string
		want     []string
		code     int
	}{
		{"models", "", []string{"text-report\tText report\tAVAILABLE\t", "\t" + p.workerID("Gated")}, 0},
		{"run --model text-report --files files To be, or not to be.", "", []string{"- Words: 6", "report.md"}, 0},
		{"run --peer " + p.workerID("Gated"), "x", []string{"first line\nsecond line\n"}, 0},
		{"run --model broken x", "", []string{"half\n", "worker_stream_failed"}, 7},
		{"run --model nobody x", "", []string{"no worker that is online offers nobody"}, 5},
		{"chat --model text-report --prompt hello", "", []string{"- Words: "}, 0},
		{"scatter --model text-report -", "one\ntwo\nthree\n", []string{`{"index":0,"status":"success"`, `{"index":2,"status":"success"`}, 0},
		{"scatter --peer " + p.workerID("Broken") + " --retries 0 -", "one\n", []string{`{"index":0,"status":"failed"`, "1 of 1 prompts failed"}, 7},
		{"models --gateway http://127.0.0.1:1", "", []string{"connection refused"}, 3},
		{"models --foo", "", []string{"unknown flag: --foo", "See \"agentfm agentfm models --help\"."}, 2},
		{"models --api-key-file key", "", []string{"invalid_api_key"}, 4},
		{"workers --model gated", "", []string{"AVAILABLE\tGated\tgated\t0/4\t"}, 0},
		{"peers comment " + p.workerID("Gated") + " --rating 0.5 Quick.", "", []string{"cid\t1220", "entry\t"}, 0},
		{"peers log " + p.workerID("Gated"), "", []string{"\tComment\t1220", "\tRating\thonesty 0.50\t"}, 0},
		{"peers get " + p.workerID("Gated") + " --json", "", []string{`"entries_count": 2`}, 0},
		{"peers list", "", []string{"online\t", "\tallowed", "\tGated\tgated\t"}, 0},
		{"id --address " + strings.TrimPrefix(p.admin, "http://"), "", []string{"12D3KooW"}, 0},
		{"chat --model text-report --prompt hello --json", "", []string{`"finish_reason": "stop"`}, 0},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cmd := exec.CommandContext(ctx, program, append([]string{"agentfm"}, strings.Fields(c.args)...)...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(c.in)
		cmd.Env = append(os.Environ(), "AGENTFM_GATEWAY_URL="+p.url, "AGENTFM_API_KEY="+testKey)
		out, _ := cmd.CombinedOutput() // the code says how it ended
		cancel()
		if cmd.ProcessState.ExitCode() != c.code {
			t.Errorf("%s: %v\n%s", c.args, cmd.ProcessState, out)
		}
		for _, want := range c.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: without %q:\n%s", c.args, want, out)
			}
		}
	}
}

// TestLocalGateway starts the real binary, with its own configuration and with one that is
// wrong, and leaves nothing.
func TestLocalGateway(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	gw, err := localgateway.Start(t.Context(), localgateway.Options{Program: program, APIKey: testKey, StartTimeout: patience, StopTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	c, err := gw.Client()
	if err != nil {
		t.Fatal(err)
	}
	if list, err := c.Workers.List(t.Context(), client.WorkerFilter{}); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	none, _ := c.With(client.WithoutAPIKey())
	if _, err := none.Workers.List(t.Context(), client.WorkerFilter{}); !errors.Is(err, client.ErrAuthentication) {
		t.Error(err)
	}
	if err := gw.Stop(); err != nil || !strings.Contains(gw.Log(), "mesh node is open") {
		t.Errorf("%v\n%s", err, gw.Log())
	}
	_, err = localgateway.Start(t.Context(), localgateway.Options{Program: program, Caddyfile: "{\n\tnonsense\n}\n", StartTimeout: patience})
	if !errors.Is(err, client.ErrGateway) || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Error(left, err)
	}
	if _, err := c.Health(t.Context()); !errors.Is(err, client.ErrConnection) {
		t.Error(err)
	}
}

// The zip that a worker makes is one that the SDK takes, with all that a folder may hold.
func TestSDKArtifacts(t *testing.T) {
	script := `mkdir -p "$AGENTFM_OUTPUT/a/b" "$AGENTFM_OUTPUT/empty"
printf one >"$AGENTFM_OUTPUT/a/b/file.txt"
: >"$AGENTFM_OUTPUT/nothing"
printf ü >"$AGENTFM_OUTPUT/ünï côde"
ln -s /etc/passwd "$AGENTFM_OUTPUT/link"
head -c 3000000 /dev/zero >"$AGENTFM_OUTPUT/zeros"
head -c 3000000 /dev/urandom >"$AGENTFM_OUTPUT/random.png"
echo done
`
	p := start(t, home(t), caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("files", "Files", "files", command(writeScript(t, script)))))
	p.awaitWorkers(1)
	c := p.sdk(client.WithArtifactsDir(t.TempDir()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := c.Tasks.Run(ctx, client.RunRequest{WorkerID: p.workerID("Files"), Prompt: "x"})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, path := range r.Artifacts {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() {
			t.Fatal(info, err)
		}
		sizes[filepath.Base(path)] = info.Size()
	}
	for name, size := range map[string]int64{"file.txt": 3, "nothing": 0, "ünï côde": 2, "zeros": 3_000_000, "random.png": 3_000_000} {
		if got, ok := sizes[name]; !ok || got != size {
			t.Errorf("%s: %d, %v", name, got, ok)
		}
	}
	if len(sizes) != 5 {
		t.Error(sizes)
	}
	if d, err := c.Tasks.Download(ctx, r.TaskID, io.Discard); err != nil || d.Size < 3_000_000 {
		t.Error(d, err)
	}
}
