// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// ask returns the JSON of a route's answer, and the status of its error.
func askAdmin(t *testing.T, l *Lease, route, contentType, body string) (string, int) {
	t.Helper()
	r := httptest.NewRequest(adminRoutes[route].method, adminPrefix+route, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	answer, err := adminRoutes[route].serve(l, r)
	if api, ok := errors.AsType[caddy.APIError](err); ok {
		return api.Err.Error(), api.HTTPStatus
	}
	b, encErr := json.Marshal(answer)
	if err != nil || encErr != nil {
		t.Fatal(err, encErr)
	}
	return string(b), http.StatusOK
}

func TestAdminAnswers(t *testing.T) {
	a := newTestApp(t, nil)
	l := lease(t, a)
	if got, _ := askAdmin(t, l, "workers", "", ""); got != "[]" {
		t.Errorf("no workers: %s", got)
	}
	if got, _ := askAdmin(t, l, "peers", "", ""); got != "[]" {
		t.Errorf("no peers: %s", got)
	}
	w := newWorker(t, a, say("ok"+noFiles))
	ask := func(route string, v any) {
		t.Helper()
		got, _ := askAdmin(t, l, route, "", "")
		if err := json.Unmarshal([]byte(got), v); err != nil {
			t.Fatalf("%s: %v", got, err)
		}
	}
	var workers []map[string]any
	ask("workers", &workers)
	if len(workers) != 1 || workers[0]["peer_id"] != w.PeerID || workers[0]["online"] != true || workers[0]["model"] != "m" || workers[0]["Online"] != nil {
		t.Errorf("got %v", workers)
	}
	for trust, want := range map[Trust][2]bool{Trusted: {true, false}, OnProbation: {true, true}, Barred: {false, false}} {
		a.node.Load().directory.trusts(func(string) Trust { return trust })
		ask("workers", &workers)
		if got := [2]any{workers[0]["dispatch_allowed"], workers[0]["on_probation"]}; got != [2]any{want[0], want[1]} {
			t.Errorf("trust %d: allowed and on probation: %v", trust, got)
		}
	}
	var peers []PeerInfo
	ask("peers", &peers)
	if len(peers) != 1 || peers[0].ID != w.PeerID || len(peers[0].Connections) != 1 || peers[0].Connections[0].Direction != "inbound" || peers[0].Bootstrap {
		t.Errorf("got %+v", peers)
	}
	if peers[0].AgentVersion != "caddy-agentfm" { // the peer has been identified: it is in the topic
		t.Errorf("agent version %q", peers[0].AgentVersion)
	}
	var about map[string]any
	ask("about", &about)
	if about["peer_id"] != a.node.Load().host.ID().String() || about["workers_online"] != 1.0 || about["peers"] != 1.0 ||
		about["private_swarm"] != false || len(about["listen"].([]any)) != 1 || about["version"] == "" {
		t.Errorf("got %v", about)
	}
}

func TestAdminPing(t *testing.T) {
	a := newTestApp(t, nil)
	l := lease(t, a)
	w := newPeer(t, a)
	stranger, other := newPeer(t, a), testPeer(t).String()
	node := a.node.Load().host
	_ = stranger.Network().ClosePeer(node.ID())
	const jsonType = "application/json; charset=utf-8"
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	for _, c := range []struct {
		contentType, body string
		status            int
		want              string
	}{
		{jsonType, `{"peer":` + quote(w.PeerID) + `}`, 200, `"ok":true,"rtt_ms":`},
		{jsonType, `{"peer":` + quote(stranger.Bound()[0].String()+"/p2p/"+stranger.PeerID) + `}`, 200, `"ok":true,"rtt_ms":`},
		{jsonType, `{"peer":` + quote(other) + `}`, 200, `"ok":false,"error":"connecting`},
		{jsonType, `{"peer":` + quote(w.Bound()[0].String()+"/p2p/"+other) + `}`, 200, `"ok":false`},
		{jsonType, `{"peer":` + quote(node.ID().String()) + `}`, 200, "the node itself"},
		{jsonType, `{"peer":""}`, 400, "want a peer id"},
		{jsonType, `{"peer":"/ip4/127.0.0.1/tcp/1"}`, 400, "want a peer id"},
		{jsonType, `{}`, 400, "want a peer id"},
		{jsonType, `{"peer":1}`, 400, "reading the body"},
		{jsonType, `{"peers":"x"}`, 400, "unknown field"},
		{jsonType, `{"peer":"x"}{}`, 400, "more than one"},
		{jsonType, ``, 400, "reading the body"},
		{jsonType, `{"peer":"` + strings.Repeat("x", maxAdminBody) + `"}`, 413, "is over"},
		{"text/plain", `{"peer":"x"}`, 415, "Content-Type"},
		{"", `{"peer":"x"}`, 415, "Content-Type"},
	} {
		if got, status := askAdmin(t, l, "ping", c.contentType, c.body); status != c.status || !strings.Contains(got, c.want) {
			t.Errorf("%.80s: got %d %s, want %d …%s…", c.body, status, got, c.status, c.want)
		}
	}
}

// recovering is a ledger whose log was continued twice, or was not.
type recovering struct{ err error }

func (recovering) Close() {}
func (r recovering) Recover(_ context.Context, force bool) (uint64, error) {
	if force {
		return 4, r.err
	}
	return 3, r.err
}

func TestAdminRecover(t *testing.T) {
	a := newTestApp(t, nil)
	l := lease(t, a)
	const jsonType = "application/json"
	for _, c := range []struct {
		ledger            Attachment
		contentType, body string
		status            int
		want              string
	}{
		{nil, jsonType, "{}", 404, "keeps no ledger"},
		{recovering{}, jsonType, "{}", 200, `{"entries":3}`},
		{recovering{}, jsonType, `{"force":true}`, 200, `{"entries":4}`},
		{recovering{errors.New("not forked")}, jsonType, "{}", 409, "not forked"},
		{recovering{}, jsonType, `{"size":1}`, 400, "unknown field"},
		{recovering{}, jsonType, "", 400, "reading the body"},
		{recovering{}, "text/plain", "{}", 415, "Content-Type"},
	} {
		l.node.attaching.Lock()
		l.node.attached = map[string]Attachment{"ledger": c.ledger}
		l.node.attaching.Unlock()
		if got, status := askAdmin(t, l, "recover", c.contentType, c.body); status != c.status || !strings.Contains(got, c.want) {
			t.Errorf("got %d %s, want %d …%s…", status, got, c.status, c.want)
		}
	}
	l.node.attaching.Lock()
	l.node.attached = nil
	l.node.attaching.Unlock()
}

// TestAdminWithoutApp wants a plain answer where nothing runs.
func TestAdminWithoutApp(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/agentfm/about", 503},
		{"POST", "/agentfm/about", 405},
		{"HEAD", "/agentfm/workers", 405},
		{"GET", "/agentfm/ping", 405},
		{"GET", "/agentfm/", 404},
		{"GET", "/agentfm/about/", 404},
		{"GET", "/agentfm/nothing", 404},
	} {
		w := httptest.NewRecorder()
		err := new(adminAPI).serve(w, httptest.NewRequest(c.method, c.path, nil))
		if api, ok := errors.AsType[caddy.APIError](err); !ok || api.HTTPStatus != c.status || api.Err == nil {
			t.Errorf("%s %s: got %v", c.method, c.path, err)
		}
		if allow := w.Header().Get("Allow"); (allow != "") != (c.status == 405) {
			t.Errorf("%s %s: Allow %q", c.method, c.path, allow)
		}
	}
}
