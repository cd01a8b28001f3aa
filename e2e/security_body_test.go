// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// badBody is a body that no route takes.
type badBody struct {
	name, body string
	status     int
	code       string
	headers    []string
}

const (
	invalidBody = "invalid_request_error"
	tooLarge    = "request_too_large"
	bodyLimit   = 1 << 20
)

// gzipBomb returns n zeros, packed.
func gzipBomb(t *testing.T, n int64) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, io.LimitReader(zeros{}, n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// zstdBomb is a frame that says it holds 1 GiB, in blocks that repeat one byte.
func zstdBomb() string {
	const block = "\x02\x00\x10\x00" // RLE, 128 KiB, not the last
	return "\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x40" + strings.Repeat(block, 8191) + "\x03\x00\x10\x00"
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// spaces never end.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// badBodies are bodies of no route, of which handler/body_test.go has more.
func badBodies(t *testing.T, model string) []badBody {
	bad := func(name, body string, headers ...string) badBody {
		return badBody{name, body, 400, invalidBody, headers}
	}
	good := `{"model":"` + model + `","prompt":"x","messages":[{"role":"user","content":"x"}]}`
	deep := func(open, close string) string {
		return `{"a":` + strings.Repeat(open, 100_000) + "1" + strings.Repeat(close, 100_000) + "}"
	}
	return []badBody{
		bad("empty", ""), bad("space", " \r\n\t"), bad("null", "null"), bad("array", "[]"), bad("array of objects", "[{}]"),
		bad("string", `"x"`), bad("number", "1"), bad("true", "true"), bad("false", "false"), bad("bare word", "model"),
		bad("cut off", good[:len(good)-1]), bad("cut off in a string", good[:12]), bad("closed twice", good+"}"),
		bad("second document", good+good), bad("second document on a line", good+"\n"+good), bad("second, an array", good+"[]"),
		bad("trailing word", good+" x"), bad("trailing comma", `{"a":1,}`), bad("trailing NUL", good+"\x00"), bad("leading comma", `{,"a":1}`),
		bad("duplicate key", `{"model":"a","model":"b"}`), bad("duplicate key, escaped", `{"model":"a","\u006dodel":"b"}`),
		bad("duplicate key, deep", `{"a":[{"b":1,"b":2}]}`), bad("byte order mark", "\xef\xbb\xbf"+good), bad("UTF-16", "\xff\xfe{\x00}\x00"),
		bad("UTF-16, no mark", "\x00{\x00}"), bad("UTF-32", "{\x00\x00\x00}\x00\x00\x00"), bad("NUL", "\x00"),
		bad("NUL in a string", "{\"a\":\"\x00\"}"), bad("invalid UTF-8", "{\"a\":\"\xff\"}"), bad("latin-1", "{\"a\":\"\xe9\"}"),
		bad("overlong UTF-8", "{\"a\":\"\xc0\xaf\"}"), bad("surrogate as UTF-8", "{\"a\":\"\xed\xa0\x80\"}"),
		bad("beyond Unicode", "{\"a\":\"\xf4\x90\x80\x80\"}"), bad("invalid UTF-8 in a name", "{\"\xff\":1}"),
		bad("lone high surrogate", `{"a":"\ud800"}`), bad("lone low surrogate", `{"a":"\udc00"}`), bad("surrogates reversed", `{"a":"\udc00\ud800"}`),
		bad("NaN", `{"a":NaN}`), bad("Infinity", `{"a":Infinity}`), bad("-Infinity", `{"a":-Infinity}`), bad("1e999", `{"temperature":1e999}`),
		bad("-1e999", `{"a":-1e999}`), bad("number of 400 digits", `{"a":`+strings.Repeat("9", 400)+"}"), bad("leading zero", `{"a":01}`),
		bad("hex", `{"a":0x1}`), bad("plus", `{"a":+1}`), bad("bare point", `{"a":.5}`), bad("single quotes", `{'a':1}`), bad("no quotes", `{a:1}`),
		bad("comment", `{/**/}`), bad("line comment", "{}//"), bad("control in a string", "{\"a\":\"\x1b\"}"), bad("unknown escape", `{"a":"\x"}`),
		bad("100,000 arrays", deep("[", "]")), bad("100,000 objects", deep(`{"a":`, "}")), bad("100,000 arrays, open", `{"a":`+strings.Repeat("[", 100_000)),
		bad("200,000 values", `{"a":[`+strings.Repeat("0,", 200_000)+`0]}`),
		bad("XML", good, "Content-Type", "application/xml"), bad("HTML", good, "Content-Type", "text/html"),
		bad("multipart", good, "Content-Type", "multipart/form-data; boundary=x"), bad("octets", good, "Content-Type", "application/octet-stream"),
		bad("malformed type", good, "Content-Type", "json"), bad("form", "model=m&prompt=x", "Content-Type", "application/x-www-form-urlencoded"),
		bad("gzip bomb", gzipBomb(t, scaled[int64](50<<20, 1<<30)), "Content-Encoding", "gzip"),
		bad("zstd bomb", zstdBomb(), "Content-Encoding", "zstd"), bad("said to be brotli", good, "Content-Encoding", "br"),
		bad("gzip after identity", good, "Content-Encoding", "identity, gzip"), bad("two codings", good, "Content-Encoding", "gzip, gzip"),
		bad("gzip, not said", gzipBomb(t, 1<<10)),
		{"1 MiB and a byte", good + strings.Repeat(" ", bodyLimit+1-len(good)), 413, tooLarge, nil},
		{"2 MiB of NUL", strings.Repeat("\x00", 2<<20), 413, tooLarge, nil},
	}
}

// B1: hostile bodies are each refused with a status and a code, over HTTP/1.1 and
// HTTP/2, and no agent runs.
func TestB1Bodies(t *testing.T) {
	state := t.TempDir()
	f := startFront(t, "", "agentfm {\n\t\tapi_keys "+testKey+"\n\t\tbody_limit 1MiB\n\t}",
		agent("note", "Note", "note", command(writeScript(t, noteRuns), "STATE", state)))
	f.awaitWorkers(1)
	rows := badBodies(t, "note")
	if len(rows) < 60 {
		t.Errorf("%d rows", len(rows))
	}
	for version := 1; version <= 2; version++ {
		c := newClient(t, version)
		for _, route := range []string{"/v1/chat/completions", "/v1/completions", "/api/execute"} {
			if version == 2 && route != "/v1/chat/completions" && !nightly {
				continue // a route reads its body the same way over both
			}
			for _, row := range rows {
				t.Run(fmt.Sprintf("HTTP %d%s/%s", version, strings.ReplaceAll(route, "/", "."), row.name), func(t *testing.T) {
					wantAsk(t, c, http.MethodPost, "https://"+f.host+route, row.body, append(bearer(testKey), row.headers...)...).
						failed(t, row.status, row.code)
				})
			}
		}
	}
	t.Run("endless", func(t *testing.T) { f.in(t).endlessBodies(t, f.host) })
	if n := runCount(t, state); n != 0 {
		t.Errorf("%d tasks reached an agent", n)
	}
	f.wantCleanLog(t)
	// The gateway is as before.
	if a := wantAsk(t, httpClient, http.MethodPost, f.url+"/v1/completions", `{"model":"note","prompt":"x"}`, bearer(testKey)...); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
}

// heldBody is a body of spaces that stops once, at a point, until it is released.
type heldBody struct {
	point, n      int64
	held, release chan struct{}
}

func (b *heldBody) Read(p []byte) (int, error) {
	if b.n == b.point {
		close(b.held)
		<-b.release
	}
	if b.n < b.point {
		p = p[:min(int64(len(p)), b.point-b.n)]
	}
	b.n += int64(len(p))
	return spaces{}.Read(p)
}

// endlessBodies sends chunked bodies of spaces, which could go on to be JSON. What
// the process holds just before the limit, and after them, must not be much.
func (p *process) endlessBodies(t *testing.T, host string) {
	before := p.liveHeap(t)
	p.resetPeak()
	resident, _ := p.resident()
	size := scaled[int64](50<<20, 1<<30)
	var held int64
	for version := 1; version <= 2; version++ {
		c := newClient(t, version)
		for range scaled(2, 10) {
			body := &heldBody{point: bodyLimit, held: make(chan struct{}), release: make(chan struct{})}
			done := make(chan struct{})
			go func() {
				defer close(done)
				a, err := ask(t.Context(), c, http.MethodPost, "https://"+host+"/v1/completions",
					io.NopCloser(io.LimitReader(body, size)), bearer(testKey)...)
				if err != nil {
					t.Errorf("HTTP %d: %v", version, err)
					return
				}
				a.failed(t, 413, tooLarge)
			}()
			select {
			case <-body.held:
				held = max(held, p.liveHeap(t)-before)
			case <-done:
				t.Error("refused before the limit")
			}
			close(body.release)
			<-done
		}
	}
	after := p.liveHeap(t) - before
	_, highest := p.resident()
	t.Logf("live heap grew by %d KiB with a body at its limit and by %d KiB after all; resident memory by %d KiB at most",
		held>>10, after>>10, (highest-resident)>>10)
	if max(held, after) > 8<<20 {
		t.Errorf("the live heap grew by %d KiB", max(held, after)>>10)
	}
}
