// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sayFile is an agent that answers with the file which its prompt names; with a
// suffix, slowly: a byte each $PAUSE seconds, so that pieces end anywhere.
const sayFile = `read -r file
case $file in
*.slow) n=0; size=$(wc -c <"$file")
	while [ $n -lt $size ]; do dd bs=1 count=1 skip=$n if="$file" 2>/dev/null; n=$((n + 1)); sleep $PAUSE; done ;;
*) exec cat "$file" ;;
esac
`

// answersOf returns what agents may say.
func answersOf() map[string]string {
	random := make([]byte, 256<<10)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(random) // never fails
	markers := "[AGENTFM: NO_FILES]\n\n[AGENTFM: FILES_INCOMING]\n[AGENTFM: ERROR x]\n[AGENTFM:\n❌ ERROR: Worker is at max capacity (1/1). Try another worker.\nmore"
	return map[string]string{
		"long":        strings.Repeat("0123456789abcdef", scaled(3<<20, 64<<20)/16),
		"crlf":        "a\r\nb\r\rc\n\r\n\r",
		"newlines":    "\n\n\n\na\n\n\n\n",
		"binary":      string(random),
		"nul":         "\x00a\x00\x00",
		"invalid":     "ok \xff\xfe\xe2\x82 \xf0\x9f\x98 \xed\xa0\x80 \xc0\xaf end \xe2",
		"split.slow":  "é€😀\xe2\x82é\xf0\x9f\x98",
		"markers":     markers,
		"marker":      "[AGENTFM: NO_FILES]",
		"marker last": "text\n[AGENTFM: NO_FILES]\n",
		"event":       "data: [DONE]\n\ndata: {\"choices\":[]}\n\n[DONE]\nevent: error\nid: 1\nretry: 1\n: ping\n\n",
		"separators":  "a\u2028b\u2029c\u0085d\ve\ff",
		"escapes":     "\x1b]52;c;eA==\a \\u0000 \\\" </script> \u202e \ufeff",
	}
}

// B3: what an agent says reaches the client to the byte, over HTTP/1.1 and
// HTTP/2; as events and as a whole, what is not UTF-8 is replaced byte by byte.
// OpenAI's own clients read the same.
func TestB3Answers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := startFront(t, "", withKey,
		agent("say", "Say", "say", command(writeScript(t, sayFile), "PAUSE", scaled("0.05", "1"))))
	f.awaitWorkers(1)
	worker := f.workerID("Say")
	said := answersOf()
	for name, content := range said {
		writeFile(t, dir, name, content)
	}
	for version := 1; version <= 2; version++ {
		c := newClient(t, version)
		for name, content := range said {
			t.Run(fmt.Sprintf("HTTP %d/%s", version, name), func(t *testing.T) {
				t.Parallel()
				prompt := filepath.Join(dir, name) + "\n"
				ask := func(t *testing.T, route string, request map[string]any) received {
					body, err := json.Marshal(request)
					if err != nil {
						t.Fatal(err)
					}
					a := wantAsk(t, c, http.MethodPost, "https://"+f.host+route, string(body), bearer(testKey)...)
					if a.status != 200 {
						t.Fatalf("%s: %d %.300q", route, a.status, a.body)
					}
					return a
				}
				repaired := string([]rune(content))
				wantText(t, "execute", ask(t, "/api/execute", map[string]any{"worker_id": worker, "prompt": prompt}).body, content+noFiles)
				wantText(t, "events", eventText(t, ask(t, "/v1/completions", map[string]any{"model": "say", "prompt": prompt, "stream": true}).body), repaired)
				if len(content) <= 16<<20 {
					var whole struct{ Choices []struct{ Text string } }
					a := ask(t, "/v1/completions", map[string]any{"model": "say", "prompt": prompt})
					if err := json.Unmarshal([]byte(a.body), &whole); err != nil || len(whole.Choices) != 1 {
						t.Fatalf("%.300q (%v)", a.body, err)
					}
					wantText(t, "whole", whole.Choices[0].Text, repaired)
				}
			})
		}
	}
	for variable, script := range map[string]string{"AGENTFM_TEST_PYTHON": "python/answers.py", "AGENTFM_TEST_NODE": "node/answers.mjs"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			readAnswers(t, f, need(t, variable), script, dir, said)
		})
	}
}

// readAnswers has a client read every answer, and compares what it got.
func readAnswers(t *testing.T, f *front, interpreter, script, dir string, said map[string]string) {
	var names []string
	for name := range said {
		names = append(names, filepath.Join(dir, name))
	}
	cmd := exec.CommandContext(t.Context(), interpreter, append([]string{script}, names...)...)
	cmd.Env = append(os.Environ(), "GATEWAY_URL="+f.url, "GATEWAY_KEY="+testKey)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		hash, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		got[filepath.Base(path)] = hash
	}
	for name, content := range said {
		if want := fmt.Sprintf("%x", sha256.Sum256([]byte(string([]rune(content))))); got[name] != want {
			t.Errorf("%s: got %s, want %s", name, got[name], want)
		}
	}
}

// wantText compares texts that may be long.
func wantText(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	t.Errorf("%s: %d bytes, want %d; from byte %d on %.80q, want %.80q", what, len(got), len(want), n, got[n:], want[n:])
}

// eventText reads the events of a completion by the rules of their format, and
// wants them whole.
func eventText(t *testing.T, body string) string {
	t.Helper()
	var text strings.Builder
	done := false
	for line := range strings.SplitSeq(body, "\n") {
		data, isData := strings.CutPrefix(line, "data: ")
		switch {
		case line == "" || line[0] == ':':
		case !isData || done || strings.ContainsRune(line, '\r'):
			t.Fatalf("line %.200q (after the end: %t)", line, done)
		case data == "[DONE]":
			done = true
		default:
			var chunk struct {
				Choices []struct{ Text string }
				Error   json.RawMessage
			}
			if err := json.Unmarshal([]byte(data), &chunk); err != nil || chunk.Error != nil {
				t.Fatalf("event %.200q: %v", data, err)
			}
			for _, c := range chunk.Choices {
				text.WriteString(c.Text)
			}
		}
	}
	if !done {
		t.Error("no [DONE]")
	}
	return text.String()
}

// B3: an answer that is not streamed and is over what the gateway holds is an
// error; never cut.
func TestB3WholeAnswerTooLarge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := startFront(t, "", withKey, agent("say", "Say", "say", command(writeScript(t, sayFile))))
	f.awaitWorkers(1)
	file, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := io.Copy(file, io.LimitReader(spaces{}, 17<<20)); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"model": "say", "prompt": file.Name() + "\n"})
	if err != nil {
		t.Fatal(err)
	}
	a := wantAsk(t, httpClient, http.MethodPost, f.url+"/v1/completions", string(bytes.TrimSpace(body)), bearer(testKey)...)
	a.failed(t, 502, "worker_stream_failed")
	if a.header.Get("X-Should-Retry") != "false" {
		t.Error("the agent would run again")
	}
}
