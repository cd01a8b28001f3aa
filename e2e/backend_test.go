// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// backendModel is the name of the model of the OpenAI-compatible server.
const backendModel = "nonsense"

// backend is the OpenAI-compatible server of the tests, of another project:
// llama.cpp's, with a model of random weights. At temperature 0 an answer comes
// twice in the same bytes, as long as the server does one thing at a time: tests
// with it are not parallel.
type backend struct {
	cmd   *exec.Cmd
	stdin io.Closer
	log   logBuffer
	url   string // without "/v1"
}

// startBackend starts the server, once for all tests. TestMain ends it.
func startBackend(t *testing.T) *backend {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	need(t, "AGENTFM_TEST_BACKEND")
	b, err := newBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the OpenAI-compatible server:\n%s", &b.log)
		}
	})
	return b
}

// theBackend is the server that runs.
var theBackend *backend

var newBackend = sync.OnceValues(func() (*backend, error) {
	b := &backend{cmd: exec.Command(os.Getenv("AGENTFM_TEST_BACKEND"), "backend/serve.py", os.Getenv("AGENTFM_TEST_BACKEND_MODEL"))}
	stdin, err := b.cmd.StdinPipe() // at its end, which comes with ours, the server ends
	if err != nil {
		return nil, err
	}
	stdout, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b.stdin, b.cmd.Stderr = stdin, &b.log
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	address := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n') // empty when it ended
		address <- strings.TrimSpace(line)
	}()
	select {
	case b.url = <-address:
	case <-time.After(patience):
	}
	if b.url == "" {
		b.stop()
		return nil, fmt.Errorf("the OpenAI-compatible server tells no address: %v\n%s", b.cmd.ProcessState, &b.log)
	}
	theBackend = b
	return b, nil
})

func (b *backend) stop() {
	b.stdin.Close()
	_ = b.cmd.Process.Kill() // it fails only when the process has ended
	_ = b.cmd.Wait()         // how it ended is in b.cmd.ProcessState
}

func stopBackend() {
	if theBackend != nil {
		theBackend.stop()
	}
}

// backendAgent is the block of an agent that has the server answer.
func backendAgent(b *backend) string {
	return "\t\tagent llm {\n\t\t\tmax_tasks 4\n\t\t\tmax_cpu off\n\t\t\truntime openai {\n\t\t\t\tbase_url " + b.url + "/v1\n\t\t\t}\n\t\t}\n"
}

// startBackendGateway starts a gateway with a worker whose agent has the server
// answer.
func startBackendGateway(t *testing.T, b *backend) *process {
	t.Helper()
	p := start(t, home(t), caddyfile(localMesh, withKey, backendAgent(b)))
	p.awaitWorkers(1)
	p.await("model "+backendModel, func() bool {
		resp, err := p.send(t.Context(), http.MethodGet, "/v1/models/"+backendModel, nil)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// What the other tests take for granted: the server itself answers the same twice.
func TestBackendAlone(t *testing.T) {
	b := startBackend(t)
	compareAnswers(t, b.url, b.url)
}

// What the server answers comes through the gateway in the same bytes.
func TestBackendRaw(t *testing.T) {
	b := startBackend(t)
	compareAnswers(t, b.url, startBackendGateway(t, b).url)
}

// Every client sees through the gateway what it sees of the server.
func TestBackendClients(t *testing.T) {
	b := startBackend(t)
	runBackendClients(t, b.url, startBackendGateway(t, b).url)
}

const (
	backendTools = `"tools":[
		{"type":"function","function":{"name":"weather","description":"The weather of some days","parameters":{"type":"object","properties":{
			"city":{"enum":["Rome","Oslo"]},"days":{"type":"integer","minimum":1,"maximum":9},"note":{"type":"string","maxLength":12}},
			"required":["city","days","note"],"additionalProperties":false}}},
		{"type":"function","function":{"name":"time","parameters":{"type":"object","properties":{"zone":{"enum":["UTC","CET"]}},
			"required":["zone"],"additionalProperties":false}}}]`
	backendFormat = `"response_format":{"type":"json_schema","json_schema":{"name":"report","strict":true,"schema":{"type":"object","properties":{
		"colour":{"enum":["red","green"]},"count":{"type":"integer","minimum":0,"maximum":99},"fine":{"type":"boolean"},
		"note":{"type":"string","maxLength":12}},"required":["colour","count","fine","note"],"additionalProperties":false}}}`
	backendResult = `"messages":[{"role":"user","content":"Weather?"},
		{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Rome\"}"}}]},
		{"role":"tool","tool_call_id":"call_1","content":"Sun, 25 °C"}]`
)

// backendRequests are requests, each a path and the fields of its body beside
// the model, with the status of the answer. Those of chats have a streamed twin.
var backendRequests = []struct {
	name, path, fields string
	status             int
}{
	{"chat", "chat/completions", `"messages":[{"role":"user","content":"Tell me a story."}]`, 200},
	{"system", "chat/completions", `"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"Über 100 % of \\n it!"}]}]`, 200},
	{"max_tokens", "chat/completions", `"messages":[{"role":"user","content":"Tell me a story."}],"max_tokens":5`, 200},
	{"stop", "chat/completions", `"messages":[{"role":"user","content":"Tell me a story."}],"stop":["e"]`, 200},
	{"choices", "chat/completions", `"messages":[{"role":"user","content":"Hi"}],"n":2`, 200},
	{"logprobs", "chat/completions", `"messages":[{"role":"user","content":"Hi"}],"logprobs":true,"top_logprobs":3`, 200},
	{"unknown field", "chat/completions", `"messages":[{"role":"user","content":"Hi"}],"x_unknown":{"a":[1,2.50,"\u00e9"]},"metadata":{"a":"b"},"user":"me"`, 200},
	{"one tool", "chat/completions", `"messages":[{"role":"user","content":"Why?"}],"tool_choice":"required","parallel_tool_calls":false,` + backendTools, 200},
	{"many tools", "chat/completions", `"messages":[{"role":"user","content":"Why?"}],"tool_choice":"required",` + backendTools, 200},
	// Where its end is no token that it may say, the model calls a tool.
	{"tool by itself", "chat/completions", `"messages":[{"role":"user","content":"Why?"}],"logit_bias":{"2":-100},` + backendTools, 200},
	{"no tool", "chat/completions", `"messages":[{"role":"user","content":"Why?"}],` + backendTools, 200},
	{"result of a tool", "chat/completions", backendResult + "," + backendTools, 200},
	{"JSON schema", "chat/completions", `"messages":[{"role":"user","content":"Report."}],` + backendFormat, 200},
	{"unknown format", "chat/completions", `"messages":[{"role":"user","content":"Hi"}],"response_format":{"type":"xml"}`, 400},
	{"unknown tool choice", "chat/completions", `"messages":[{"role":"user","content":"Hi"}],"tool_choice":"often",` + backendTools, 400},
	{"wrong type", "chat/completions", `"messages":[{"role":"user","content":"Hi"}],"max_tokens":"many"`, 400},
	{"completion", "completions", `"prompt":"Once upon a time"`, 200},
	{"completions", "completions", `"prompt":["Once upon","a time"],"max_tokens":8`, 200},
	{"completion logprobs", "completions", `"prompt":"Once","logprobs":2,"max_tokens":8`, 200},
	{"embedding", "embeddings", `"input":"one two"`, 200},
	{"embeddings", "embeddings", `"input":["one","two three"],"encoding_format":"base64"`, 200},
	{"tokens", "embeddings", `"input":[[300,301],[302]],"encoding_format":"float"`, 200},
	{"unknown encoding", "embeddings", `"input":"one","encoding_format":"hex"`, 400},
	{"response", "responses", `"input":"Tell me a story."`, 200},
	{"response items", "responses", `"instructions":"Be brief.","input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}],"max_output_tokens":8`, 200},
	{"response tools", "responses", `"input":"Why?","tool_choice":"required","parallel_tool_calls":false,"tools":[{"type":"function","name":"weather",
		"parameters":{"type":"object","properties":{"city":{"enum":["Rome","Oslo"]}},"required":["city"],"additionalProperties":false}}]`, 200},
	{"response of nothing", "responses", `"input":7`, 400},
}

// compareAnswers wants the same answers of two servers.
func compareAnswers(t *testing.T, direct, gateway string) {
	for _, r := range backendRequests {
		for _, stream := range []string{"", `,"stream":true`, `,"stream":true,"stream_options":{"include_usage":true}`} {
			name := r.name
			switch {
			case stream != "" && r.path == "embeddings", strings.Contains(stream, "usage") && r.path == "responses":
				continue // there is no such thing
			case strings.Contains(stream, "usage"):
				name += ", streamed with usage"
			case stream != "":
				name += ", streamed"
			}
			t.Run(name, func(t *testing.T) {
				body := fmt.Sprintf(`{"model":%q,"temperature":0,"seed":1,%s%s}`, backendModel, r.fields, stream)
				want, got := askBackend(t, direct, r.path, body), askBackend(t, gateway, r.path, body)
				if want.status != r.status {
					t.Fatalf("the server itself answers %d: %s", want.status, want.body)
				}
				if got.status != want.status || got.mediaType != want.mediaType {
					t.Errorf("got %d %s, want %d %s", got.status, got.mediaType, want.status, want.mediaType)
				}
				if !bytes.Equal(got.body, want.body) {
					t.Errorf("got\n%s\nwant\n%s", got.body, want.body)
				}
				if streamed := want.mediaType == eventStream; streamed != (stream != "" && r.status == 200) {
					t.Errorf("the server itself answers with %s", want.mediaType)
				}
			})
		}
	}
}

const eventStream = "text/event-stream"

type backendAnswer struct {
	status    int
	mediaType string // without a charset, which a gateway may name
	body      []byte
}

// passing is what differs between two answers of the server to one request: ids,
// dates and how long it took.
var passing = regexp.MustCompile(
	`"(?:id|item_id|call_id)":"[^"]*"|"(?:created|created_at|completed_at)":\d+|"timings":\{[^{}]*\}`)

// askBackend sends a request and returns its answer, without what is passing. Of a
// stream it leaves out comments and empty lines, which a gateway may send at
// will.
func askBackend(t *testing.T, server, path, body string) backendAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	req.Header.Set("Content-Type", "application/json")
	req.Close = true // llama.cpp's server closes a connection after a stream, and does not say so
	resp, err := httpClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := backendAnswer{status: resp.StatusCode, body: got}
	if a.mediaType, _, err = mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil {
		t.Fatal(err)
	}
	if a.mediaType == eventStream {
		a.body = nil
		for line := range bytes.Lines(got) {
			if len(line) > 1 && line[0] != ':' {
				a.body = append(a.body, line...)
			}
		}
	}
	a.body = passing.ReplaceAllFunc(a.body, func(field []byte) []byte {
		name, _, _ := bytes.Cut(field, []byte(":"))
		return append(slices.Clone(name), ":…"...)
	})
	return a
}

// backendCases are the cases of the clients.
var backendCases = []string{"models", "chat", "stream", "usage", "tools", "tools_streamed", "tool_result", "json_schema",
	"json_schema_streamed", "embeddings", "completions", "completions_streamed", "responses", "responses_streamed", "errors"}

// backendClients are programs that compare the answers of two servers, and what
// they have no case for.
var backendClients = []struct {
	name     string
	variable string
	file     string
	lacks    []string
}{
	{"openai-python", "AGENTFM_TEST_PYTHON", "python/backend_openai_client.py", nil},
	{"langchain", "AGENTFM_TEST_PYTHON", "python/backend_langchain_client.py", []string{"models"}},
	{"openai-node", "AGENTFM_TEST_NODE", "node/backend_openai_client.mjs", nil},
	{"ai-sdk", "AGENTFM_TEST_NODE", "node/backend_ai_sdk_client.mjs", []string{"models", "responses", "responses_streamed"}},
	{"openai-go", "AGENTFM_TEST_OPENAI_GO", "openai-go-backend", nil},
}

// runBackendClients has every client compare the answers of two servers.
func runBackendClients(t *testing.T, direct, gateway string) {
	for _, c := range backendClients {
		t.Run(c.name, func(t *testing.T) {
			args := []string{need(t, c.variable), c.file}
			if c.variable == "AGENTFM_TEST_OPENAI_GO" {
				args = []string{filepath.Join(args[0], c.file)}
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, args[0], append(args[1:], testKey, direct+"/v1", backendModel, gateway+"/v1", backendModel)...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			for _, name := range backendCases {
				if !slices.Contains(c.lacks, name) && !strings.Contains(string(out), "== ok "+name+"\n") {
					t.Errorf("case %s is not well", name)
				}
			}
		})
	}
}
