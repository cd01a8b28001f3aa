// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// page is what a browser runs, under the name of an application or of a stranger. It
// sends what came of it back to where it is from.
const page = `<!doctype html><script type="module">
const [gateway, key] = [%q, %q];
const chat = (stream, headers = {}) => fetch(gateway + '/v1/chat/completions', {
	method: 'POST',
	headers: {'Content-Type': 'application/json', Authorization: 'Bearer ' + key, 'X-AgentFM-Session': 's', ...headers},
	body: JSON.stringify({model: 'echo', stream, messages: [{role: 'user', content: 'hello'}]}),
});
const said = async f => { try { return await f() } catch (e) { return String(e) } };
await fetch('/result', {method: 'POST', body: JSON.stringify({
	answer: await said(async () => (await (await chat(false)).json()).choices[0].message.content),
	stream: await said(async () => {
		const r = await chat(true), pieces = [];
		for await (const p of r.body.pipeThrough(new TextDecoderStream())) pieces.push(p);
		return pieces.join('').endsWith('data: [DONE]\n\n') ? r.headers.get('x-agentfm-agent') : pieces.join('');
	}),
	refused: await said(async () => {
		const r = await chat(false, {Authorization: 'Bearer wrong'});
		return r.status + ' ' + (await r.json()).error.code + ' ' + !!r.headers.get('x-request-id');
	}),
	events: await said(async () => {
		const r = await fetch(gateway + '/v1/events', {headers: {Authorization: 'Bearer ' + key, 'Last-Event-ID': '0'}});
		const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
		let text = '';
		while (!text.includes('worker_online')) text += (await reader.read()).value;
		await reader.cancel();
		return 'worker_online';
	}),
	models: await said(async () => (await (await fetch(gateway + '/v1/models', {headers: {Authorization: 'Bearer ' + key}})).json()).object),
})});
</script>`

// A page of an origin that the configuration names is served in a real browser;
// any other learns nothing, and has nothing done.
func TestBrowser(t *testing.T) {
	chromium := need(t, "AGENTFM_TEST_CHROMIUM")
	results := make(chan map[string]string, 1)
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/result" {
			fmt.Fprintf(w, page, "http://gateway.example:"+r.URL.Query().Get("gateway"), testKey)
			return
		}
		var result map[string]string
		if err := json.NewDecoder(r.Body).Decode(&result); err != nil {
			t.Error(err)
		}
		results <- result
	}))
	defer pages.Close()
	_, pagePort, err := net.SplitHostPort(pages.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	p := start(t, home(t), caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t\tallow_origins http://app.example:"+pagePort+"\n\t}",
		agent("echo", "Echo", "echo", command(writeScript(t, "echo run >>\"$STATE/runs\"\ncat\n"), "STATE", state))))
	p.awaitWorkers(1)
	gatewayPort := p.url[strings.LastIndexByte(p.url, ':')+1:]

	const text = "user: hello\n\nassistant:"
	for origin, want := range map[string]map[string]string{
		"app.example": {"answer": text, "stream": "Echo", "refused": "401 invalid_api_key true", "events": "worker_online", "models": "list"},
		"evil.example": {"answer": "TypeError: Failed to fetch", "stream": "TypeError: Failed to fetch", "refused": "TypeError: Failed to fetch",
			"events": "TypeError: Failed to fetch", "models": "TypeError: Failed to fetch"},
	} {
		profile, err := os.MkdirTemp("", "agentfm-browser") // its last process may still write
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(profile)
		browser := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
			"--user-data-dir="+profile, "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND",
			"--remote-debugging-port=0", "http://"+origin+":"+pagePort+"/?gateway="+gatewayPort)
		browser.Env = append(os.Environ(), "TMPDIR="+profile)     // it is killed, and removes nothing
		browser.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with all of its processes
		log := &logBuffer{}
		browser.Stderr = log
		if err := browser.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-results:
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("a page of %s got %q, want %q", origin, got, want)
			}
		case <-time.After(patience):
			t.Errorf("a page of %s: no result\n%s", origin, log)
		}
		_ = syscall.Kill(-browser.Process.Pid, syscall.SIGKILL)
		_ = browser.Wait() // it was killed
	}
	if n := len(runsOf(t, state, "runs")); n != 2 {
		t.Errorf("%d tasks, want 2", n)
	}
}
