// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// attempted makes a dispatch fail as the mesh does when it has tried a worker.
func attempted(err error) func(context.Context, mesh.Call) (run, error) {
	return fails(&mesh.AttemptError{Served: mesh.Served{Peer: peerA, TaskID: "task_0", Attempts: 1}, Err: err})
}

// sameAnswer wants an answer to be the same as the first, but for what says that it is not
// the first.
func sameAnswer(t *testing.T, first, again answer) {
	t.Helper()
	if again.status != first.status || again.body != first.body || fmt.Sprint(again.trailer) != fmt.Sprint(first.trailer) {
		t.Errorf("got %d %q %v, want %d %q %v", again.status, again.body, again.trailer, first.status, first.body, first.trailer)
	}
	if first.header.Get("Idempotent-Replayed") != "" || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("Idempotent-Replayed: %q, then %q", first.header.Get("Idempotent-Replayed"), again.header.Get("Idempotent-Replayed"))
	}
	if again.status >= 400 && again.header.Get("X-Should-Retry") != "false" {
		t.Error("the client is not told that another try is of no use")
	}
	for _, name := range keptHeaders {
		if name == "X-Should-Retry" {
			continue
		}
		if got, want := again.header.Get(name), first.header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	again.hasRequestID(t)
	if first.header.Get("X-Request-Id") == again.header.Get("X-Request-Id") {
		t.Error("both have one request id")
	}
}

// keyedRoutes are requests to the routes that start work, of each form of an answer.
func keyedRoutes() map[string]struct {
	path, body string
	dispatch   func(context.Context, mesh.Call) (run, error)
	routes     router.Routes
} {
	type request = struct {
		path, body string
		dispatch   func(context.Context, mesh.Call) (run, error)
		routes     router.Routes
	}
	said := answers(script{output: []string{"Hello", " world\n"}, files: true})
	passed := func(status int, mediaType, body string) func(context.Context, mesh.Call) (run, error) {
		return answers(script{output: []string{body}, response: &mesh.Response{
			Status: status, Length: int64(len(body)), Header: http.Header{"Content-Type": {mediaType}, "Openai-Version": {"1"}},
		}})
	}
	all := mesh.Route("/v1/chat/completions") | mesh.Route("/v1/embeddings")
	return map[string]request{
		"execute":       {path: "/api/execute", body: executeBody, dispatch: said},
		"execute fails": {path: "/api/execute", body: executeBody, dispatch: answers(script{output: []string{"Half"}, end: wire.ErrAgentFailed})},
		"chat":          {path: "/v1/chat/completions", body: chatBody, dispatch: said},
		"chat streamed": {path: "/v1/chat/completions", body: chatBody[:len(chatBody)-1] + `,"stream":true}`, dispatch: said},
		"chat breaks":   {path: "/v1/chat/completions", body: chatBody[:len(chatBody)-1] + `,"stream":true}`, dispatch: answers(script{output: []string{"Half"}, end: mesh.ErrStream})},
		"choices":       {path: "/v1/completions", body: textBody[:len(textBody)-1] + `,"n":3}`, dispatch: said},
		"response":      {path: "/v1/responses", body: `{"model":"llama3.2","input":"hi"}`, dispatch: said},
		"agent fails":   {path: "/v1/completions", body: textBody, dispatch: attempted(wire.ErrAgentFailed)},
		"stream fails":  {path: "/v1/completions", body: textBody, dispatch: attempted(mesh.ErrStream)},
		"large":         {path: "/api/execute", body: executeBody, dispatch: answers(script{output: slices.Repeat([]string{strings.Repeat("x", 8000)}, 100)})},
		"passed":        {path: "/v1/embeddings", body: textBody, dispatch: passed(200, "application/json", `{"data":[]}`), routes: all},
		"passed events": {path: "/v1/chat/completions", body: chatBody, dispatch: passed(200, "text/event-stream", "data: x\n\ndata: [DONE]\n\n"), routes: all},
		"server fails":  {path: "/v1/embeddings", body: textBody, dispatch: passed(500, "application/json", `{"error":{}}`), routes: all},
		"refused":       {path: "/v1/embeddings", body: textBody, dispatch: passed(400, "application/json", `{"error":{}}`), routes: all},
		"large passed":  {path: "/v1/embeddings", body: textBody, dispatch: passed(200, "audio/mpeg", strings.Repeat("x", 300_000)), routes: all},
	}
}

// TestKeyReplay wants what a worker was given to be done once, and its answer, whatever it
// is, to be had again.
func TestKeyReplay(t *testing.T) {
	f := new(fakeMesh)
	g := serveTasks(t, f, tasks.Options{})
	for name, r := range keyedRoutes() {
		t.Run(name, func(t *testing.T) {
			f.dispatch, f.routes, f.noText = r.dispatch, r.routes, r.routes != 0
			headers := []string{"Idempotency-Key", strings.ReplaceAll(name, " ", "-"), "Origin", "http://localhost:1"}
			first := g.do(t, "POST", r.path, r.body, headers...)
			calls := len(f.seen())
			for range 2 {
				again := g.do(t, "POST", r.path, r.body, headers...)
				sameAnswer(t, first, again)
				if again.header.Get("Access-Control-Allow-Origin") != "http://localhost:1" {
					t.Error("the page may not read the answer")
				}
			}
			if len(f.seen()) != calls {
				t.Errorf("%d calls, then %d", calls, len(f.seen()))
			}
			g.do(t, "POST", r.path, r.body+" ", headers...).failed(t, 422, "idempotency_key_reused")
			if len(f.seen()) != calls {
				t.Error("another request with the key was served")
			}
		})
	}
}

// TestKeyFreed wants requests of which no worker began anything to be served anew.
func TestKeyFreed(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	g := serveTasks(t, f, tasks.Options{})
	limited := answers(script{output: []string{`{}`}, response: &mesh.Response{Status: 429, Header: http.Header{}, Length: 2}})
	for name, r := range map[string]struct {
		path, body string
		dispatch   func(context.Context, mesh.Call) (run, error)
		routes     router.Routes
		status     int
	}{
		"malformed":   {path: "/v1/completions", body: "{", status: 400},
		"NUL":         {path: "/v1/completions", body: `{"model":"m","prompt":"\u0000"}`, status: 400},
		"busy":        {path: "/v1/completions", body: textBody, dispatch: fails(router.ErrBusy), status: 503},
		"no match":    {path: "/v1/completions", body: `{"model":"none","prompt":"x"}`, dispatch: fails(router.ErrNoMatch), status: 404},
		"full":        {path: "/api/execute", body: executeBody, dispatch: attempted(wire.ErrCapacity), status: 503},
		"refused":     {path: "/api/execute", body: executeBody, dispatch: attempted(wire.ErrRefused), status: 502},
		"unreachable": {path: "/api/execute", body: executeBody, dispatch: attempted(mesh.ErrUnreachable), status: 502},
		"starting":    {path: "/api/execute", body: executeBody, dispatch: fails(mesh.ErrNotRunning), status: 503},
		"limited":     {path: "/v1/embeddings", body: textBody, dispatch: limited, routes: mesh.Route("/v1/embeddings"), status: 429},
		"no worker":   {path: "/api/execute/async", body: `{"worker_id":"` + peerB + `","prompt":"x"}`, status: 404},
		"bad task":    {path: "/api/execute/async", body: `{}`, status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			f.dispatch, f.routes, f.noText = r.dispatch, r.routes, r.routes != 0
			for _, body := range []string{r.body, r.body, r.body + " "} {
				a := g.do(t, "POST", r.path, body, "Idempotency-Key", strings.ReplaceAll(name, " ", "-"))
				if a.status != r.status || a.header.Get("Idempotent-Replayed") != "" {
					t.Errorf("got %d %s, want %d", a.status, a.body, r.status)
				}
			}
		})
	}
}

// TestKeyForms wants keys of other forms to be refused, and what is no work not to mind.
func TestKeyForms(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"x"}})}
	g := serveTasks(t, f, tasks.Options{})
	for name, key := range map[string][]string{
		"none": {""}, "long": {strings.Repeat("k", 256)}, "space": {"a b"}, "accent": {"clé"}, "two": {"a", "a"}, "tab": {"a\tb"}, "empty and one": {"", "a"},
	} {
		var headers []string
		for _, k := range key {
			headers = append(headers, "Idempotency-Key", k)
		}
		g.do(t, "POST", "/v1/completions", textBody, headers...).failed(t, 400, "idempotency_key_invalid")
		if a := g.do(t, "GET", "/v1/models", "", headers...); a.status != 200 {
			t.Errorf("%s: got %d", name, a.status)
		}
	}
	if n := len(f.seen()); n != 0 {
		t.Errorf("%d requests with a key that is none were served", n)
	}
	for _, key := range []string{"k", strings.Repeat("k", 255), `"8e03978e-40d5-43e8-bc93-6894a57f9324"`, "~!,;"} {
		if a := g.do(t, "POST", "/v1/completions", textBody, "Idempotency-Key", key); a.status != 200 {
			t.Errorf("%s: got %d %s", key, a.status, a.body)
		}
	}
	for range 2 { // without a key
		if a := g.do(t, "POST", "/v1/completions", textBody); a.header.Get("Idempotent-Replayed") != "" {
			t.Error("an answer without a key is not new")
		}
	}
	if n := len(f.seen()); n != 6 {
		t.Errorf("%d requests were served", n)
	}
}

// TestKeyPrint wants what decides the answer to be part of the request, and nothing else.
func TestKeyPrint(t *testing.T) {
	form := func(boundary, text string) string {
		return "--" + boundary + "\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--" + boundary +
			"\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n" + text + "\r\n--" + boundary + "--\r\n"
	}
	formType := func(boundary string) string { return "multipart/form-data; boundary=" + boundary }
	base := []string{"Content-Type", "application/json", "Accept", "a"}
	for name, r := range map[string]struct {
		query, body string
		headers     []string
		same        bool
	}{
		"the same":      {headers: base, same: true},
		"other headers": {headers: append([]string{"X-Stainless-Retry-Count", "1", "Traceparent", "x", "User-Agent", "y"}, base...), same: true},
		"query":         {query: "?x=1", headers: base},
		"body":          {body: "other", headers: base},
		"accept":        {headers: []string{"Content-Type", "application/json", "Accept", "b"}},
		"type":          {headers: []string{"Content-Type", "text/plain", "Accept", "a"}},
		"worker":        {headers: append([]string{"X-AgentFM-Worker", peerA}, base...)},
		"exclude":       {headers: append([]string{"X-AgentFM-Exclude", peerA}, base...)},
	} {
		print := func(query, body string, headers []string) [32]byte {
			req, err := http.NewRequest("POST", "http://x/"+query, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i+1 < len(headers); i += 2 {
				req.Header.Add(headers[i], headers[i+1])
			}
			return fingerprint(req, []byte(body))
		}
		if got := print("", "", base) == print(r.query, r.body, r.headers); got != r.same {
			t.Errorf("%s: the same: %t", name, got)
		}
		one := print("", form("one", "a"), []string{"Content-Type", formType("one")})
		if one != print("", form("two", "a"), []string{"Content-Type", formType("two")}) {
			t.Error("the boundary of a form counts")
		}
		for _, other := range []string{form("two", "b"), form("two", ""), ""} {
			if one == print("", other, []string{"Content-Type", formType("two")}) {
				t.Errorf("%q is the same form", other)
			}
		}
	}
}

// TestKeyInFlight wants the second of two to be told of the first, or to get its answer.
func TestKeyInFlight(t *testing.T) {
	f := new(fakeMesh)
	var release func()
	f.dispatch, release = heldTask(script{output: []string{"Hello"}}, nil)
	g := serveTasks(t, f, tasks.Options{})
	first := make(chan answer)
	go func() { first <- g.do(t, "POST", "/v1/completions", textBody, "Idempotency-Key", "k") }()
	await.Until(t, "a call", func() bool { return len(f.seen()) == 1 })
	again := g.do(t, "POST", "/v1/completions", textBody, "Idempotency-Key", "k")
	again.failed(t, 409, "idempotency_key_in_use")
	if again.header.Get("Retry-After") != "1" || again.header.Get("X-Should-Retry") != "" {
		t.Errorf("got %v", again.header)
	}
	g.do(t, "POST", "/v1/completions", textBody+" ", "Idempotency-Key", "k").failed(t, 422, "idempotency_key_reused")
	release()
	sameAnswer(t, <-first, g.do(t, "POST", "/v1/completions", textBody, "Idempotency-Key", "k"))
	if n := len(f.seen()); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// TestKeyHangUp wants an agent whose client went away not to run again.
func TestKeyHangUp(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"Hello"}, hang: true})}
	g := serveTasks(t, f, tasks.Options{})
	for _, path := range []string{"/api/execute", "/v1/completions"} {
		ctx, hangUp := context.WithCancel(t.Context())
		body := map[string]string{"/api/execute": executeBody, "/v1/completions": textBody}[path]
		req, err := http.NewRequestWithContext(ctx, "POST", g.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "k")
		calls := len(f.seen())
		go func() {
			await.Until(t, "a call", func() bool { return len(f.seen()) > calls })
			hangUp()
		}()
		if resp, err := g.Client().Do(req); err == nil {
			_, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		await.Until(t, "the end of the first", func() bool {
			a := g.do(t, "POST", path, body, "Idempotency-Key", "k")
			return !strings.Contains(a.body, "idempotency_key_in_use")
		})
		a := g.do(t, "POST", path, body, "Idempotency-Key", "k")
		a.failed(t, 409, "idempotency_answer_not_kept")
		if a.header.Get("X-Should-Retry") != "false" || !strings.Contains(a.message(), "its client went away") {
			t.Errorf("got %v %s", a.header, a.body)
		}
		if len(f.seen()) != calls+1 {
			t.Errorf("%d calls", len(f.seen())-calls)
		}
	}
}

// TestKeyBroken wants an answer that its worker breaks off not to be kept.
func TestKeyBroken(t *testing.T) {
	f := &fakeMesh{routes: mesh.Route("/v1/embeddings"), noText: true, dispatch: answers(script{
		output: slices.Repeat([]string{strings.Repeat("x", 8000)}, 20), end: mesh.ErrStream,
		response: &mesh.Response{Status: 200, Length: 200_000, Header: http.Header{"Content-Type": {"audio/mpeg"}}},
	})}
	g := serveTasks(t, f, tasks.Options{})
	req, err := http.NewRequest("POST", g.URL+"/v1/embeddings", strings.NewReader(textBody))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", "k")
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("half an answer looks whole")
	}
	resp.Body.Close()
	a := g.do(t, "POST", "/v1/embeddings", textBody, "Idempotency-Key", "k")
	a.failed(t, 409, "idempotency_answer_not_kept")
	if !strings.Contains(a.message(), "its worker broke the answer off") || len(f.seen()) != 1 {
		t.Errorf("got %s after %d calls", a.body, len(f.seen()))
	}
}

// TestKeyHeartbeat wants a stream that had nothing but heartbeats before it failed to be
// served anew.
func TestKeyHeartbeat(t *testing.T) {
	f := new(fakeMesh)
	g := serveTasks(t, f, tasks.Options{}, heartbeat(time.Millisecond))
	body := chatBody[:len(chatBody)-1] + `,"stream":true}`
	for n := range 2 {
		var release func()
		f.dispatch, release = heldTask(script{}, router.ErrBusy)
		req, err := http.NewRequest("POST", g.URL+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "k")
		resp, err := g.Client().Do(req) // with the first heartbeat
		if err != nil {
			t.Fatal(err)
		}
		release()
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), "mesh_overloaded") || len(f.seen()) != n+1 {
			t.Errorf("got %q %v after %d calls", b, err, len(f.seen()))
		}
	}
}

// TestKeyAsync wants one task for one key.
func TestKeyAsync(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dispatch: asking(answers(script{output: []string{"x"}}))}
	g := serveTasks(t, f, tasks.Options{})
	first := g.do(t, "POST", "/api/execute/async", taskBody, "Idempotency-Key", "k")
	f.workers = nil // it is answered all the same
	again := g.do(t, "POST", "/api/execute/async", taskBody, "Idempotency-Key", "k")
	sameAnswer(t, first, again)
	if first.status != 202 || !strings.HasPrefix(again.header.Get("Location"), "/api/tasks/task_") {
		t.Errorf("got %d %v", first.status, again.header)
	}
	if a := g.do(t, "GET", "/api/tasks", ""); strings.Count(a.body, `"task_id"`) != 1 {
		t.Errorf("got %s", a.body)
	}
}

// TestKeyOwner wants a key to be of the one who sent it, and of one route.
func TestKeyOwner(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("ann key-of-ann-0123456789\nbob key-of-bob-0123456789\nread key-of-reader-0123456 scope=read\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fakeMesh{dispatch: answers(script{output: []string{"x"}})}
	g := serveTasks(t, f, tasks.Options{}, func(g *gate, _ *serverSettings) { g.h.APIKeysFile = file })
	ask := func(key, path, body string) answer {
		return g.do(t, "POST", path, body, "Authorization", "Bearer "+key, "Idempotency-Key", "k")
	}
	for _, key := range []string{"key-of-ann-0123456789", "key-of-bob-0123456789"} {
		for path, body := range taskRoutes {
			first := ask(key, path, body)
			sameAnswer(t, first, ask(key, path, body))
		}
	}
	if n := len(f.seen()); n != 2*len(taskRoutes) {
		t.Errorf("%d calls", n)
	}
	ask("key-of-reader-0123456", "/v1/completions", textBody).failed(t, 403, "insufficient_scope")
	ask("key-of-nobody-0123456", "/v1/completions", textBody).failed(t, 401, "invalid_api_key")
}

// TestKeyStoreMissing wants requests with a key to wait for the store, and no others.
func TestKeyStoreMissing(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"x"}})}
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/completions", textBody, "Idempotency-Key", "k")
	a.failed(t, 503, "task_store_unavailable")
	if a.header.Get("Retry-After") == "" || len(f.seen()) != 0 {
		t.Errorf("got %v after %d calls", a.header, len(f.seen()))
	}
	if a := g.do(t, "POST", "/v1/completions", textBody); a.status != 200 {
		t.Errorf("got %d", a.status)
	}
}
