// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

func TestExecute(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"Hel", "lo\n"}, files: true})}
	g := serve(t, f)
	a := g.do(t, "POST", "/api/execute", executeBody)
	if a.status != 200 || a.body != "Hello\n[AGENTFM: FILES_INCOMING]\n" || a.trailer.Get("X-AgentFM-Status") != "ok" {
		t.Errorf("got %d %q, trailer %v", a.status, a.body, a.trailer)
	}
	checkServed(t, g, a, "text/plain; charset=utf-8")
	call := f.seen()[0]
	if call.Target.Peer != peerA || call.Target.Model != "" || call.Prompt != "hi" || !call.EagerNewline || call.Retries != 2 || call.Selector == nil {
		t.Errorf("got %+v", call)
	}
	a = g.do(t, "POST", "/api/execute", `{"worker_id":"`+peerA+`","prompt":"hi","task_id":"my-task.1","feedback":"","feedback_rating":null,"more":1}`)
	if a.status != 200 || f.seen()[1].TaskID != "my-task.1" || a.header.Get("X-AgentFM-Task") != "my-task.1" {
		t.Errorf("got %d %s, %+v", a.status, a.body, f.seen()[1])
	}
	if a := g.do(t, "POST", "/api/execute", `{"worker_id":"`+peerA+`","prompt":"hi","feedback_rating":0}`); a.status != 200 {
		t.Errorf("a rating of 0: got %d %s", a.status, a.body)
	}
}

// A peer id may be written as a CID; the mesh knows one spelling.
func TestExecuteByCID(t *testing.T) {
	id, err := peer.Decode(peerA)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeMesh{dispatch: answers(script{})}
	g := serve(t, f)
	a := g.do(t, "POST", "/api/execute", `{"worker_id":"`+peer.ToCid(id).String()+`","prompt":"hi"}`)
	if a.status != 200 || f.seen()[0].Target.Peer != peerA {
		t.Errorf("got %d %s, %+v", a.status, a.body, f.seen())
	}
}

// The output must come byte for byte, and the closing line on a line of its own.
func TestExecuteIsExact(t *testing.T) {
	more := map[string][]string{
		"not UTF-8": {"\xff\xfe\x00", "\xf0\x9f"},
		"a newline": {"\n"},
	}
	for name, output := range outputs {
		more[name] = output
	}
	f := &fakeMesh{}
	for _, http2 := range []bool{false, true} {
		g := serve(t, f, func(_ *gate, s *serverSettings) { s.http2 = http2 })
		for name, output := range more {
			for _, end := range []struct {
				err    error
				files  bool
				line   string
				status string
			}{
				{nil, false, "[AGENTFM: NO_FILES]\n", "ok"},
				{nil, true, "[AGENTFM: FILES_INCOMING]\n", "ok"},
				{errors.New("broken"), false, "[AGENTFM: ERROR internal_error]\n", "error"},
				{fmt.Errorf("%w: x", wire.ErrAgentFailed), false, "[AGENTFM: ERROR worker_stream_failed]\n", "error"},
				{mesh.ErrStream, false, "[AGENTFM: ERROR worker_stream_failed]\n", "error"},
				{wire.ErrTruncated, false, "[AGENTFM: ERROR worker_stream_failed]\n", "error"},
			} {
				if end.err != nil && output == nil {
					continue // has a status of its own
				}
				f.dispatch = answers(script{output: output, end: end.err, files: end.files})
				want := strings.Join(output, "")
				if !strings.HasSuffix(want, "\n") {
					want += "\n"
				}
				want += end.line
				a := g.do(t, "POST", "/api/execute", executeBody)
				if a.status != 200 || a.body != want || a.trailer.Get("X-AgentFM-Status") != end.status {
					t.Errorf("%s, %v: got %d %.200q, trailer %v", name, end.err, a.status, a.body, a.trailer)
				}
			}
		}
	}
}

func TestExecuteWorkerIsOffline(t *testing.T) {
	g := serve(t, &fakeMesh{dispatch: fails(router.ErrNoMatch)})
	a := g.do(t, "POST", "/api/execute", executeBody)
	a.failed(t, 404, "worker_not_found")
	if !strings.Contains(a.body, `"param":"worker_id"`) {
		t.Errorf("got %s", a.body)
	}
}

func FuzzDecodeExecute(f *testing.F) {
	f.Add([]byte(executeBody))
	f.Add([]byte(`{"worker_id":"` + peerA + `","prompt":"x","task_id":"a.b","feedback":"","feedback_rating":-0.0}`))
	f.Add([]byte(`{"worker_id":"Qm","prompt":"x"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := decodeExecute(body)
		if err != nil {
			if p := problemOf(err); p.status != 400 && p.status != 503 || p.message == "" || p.code == "" {
				t.Errorf("got %+v", p)
			}
			return
		}
		if _, err := peer.Decode(req.WorkerID); err != nil || req.Prompt == "" || req.TaskID != "" && !wire.ValidTaskID(req.TaskID) {
			t.Errorf("got %+v", req)
		}
	})
}
