// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// chat sends a chat and reads the answer.
func (p *process) chat(t *testing.T, model, text string, stream bool) (received, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := p.send(ctx, http.MethodPost, "/v1/chat/completions", chatRequest(model, text, stream))
	if err != nil {
		return received{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return received{resp.StatusCode, resp.Header, string(b)}, err
}

// awaitModel waits until a worker of that model is there.
func (p *process) awaitModel(model string) {
	p.t.Helper()
	p.await("a worker of "+model, func() bool {
		resp, err := p.send(p.t.Context(), http.MethodGet, "/v1/models", nil)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(b), `"`+model+`"`)
	})
}

// broken reports whether a client can see that an answer is not one: by its status,
// an error in its events, or an end that is none.
func broken(a received, err error) bool {
	return err != nil || a.status >= 400 || strings.Contains(a.body, `"error"`) && !strings.Contains(a.body, "[DONE]")
}

// A27: whatever a worker answers, the client gets an answer that is whole or an
// error; headers, files and events that are not the worker's to give do not reach it;
// and the gateway's memory is bounded.
func TestA27MaliciousWorkers(t *testing.T) {
	t.Parallel()
	site := replaceOnce(t, withKey, "\n\t}", "\n\t\ttask_timeout 1s\n\t}")
	m := newMesh(t, site)
	g := m.gateway
	honest := newStranger(t)
	honest.serveTasks(m.address, "honest", func(w http.ResponseWriter, r *http.Request) {
		taskEvents(w, r, func(e *wire.EventWriter) {
			_, _ = io.WriteString(e, "fine")
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		})
	})
	g.awaitModel("honest")
	before, goroutines := g.liveHeap(t), g.goroutines(t)
	var gone atomic.Int64
	forever := func(w http.ResponseWriter, r *http.Request, piece string, pause time.Duration) {
		_, _ = io.Copy(io.Discard, r.Body)
		tick := time.NewTicker(max(pause, 1))
		defer tick.Stop()
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, piece); err != nil {
				break
			}
			_ = http.NewResponseController(w).Flush()
			if pause > 0 {
				<-tick.C
			}
		}
		gone.Add(1)
	}
	output := "event: output\ndata: {\"text\":\"x\"}\n\n"
	const sum = "0000000000000000000000000000000000000000000000000000000000000000"
	const json = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	const sse = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
	t.Run("workers", func(t *testing.T) {
		for name, c := range map[string]struct {
			chats bool // serves them itself
			serve http.HandlerFunc
			ends  func(*testing.T, received, error) // nil: broken
		}{
			"drip":        {false, func(w http.ResponseWriter, r *http.Request) { forever(w, r, output, 100*time.Millisecond) }, nil},
			"drip-silent": {false, func(w http.ResponseWriter, r *http.Request) { forever(w, r, ": x\n\n", 100*time.Millisecond) }, nil},
			"drip-events": {true, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				forever(w, r, "data: {}\n\n", 100*time.Millisecond)
			}, nil},
			"line-without-end": {false, func(w http.ResponseWriter, r *http.Request) { forever(w, r, strings.Repeat("x", 4096), 0) }, nil},
			"huge": {true, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(100<<30))
				forever(w, r, strings.Repeat("x", 32<<10), time.Millisecond)
			}, nil},
			"endless-head": {true, func(w http.ResponseWriter, r *http.Request) {
				raw(w, r, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 2000))
			}, nil},
			"interim-flood": {true, func(w http.ResponseWriter, r *http.Request) {
				raw(w, r, strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", 100_000))
			}, nil},
			"short-length": {true, func(w http.ResponseWriter, r *http.Request) {
				raw(w, r, json+"Content-Length: 100\r\n\r\n{\"ok\":true}")
			}, nil},
			"two-lengths": {true, func(w http.ResponseWriter, r *http.Request) {
				raw(w, r, json+"Content-Length: 2\r\nContent-Length: 11\r\n\r\n{\"ok\":true}")
			}, nil},
			"half-event": {true, func(w http.ResponseWriter, r *http.Request) {
				raw(w, r, sse+"Transfer-Encoding: chunked\r\n\r\n14\r\ndata: {\"n\":1}\n\ndata\r\n")
			}, func(t *testing.T, a received, err error) {
				if strings.Contains(a.body, "[DONE]") || strings.Contains(a.body, "\n\ndata\n") || !broken(a, err) {
					t.Errorf("%d %.300q, %v", a.status, a.body, err)
				}
			}},
			"headers": {true, func(w http.ResponseWriter, r *http.Request) {
				raw(w, r, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=b\r\nStrict-Transport-Security: max-age=1\r\n"+
					"Access-Control-Allow-Origin: *\r\nLocation: http://evil.example\r\nX-Request-Id: forged\r\nX-AgentFM-Peer: forged\r\nServer: evil\r\n"+
					"Content-Security-Policy: x\r\nRefresh: 0\r\nClear-Site-Data: *\r\nAlt-Svc: h3=\":1\"\r\nWWW-Authenticate: Basic\r\nX-Content-Type-Options: no\r\n"+
					"Content-Length: 25\r\nX-Should-Retry: a\rX-Evil: b\r\n\r\n<script>alert(1)</script>")
			}, func(t *testing.T, a received, err error) {
				if broken(a, err) { // Go refuses the line with the carriage return
					return
				}
				t.Errorf("%d %v", a.status, a.header)
			}},
			"page": {true, func(w http.ResponseWriter, r *http.Request) {
				for k, v := range map[string]string{"Content-Type": "text/html", "Set-Cookie": "a=b", "Strict-Transport-Security": "max-age=1",
					"Access-Control-Allow-Origin": "*", "Location": "http://evil.example", "X-Request-Id": "forged", "X-AgentFM-Peer": "forged",
					"Refresh": "0", "Clear-Site-Data": "*", "Alt-Svc": "h3=\":1\"", "WWW-Authenticate": "Basic", "X-Content-Type-Options": "no"} {
					w.Header().Set(k, v)
				}
				_, _ = io.WriteString(w, "<script>alert(1)</script>")
			}, func(t *testing.T, a received, err error) {
				h := a.header
				if err != nil || h.Get("Content-Type") != "application/octet-stream" || h.Get("X-Content-Type-Options") != "nosniff" ||
					h.Get("X-Request-Id") == "forged" || h.Get("X-AgentFM-Peer") == "forged" {
					t.Errorf("%d %v, %v", a.status, h, err)
				}
				for _, name := range []string{"Set-Cookie", "Strict-Transport-Security", "Access-Control-Allow-Origin", "Location", "Refresh", "Clear-Site-Data", "Alt-Svc", "WWW-Authenticate"} {
					if v := h.Get(name); v != "" {
						t.Errorf("%s: %s", name, v)
					}
				}
			}},
			"after-exit": {false, func(w http.ResponseWriter, r *http.Request) {
				taskEvents(w, r, func(e *wire.EventWriter) {
					_, _ = io.WriteString(e, "first")
					_ = e.Exit(wire.Exit{Status: wire.ExitOK})
					_, _ = io.WriteString(e, "second")
					_ = e.Artifact(wire.Artifact{Size: 1, SHA256: sum})
					_ = e.Exit(wire.Exit{Status: wire.ExitFailed})
				})
			}, func(t *testing.T, a received, err error) {
				if err != nil || a.status != 200 || !strings.Contains(a.body, "first") || strings.Contains(a.body, "second") {
					t.Errorf("%d %.300q, %v", a.status, a.body, err)
				}
			}},
			"no-exit": {false, func(w http.ResponseWriter, r *http.Request) {
				taskEvents(w, r, func(e *wire.EventWriter) { _, _ = io.WriteString(e, "half") })
			}, nil},
			"no-files": {false, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost {
					http.NotFound(w, r)
					return
				}
				taskEvents(w, r, func(e *wire.EventWriter) {
					_ = e.Artifact(wire.Artifact{Size: 4 << 30, SHA256: sum})
					_ = e.Exit(wire.Exit{Status: wire.ExitOK})
				})
			}, nil},
			"other-hash": {false, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost {
					_, _ = io.WriteString(w, "evil!")
					return
				}
				taskEvents(w, r, func(e *wire.EventWriter) {
					_ = e.Artifact(wire.Artifact{Size: 5, SHA256: sum})
					_ = e.Exit(wire.Exit{Status: wire.ExitOK})
				})
			}, nil},
			"range-lies": {false, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost {
					w.Header().Set("Content-Range", "bytes 3-4/5")
					w.WriteHeader(http.StatusPartialContent)
					_, _ = io.WriteString(w, "l!")
					return
				}
				taskEvents(w, r, func(e *wire.EventWriter) {
					_ = e.Artifact(wire.Artifact{Size: 5, SHA256: sum})
					_ = e.Exit(wire.Exit{Status: wire.ExitOK})
				})
			}, nil},
			"huge-files": {false, func(w http.ResponseWriter, r *http.Request) {
				taskEvents(w, r, func(e *wire.EventWriter) {
					_ = e.Artifact(wire.Artifact{Size: wire.MaxArtifact + 1, SHA256: sum})
					_ = e.Exit(wire.Exit{Status: wire.ExitOK})
				})
			}, nil},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := g.in(t)
				w := newStranger(t)
				if c.chats {
					w.serveChats(m.address, name, c.serve)
				} else {
					w.serveTasks(m.address, name, c.serve)
				}
				p.awaitModel(name)
				for _, stream := range []bool{false, true} {
					begun := time.Now()
					a, err := p.chat(t, name, "x", stream)
					switch {
					case c.ends != nil:
						c.ends(t, a, err)
					case !broken(a, err):
						t.Errorf("stream %v: %d %.300q", stream, a.status, a.body)
					}
					if took := time.Since(begun); took > patience/4 {
						t.Errorf("stream %v: %v", stream, took)
					}
					if id := a.header.Get("X-AgentFM-Task"); id != "" && err == nil {
						if f := wantAsk(t, httpClient, "GET", p.url+"/api/tasks/"+id+"/artifacts", "", bearer(testKey)...); f.status != http.StatusNotFound {
							t.Errorf("files: %d %.100q", f.status, f.body)
						}
					}
				}
			})
		}
	})
	if a, err := g.chat(t, "honest", "x", false); err != nil || !strings.Contains(a.body, "fine") {
		t.Errorf("an honest worker: %d %.300q, %v", a.status, a.body, err)
	}
	if gone.Load() == 0 {
		t.Error("no worker was told to stop")
	}
	g.await("the goroutines of requests have ended", func() bool { return g.goroutines(t) < goroutines+100 })
	after := g.liveHeap(t)
	_, peak := g.resident()
	t.Logf("heap %d MiB before, %d MiB after; %d MiB resident at most", before>>20, after>>20, peak>>20)
	if after > before+32<<20 {
		t.Errorf("the heap has grown by %d MiB", (after-before)>>20)
	}
	if files, _ := filepath.Glob(filepath.Join(g.cmd.Dir, "artifacts", "*")); len(files) > 0 {
		t.Errorf("files of nobody: %v", files)
	}
}

// A27: files that a worker delivers for a task of another are not taken.
func TestA27FilesOfAnother(t *testing.T) {
	t.Parallel()
	m := newMesh(t, withKey)
	g := m.gateway
	ids, hold := make(chan string, 1), make(chan struct{})
	victim := newStranger(t)
	victim.serveTasks(m.address, "victim", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		task, _ := wire.DecodeTask(b)
		ids <- task.TaskID
		<-hold
		taskEvents(w, r, func(e *wire.EventWriter) { _ = e.Exit(wire.Exit{Status: wire.ExitOK}) })
	})
	g.awaitModel("victim")
	answered := make(chan received, 1)
	go func() {
		a, _ := g.chat(t, "victim", "x", false)
		answered <- a
	}()
	id := <-ids
	evil := newStranger(t)
	gateway := evil.mustDial(m.address)
	s, err := evil.open(gateway, wire.ArtifactProtocol, "")
	if err == nil {
		if err = wire.WriteArtifactHeader(s, wire.ArtifactHeader{TaskID: id, Size: 4}); err == nil {
			_, _ = io.WriteString(s, "evil")
			_ = s.CloseWrite()
			_, err = s.Read(make([]byte, 1))
		}
	}
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, network.ErrReset) {
		t.Errorf("the stream with the files ended with %v, want a reset", err)
	}
	close(hold)
	if a := <-answered; a.status != 200 {
		t.Errorf("%d %.300q", a.status, a.body)
	}
	if _, err := os.Stat(filepath.Join(g.cmd.Dir, "artifacts", id+".zip")); !os.IsNotExist(err) {
		t.Errorf("files of another: %v", err)
	}
}
