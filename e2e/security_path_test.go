// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// canary is in every answer that only a key should open.
const canary = "canary-agent"

// spellings are paths that mean, or could be taken to mean, one that needs a key.
var spellings = []string{
	"/api/workers", "/v1/models", "/api", "/v1", "/api/", "/v1/", "/api/workers/", "/v1/models/", "//api/workers", "///v1/models", "/api//workers",
	"/v1//models", "/./api/workers", "/api/./workers", "/api/workers/.", "/api/workers/..", "/x/../api/workers", "/health/../api/workers",
	"/health/../../v1/models", "/../api/workers", "/../../v1/models", "/api/../v1/models", "/api/../health", "/%61pi/workers", "/api/%77orkers",
	"/%61%70%69/workers", "/%2561pi/workers", "/api%2fworkers", "/api%2Fworkers", "/%2fapi/workers", "/%2f%2fapi%2fworkers", "/api%252fworkers",
	"/%2e/api/workers", "/%2e%2e/api/workers", "/x/%2e%2e/api/workers", "/x/..%2fapi/workers", "/health%2f..%2fapi%2fworkers", "/health/%2e%2e/v1/models",
	"/api%5cworkers", "/api\\workers", "/\\api\\workers", "/x/..\\api\\workers", "/api/workers;x", "/api/workers;x=y", "/api;x/workers", "/;/api/workers",
	"/..;/api/workers", "/health;/../v1/models", "/api/workers.", "/api/workers..", "/api./workers", "/api/workers.json", "/v1/models.json",
	"/api/workers%00", "/api/workers%00.html", "/%00/api/workers", "/api/workers%20", "/api/workers+", "/api/workers%09", "/api/workers%0a", "/api/workers%0d%0a",
	"/%20/api/workers", "/API/workers", "/Api/Workers", "/V1/models", "/v1/MODELS", "/v1/models/" + canary, "/v1/models/" + canary + "/", "/v1/models/%63anary-agent",
	"/api/workers?", "/api/workers?include_offline=true", "/api/workers??x", "/api/workers%3f", "/api/workers%23", "/api/workers?x#y",
	"/health?/../api/workers", "/healthz/../api/workers", "/api/tasks/x/artifacts", "/api/tasks/../workers", "/api/tasks/..%2fworkers/artifacts",
	"/api/tasks/%2e%2e/artifacts", "/api/execute/../workers", "/%c0%ae%c0%ae/api/workers", "/%ef%bc%8fapi/workers", "/ａｐｉ/workers", "/api/%e2%80%8bworkers",
	"/v1/chat/completions/../../models", "/v1/chat/completions/..", "/metrics", "/debug/pprof/", "/config/", "/agentfm/workers", "/.well-known/../api/workers",
}

// overrides are headers by which some servers take another path or method.
var overrides = []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Original-URI", "X-Forwarded-URI",
	"X-Forwarded-Prefix", "X-Forwarded-Path", "X-Forwarded-Method"}

// pathSites are ways to put the handler into a site.
var pathSites = map[string]string{
	"alone":          "agentfm {\n\t\tapi_keys KEY\n\t}",
	"handle":         "handle /api/* {\n\t\tagentfm {\n\t\t\tapi_keys KEY\n\t\t}\n\t}\n\thandle /v1/* {\n\t\tagentfm {\n\t\t\tapi_keys KEY\n\t\t}\n\t}\n\thandle {\n\t\trespond 404\n\t}",
	"route":          "route {\n\t\tagentfm /api/* {\n\t\t\tapi_keys KEY\n\t\t}\n\t\tagentfm {\n\t\t\tapi_keys KEY\n\t\t}\n\t\trespond 404\n\t}",
	"handle_path":    "handle_path /x/* {\n\t\tagentfm {\n\t\t\tapi_keys KEY\n\t\t}\n\t}\n\thandle {\n\t\tagentfm {\n\t\t\tapi_keys KEY\n\t\t}\n\t}",
	"authentication": "@guarded path /api /api/* /v1 /v1/*\n\troute {\n\t\tagentfm_auth @guarded {\n\t\t\tapi_keys KEY\n\t\t}\n\t\tagentfm {\n\t\t\tapi_keys KEY\n\t\t\ttrust_caddy_auth\n\t\t}\n\t\trespond 404\n\t}",
	"rewrite":        "rewrite /y/* {path}\n\turi path_regexp /+ /\n\tagentfm {\n\t\tapi_keys KEY\n\t}\n\thandle_errors {\n\t\tagentfm\n\t}",
}

// B16: no spelling of a path opens without a key what has one, as raw bytes over
// HTTP/1.1 and unchanged over HTTP/2, whatever the method.
func TestB16Paths(t *testing.T) {
	t.Parallel()
	if len(spellings) < 50 {
		t.Errorf("%d spellings", len(spellings))
	}
	runtime := command(writeScript(t, noteRuns), "STATE", t.TempDir())
	for name, site := range pathSites {
		t.Run(name, func(t *testing.T) {
			f := startFront(t, "", strings.ReplaceAll(site, "KEY", testKey), agent("canary", canary, "canary", runtime))
			f.awaitWorkers(1) // with a key it does open
			h2 := newClient(t, 2)
			methods := []string{"GET", "HEAD", "POST", "OPTIONS", "DELETE", "PROPFIND", "get"}
			for i, path := range spellings {
				for k, method := range methods {
					if k > 0 && (i+k)%scaled(9, 1) != 0 {
						continue
					}
					a, err := f.raw(t, k == 1, method, method+" "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
					if err != nil {
						t.Errorf("%s %s: %v", method, path, err)
						continue
					}
					wantClosed(t, "HTTP/1.1", method, path, a)
					if strings.ContainsAny(path, "#\\") {
						continue
					}
					req, err := http.NewRequestWithContext(t.Context(), method, "https://"+f.host, nil)
					if err != nil {
						t.Fatal(err)
					}
					req.URL = rawURL("https://"+f.host, path)
					if a, err = send(h2, req); err != nil { // the server may reset the stream
						continue
					}
					wantClosed(t, "HTTP/2", method, path, a)
				}
			}
			for _, header := range overrides {
				for _, value := range []string{"GET", "OPTIONS", "/health", "/"} {
					wantClosed(t, header, value, "/api/workers", wantAsk(t, httpClient, "GET", f.url+"/api/workers", "", header, value))
				}
			}
			for _, line := range []string{"GET http://localhost/api/workers HTTP/1.1", "GET http://evil.example//api/workers HTTP/1.1",
				"GET /api/workers HTTP/1.0", "GET  /api/workers HTTP/1.1", "GET /api/workers\tHTTP/1.1", "GET /health HTTP/1.1 /api/workers",
				"GET * HTTP/1.1", "OPTIONS * HTTP/1.1", "CONNECT /api/workers HTTP/1.1", "GET api/workers HTTP/1.1"} {
				if a, err := f.raw(t, false, "GET", line+"\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err == nil {
					wantClosed(t, "HTTP/1.1", line, "", a)
				}
			}
		})
	}
}

// wantClosed wants an answer that tells a stranger nothing: an error, or what
// anybody may know, which is the health, the methods of a route, and Caddy's empty
// answer where no handler has the path.
func wantClosed(t *testing.T, how, method, path string, a received) {
	t.Helper()
	ok := slices.Contains([]int{400, 401, 404, 405, 501}, a.status) ||
		a.status == 200 && strings.HasPrefix(a.body, `{"status":"ok","online_workers":`) && strings.Contains(path, "health") ||
		a.status == 200 && a.body == "" && (a.header.Get("X-Request-Id") == "" || method == http.MethodHead && strings.Contains(path, "health")) ||
		a.status == 204 && a.body == "" && method == http.MethodOptions
	if !ok || a.status < 300 && strings.Contains(a.body, canary) || a.header.Get("Location") != "" {
		t.Errorf("%s: %s %s: %d %.200q", how, method, path, a.status, a.body)
	}
}
