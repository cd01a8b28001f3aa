// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"io"
	"strings"
	"testing"
)

// bodyRow is one body and what it must be answered with.
type bodyRow struct {
	name   string
	body   string
	status int
	code   string
	header []string
}

const (
	invalidRequest = "invalid_request_error"
	testBodyLimit  = 1 << 20
)

// bodiesOfAnyRoute are refused by every route that reads a body.
func bodiesOfAnyRoute() []bodyRow {
	bad := func(name, body string, header ...string) bodyRow {
		return bodyRow{name, body, 400, invalidRequest, header}
	}
	const jsonType = "application/json"
	return []bodyRow{
		bad("empty", ""),
		bad("only space", " \r\n\t "),
		bad("null", "null"),
		bad("array", "[]"),
		bad("array of objects", "[{}]"),
		bad("string", `"hi"`),
		bad("number", "7"),
		bad("true", "true"),
		bad("cut off", `{"model":"m`),
		bad("cut off in a name", `{"mod`),
		bad("not closed", `{"model":"m"`),
		bad("closed twice", `{}}`),
		bad("second object", `{}{}`),
		bad("second object on a line of its own", "{}\n{}"),
		bad("text after", `{} x`),
		bad("NUL after", "{}\x00"),
		bad("only NUL", "\x00"),
		bad("NUL in a string", "{\"a\":\"\x00\"}"),
		bad("newline in a string", "{\"a\":\"\n\"}"),
		bad("escape in a string", "{\"a\":\"\x1b[31m\"}"),
		bad("unknown escape", `{"a":"\x41"}`),
		bad("duplicate name", `{"model":"a","model":"b"}`),
		bad("duplicate name, written otherwise", `{"model":"a","mode\u006c":"b"}`),
		bad("duplicate name, deep", `{"x":{"y":[{"z":1,"z":2}]}}`),
		bad("byte order mark", "\xef\xbb\xbf{}"),
		bad("UTF-16", "\xff\xfe{\x00}\x00"),
		bad("UTF-16 without a mark", "{\x00}\x00"),
		bad("latin 1", "{\"a\":\"\xe9\"}"),
		bad("overlong UTF-8", "{\"a\":\"\xc0\x80\"}"),
		bad("surrogate as UTF-8", "{\"a\":\"\xed\xa0\x80\"}"),
		bad("invalid UTF-8 in a name", "{\"\xff\":1}"),
		bad("lone high surrogate", `{"a":"\ud800"}`),
		bad("lone low surrogate", `{"a":"\udfff"}`),
		bad("high surrogate before another", `{"a":"\ud800\ud800"}`),
		bad("NaN", `{"a":NaN}`),
		bad("Infinity", `{"a":Infinity}`),
		bad("minus Infinity", `{"a":-Infinity}`),
		bad("1e999", `{"temperature":1e999}`),
		bad("-1e999", `{"a":[{"b":-1e999}]}`),
		bad("leading zero", `{"a":007}`),
		bad("hex", `{"a":0xff}`),
		bad("plus", `{"a":+1}`),
		bad("bare point", `{"a":.5}`),
		bad("undefined", `{"a":undefined}`),
		bad("True", `{"a":True}`),
		bad("trailing comma", `{"a":1,}`),
		bad("missing colon", `{"a" 1}`),
		bad("single quotes", `{'a':1}`),
		bad("no quotes", `{a:1}`),
		bad("comment", `{/*x*/}`),
		bad("100,000 arrays", `{"a":`+strings.Repeat("[", 100_000)),
		bad("100,000 arrays, closed", `{"a":`+strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)+"}"),
		bad("100,000 objects", strings.Repeat(`{"a":`, 100_000)+"1"+strings.Repeat("}", 100_000)),
		bad("form", "model=m&prompt=hi", "Content-Type", "application/x-www-form-urlencoded"),
		bad("YAML", "model: m\n"),
		bad("type XML", chatBody, "Content-Type", "application/xml"),
		bad("type HTML", chatBody, "Content-Type", "text/html"),
		bad("type multipart", chatBody, "Content-Type", "multipart/form-data; boundary=x"),
		bad("type octets", chatBody, "Content-Type", "application/octet-stream"),
		bad("type malformed", chatBody, "Content-Type", "json"),
		bad("type of many JSON", chatBody, "Content-Type", "application/json-seq"),
		bad("gzip", "\x1f\x8b\x08\x00", "Content-Type", jsonType, "Content-Encoding", "gzip"),
		bad("zstd", "\x28\xb5\x2f\xfd", "Content-Type", jsonType, "Content-Encoding", "zstd"),
		bad("deflate that is none", chatBody, "Content-Type", jsonType, "Content-Encoding", "deflate"),
		bad("two codings", chatBody, "Content-Encoding", "identity", "Content-Encoding", "br"),
		{"over the limit", strings.Repeat(" ", testBodyLimit+1), 413, "request_too_large", nil},
		{"far over the limit, a bomb", strings.Repeat("\x00", 8<<20), 413, "request_too_large", nil},
	}
}

// bodiesOf are what each route refuses beyond that.
var bodiesOf = map[string][]bodyRow{
	"/v1/chat/completions": {
		{"nothing in it", `{}`, 400, "model_required", nil},
		{"no model", `{"messages":[{"role":"user","content":"x"}]}`, 400, "model_required", nil},
		{"model empty", `{"model":"","messages":[{"role":"user","content":"x"}]}`, 400, "model_required", nil},
		{"model a number", `{"model":1,"messages":[{"role":"user","content":"x"}]}`, 400, invalidRequest, nil},
		{"no messages", `{"model":"m"}`, 400, "prompt_required", nil},
		{"messages empty", `{"model":"m","messages":[]}`, 400, "prompt_required", nil},
		{"messages a string", `{"model":"m","messages":"x"}`, 400, invalidRequest, nil},
		{"role a number", `{"model":"m","messages":[{"role":1,"content":"x"}]}`, 400, invalidRequest, nil},
		{"no content", `{"model":"m","messages":[{"role":"user"}]}`, 400, invalidRequest, nil},
		{"an image", `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`, 400, "unsupported_prompt_type", nil},
		{"stream a string", `{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"yes"}`, 400, invalidRequest, nil},
		{"NUL in the prompt", `{"model":"m","messages":[{"role":"user","content":"a\u0000b"}]}`, 400, invalidRequest, nil},
	},
	"/v1/completions": {
		{"nothing in it", `{}`, 400, "model_required", nil},
		{"no prompt", `{"model":"m"}`, 400, "prompt_required", nil},
		{"prompt empty", `{"model":"m","prompt":""}`, 400, "prompt_required", nil},
		{"prompts", `{"model":"m","prompt":["a","b"]}`, 400, "unsupported_prompt_type", nil},
		{"tokens", `{"model":"m","prompt":[1,2]}`, 400, "unsupported_prompt_type", nil},
		{"prompt a number", `{"model":"m","prompt":1}`, 400, "unsupported_prompt_type", nil},
		{"NUL in the prompt", `{"model":"m","prompt":"\u0000"}`, 400, invalidRequest, nil},
	},
	"/api/execute": {
		{"nothing in it", `{}`, 400, invalidRequest, nil},
		{"no worker", `{"prompt":"x"}`, 400, invalidRequest, nil},
		{"worker of no peer", `{"worker_id":"nobody","prompt":"x"}`, 400, invalidRequest, nil},
		{"worker of a path", `{"worker_id":"../../etc","prompt":"x"}`, 400, invalidRequest, nil},
		{"worker of 100 kB", `{"worker_id":"z` + strings.Repeat("z", 100_000) + `","prompt":"x"}`, 400, invalidRequest, nil},
		{"worker a number", `{"worker_id":1,"prompt":"x"}`, 400, invalidRequest, nil},
		{"no worker comes before no prompt", `{"worker_id":"nobody"}`, 400, invalidRequest, nil},
		{"no prompt", `{"worker_id":"` + peerA + `"}`, 400, "prompt_required", nil},
		{"no prompt comes before a bad task", `{"worker_id":"` + peerA + `","task_id":"-"}`, 400, "prompt_required", nil},
		{"prompt a list", `{"worker_id":"` + peerA + `","prompt":["x"]}`, 400, invalidRequest, nil},
		{"task of a path", `{"worker_id":"` + peerA + `","prompt":"x","task_id":"../x"}`, 400, invalidRequest, nil},
		{"task of 129 characters", `{"worker_id":"` + peerA + `","prompt":"x","task_id":"` + strings.Repeat("a", 129) + `"}`, 400, invalidRequest, nil},
		{"task with a space", `{"worker_id":"` + peerA + `","prompt":"x","task_id":"a b"}`, 400, invalidRequest, nil},
		{"rating out of range", `{"worker_id":"` + peerA + `","prompt":"x","feedback_rating":1.01}`, 400, invalidRequest, nil},
		{"rating 1e999", `{"worker_id":"` + peerA + `","prompt":"x","feedback_rating":1e999}`, 400, invalidRequest, nil},
		{"rating a string", `{"worker_id":"` + peerA + `","prompt":"x","feedback_rating":"1"}`, 400, invalidRequest, nil},
		{"feedback", `{"worker_id":"` + peerA + `","prompt":"x","feedback":"good"}`, 503, "ledger_unavailable", nil},
		{"rating", `{"worker_id":"` + peerA + `","prompt":"x","feedback_rating":-0.5}`, 503, "ledger_unavailable", nil},
		{"NUL in the prompt", `{"worker_id":"` + peerA + `","prompt":"a\u0000"}`, 400, invalidRequest, nil},
	},
}

// limitBody sets the largest body.
func limitBody(n int64) setting { return func(g *gate, _ *serverSettings) { g.h.BodyLimit = n } }

func TestBodiesThatAreRefused(t *testing.T) {
	f := &fakeMesh{}
	g := serve(t, f, limitBody(testBodyLimit))
	rows := 0
	for route := range taskRoutes {
		for _, r := range append(bodiesOfAnyRoute(), bodiesOf[route]...) {
			rows++
			t.Run(strings.ReplaceAll(route[1:], "/", ".")+"/"+r.name, func(t *testing.T) {
				g.do(t, "POST", route, r.body, r.header...).failed(t, r.status, r.code)
			})
		}
	}
	if rows < 60 || len(f.seen()) != 0 {
		t.Errorf("%d rows, %d tasks", rows, len(f.seen()))
	}
}

func TestBodiesThatAreTaken(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"ok"}})}
	g := serve(t, f, limitBody(testBodyLimit))
	for route, body := range taskRoutes {
		for _, headers := range [][]string{
			nil,
			{"Content-Type", "application/json"},
			{"Content-Type", "Application/JSON; charset=utf-8"},
			{"Content-Type", "application/json;"},
			{"Content-Type", "application/vnd.agentfm+json"},
			{"Content-Type", "text/plain;charset=UTF-8"},
			{"Content-Type", "application/x-www-form-urlencoded"},
			{"Content-Encoding", "identity"},
		} {
			if a := g.do(t, "POST", route, body, headers...); a.status != 200 {
				t.Errorf("%s with %q: got %d %s", route, headers, a.status, a.body)
			}
		}
		padded := body + strings.Repeat("\n", testBodyLimit-len(body))
		if a := g.do(t, "POST", route, padded); a.status != 200 {
			t.Errorf("%s with a body of exactly the limit: got %d %s", route, a.status, a.body)
		}
		if a := g.send(t, "POST", route, io.MultiReader(strings.NewReader(padded))); a.status != 200 {
			t.Errorf("%s with a chunked body of exactly the limit: got %d %s", route, a.status, a.body)
		}
	}
}

// A body without an end must not be read on, nor what is left of it taken for a
// request.
func TestEndlessBody(t *testing.T) {
	g := serve(t, &fakeMesh{}, limitBody(testBodyLimit))
	for route := range taskRoutes {
		body := &zeros{}
		a := g.send(t, "POST", route, io.LimitReader(body, 1<<30))
		a.failed(t, 413, "request_too_large")
		if n := body.read.Load(); n > 64<<20 {
			t.Errorf("%s: %d bytes were taken", route, n)
		}
	}
}
