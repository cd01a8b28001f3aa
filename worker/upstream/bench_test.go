// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
)

// discard is a client that takes all. It keeps nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}

// pool lends the reverse proxy the same buffers.
type pool struct{}

func (pool) Get() []byte  { return buffers.Get().(*[bufferSize]byte)[:] }
func (pool) Put(b []byte) { buffers.Put((*[bufferSize]byte)(b)) }

// BenchmarkServeHTTP compares the runtime, which also reads the model, with the
// reverse proxy of the standard library, which does not.
func BenchmarkServeHTTP(b *testing.B) {
	f := newFake(b)
	answer := `{"id":"chatcmpl-1","choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("word ", 100) + `"}}]}`
	event := delta("word")
	f.on("/v1/chat/completions", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) })
	f.on("/v1/completions", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 100 {
			_, _ = io.WriteString(w, event)
			w.(http.Flusher).Flush()
		}
	})
	r, _ := ready(b, f, nil)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = r.base.Scheme, r.base.Host, ""
		},
		Transport:     r.transport,
		FlushInterval: -1,
		BufferPool:    pool{},
	}
	body := `{"model":"FIRST","stream":true,"messages":[{"role":"user","content":"` + strings.Repeat("word ", 400) + `"}]}`
	for _, route := range []string{"/v1/chat/completions", "/v1/completions"} {
		for _, c := range []struct {
			name    string
			handler http.Handler
		}{{"runtime", r}, {"reverseproxy", proxy}} {
			b.Run(map[string]string{"/v1/chat/completions": "whole", "/v1/completions": "stream"}[route]+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					req, _ := http.NewRequestWithContext(b.Context(), "POST", "http://gateway"+route, strings.NewReader(body))
					req.Header.Set("Content-Type", "application/json")
					req.Header.Set("Authorization", "Bearer client")
					req.Header.Set("User-Agent", "bench")
					c.handler.ServeHTTP(discard{make(http.Header)}, req)
				}
			})
		}
	}
	r.transport.CloseIdleConnections()
}
