// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// A4: a gateway without keys on loopback is this machine's alone. A web page, by
// its own name or by one that was made to resolve to loopback, gets nothing.
func TestA4Origins(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	f := startFront(t, "", "agentfm", agent("note", canary, "note", command(writeScript(t, noteRuns), "STATE", state)))
	f.awaitWorkers(1)
	port := f.address()[strings.LastIndexByte(f.address(), ':'):]
	const exposed, origin = "authentication_not_configured", "cross_origin_refused"
	served := 0
	for _, row := range []struct {
		host, origin  string
		read, execute string // codes; empty for served
	}{
		{"127.0.0.1" + port, "", "", ""},
		{"localhost" + port, "", "", ""},
		{"localhost", "", "", ""},
		{"[::1]" + port, "", "", ""},
		{"LOCALHOST" + port, "", "", ""},
		{"localhost" + port, "http://localhost:5173", "", ""},
		{"localhost" + port, "http://127.0.0.1", "", ""},
		{"localhost" + port, "tauri://localhost", "", ""},
		{"localhost" + port, "https://evil.example", "", origin},
		{"localhost" + port, "null", "", origin},
		{"localhost" + port, "file://", "", origin},
		{"localhost" + port, "https://localhost.evil.example", "", origin},
		{"localhost" + port, "https://evil.example/localhost", "", origin},
		{"localhost" + port, "https://localhost@evil.example", "", origin},
		{"localhost" + port, "https://evil.example#localhost", "", origin},
		{"localhost" + port, "http://127.0.0.1.evil.example", "", origin},
		{"localhost" + port, "http://0.0.0.0", "", origin},
		{"localhost" + port, "http://192.168.0.1", "", origin},
		{"localhost" + port, "chrome-extension://abcdefghijklmnop", "", origin},
		{"evil.example" + port, "", exposed, exposed},
		{"evil.example" + port, "http://evil.example" + port, exposed, exposed},
		{"evil.example" + port, "http://localhost", exposed, exposed},
		{"localhost.evil.example" + port, "", exposed, exposed},
		{"127.0.0.1.nip.io" + port, "", exposed, exposed},
		{"evil.example", "http://evil.example", exposed, exposed},
		{"localhost.", "", exposed, exposed},
		{"0.0.0.0" + port, "", exposed, exposed},
		{"[::]" + port, "", exposed, exposed},
		{"192.0.2.1" + port, "", exposed, exposed},
		{"2130706433" + port, "", exposed, exposed},
		{"0x7f000001" + port, "", exposed, exposed},
		{"127.1" + port, "", exposed, exposed},
	} {
		for method, code := range map[string]string{"GET": row.read, "HEAD": row.read, "POST": row.execute} {
			path, body := "/api/workers", ""
			if method == "POST" {
				path, body = "/v1/completions", `{"model":"note","prompt":"x"}`
			}
			a, err := askAs(t, f.url+path, method, row.host, row.origin, body)
			allowed := a.header.Get("Access-Control-Allow-Origin")
			if err != nil || allowed == "*" || allowed != "" && (allowed != row.origin || row.execute == origin) {
				t.Errorf("%s %+v: pages of %q may read (%v)", method, row, allowed, err)
			}
			switch {
			case code == "" && a.status == 200:
				if method == "POST" {
					served++
				}
			case code == "", method == "HEAD" && a.status != 403:
				t.Errorf("%s %+v: %d %s", method, row, a.status, a.body)
			case method != "HEAD":
				if a.failed(t, 403, code); t.Failed() {
					t.Logf("of %s %+v", method, row)
				}
			}
			if code != "" && strings.Contains(a.body, canary) {
				t.Errorf("%s %+v: %s", method, row, a.body)
			}
		}
	}
	if n := runCount(t, state); n != served {
		t.Errorf("%d tasks ran of %d that were served", n, served)
	}
	// A form that a page sends without a preflight has an Origin like any other.
	for _, contentType := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"} {
		wantAsk(t, httpClient, "POST", f.url+"/v1/completions", `{"model":"note","prompt":"x"}`, "Origin", "https://evil.example", "Content-Type", contentType).
			failed(t, 403, origin)
	}
	t.Run("admin API", func(t *testing.T) { f.in(t).wantAdminGuarded(t) })
}

// askAs sends a request with a Host and, when it is not empty, an Origin.
func askAs(t *testing.T, url, method, host, origin, body string) (received, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	if origin != "" {
		req.Header.Set("Origin", origin)
	}
	return send(newClient(t, 1), req)
}

// wantAdminGuarded wants Caddy's guards before everything on its admin API, ours
// included.
func (p *process) wantAdminGuarded(t *testing.T) {
	own := strings.TrimPrefix(p.admin, "http://")
	for _, path := range []string{"/config/", "/agentfm/workers", "/agentfm/peers", "/agentfm/about"} { // which are there
		if a := wantAsk(t, httpClient, "GET", p.admin+path, ""); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, path := range []string{"/config/", "/load", "/stop", "/id/x", "/debug/pprof/", "/metrics", "/agentfm/workers", "/agentfm/peers", "/agentfm/about"} {
		for _, row := range []struct{ host, origin string }{
			{"evil.example", ""},
			{"evil.example" + own[strings.LastIndexByte(own, ':'):], ""},
			{"localhost.evil.example", ""},
			{own, "https://evil.example"},
			{own, "http://localhost.evil.example"},
			{own, "null"},
			{"evil.example", "http://" + own},
		} {
			for _, method := range []string{"GET", "POST", "OPTIONS"} {
				a, err := askAs(t, p.admin+path, method, row.host, row.origin, "")
				want := map[bool]int{false: http.StatusForbidden, true: http.StatusBadRequest}[row.origin == "null"]
				if err != nil || a.status != want || a.header.Get("Access-Control-Allow-Origin") != "" {
					t.Errorf("%s %s %+v: %d %.100q %v", method, path, row, a.status, a.body, err)
				}
			}
		}
	}
}
