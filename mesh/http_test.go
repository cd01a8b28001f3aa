// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/p2p/net/gostream"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// httpWorker is a worker of mesh protocol 2 that a test scripts.
type httpWorker struct {
	*peerHost
	server  *http.Server
	streams atomic.Int64 // that were opened
	closed  atomic.Int64 // that were closed
	profile func() any
}

// newHTTPWorker returns a worker that is in the directory, serves chats and
// embeddings as models m and m2, and answers all but its profile with serve.
func newHTTPWorker(t testing.TB, a *App, serve http.HandlerFunc) *httpWorker {
	t.Helper()
	w := &httpWorker{peerHost: newPeer(t, a)}
	w.Telemetry.Protocol, w.Telemetry.ProfileTag = wire.ProtocolHTTP, "1"
	w.profile = func() any {
		return wire.Profile{Telemetry: w.Telemetry, Models: []string{"m", "m2"}, Routes: []string{"/v1/chat/completions", "/v1/embeddings", "/v1/other"}}
	}
	w.listen(t, serve)
	w.publish(t)
	awaitOnline(t, a, w.PeerID)
	return w
}

// announceSlots has the worker take n tasks at once, and the gateway know it; it is the only one.
func (w *httpWorker) announceSlots(t testing.TB, a *App, n int) *Lease {
	t.Helper()
	w.MaxTasks = n
	w.publish(t)
	l := lease(t, a)
	await.Until(t, "its size is known", func() bool { return l.Workers(false)[0].MaxTasks == n })
	return l
}

// listen serves mesh protocol 2.
func (w *httpWorker) listen(t testing.TB, serve http.HandlerFunc) {
	t.Helper()
	l, err := gostream.Listen(w.Host, wire.HTTPProtocol)
	if err != nil {
		t.Fatal(err)
	}
	w.server = &http.Server{
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				w.streams.Add(1)
			case http.StateClosed:
				w.closed.Add(1)
			}
		},
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != wire.PathProfile {
				serve(rw, r)
				return
			}
			_ = json.NewEncoder(rw).Encode(w.profile())
		}),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = w.server.Serve(l) }()
	t.Cleanup(func() { _ = w.server.Close(); <-done })
}

func awaitOnline(t testing.TB, a *App, id string) {
	t.Helper()
	l := lease(t, a)
	await.Until(t, "the worker is online", func() bool {
		for _, i := range l.Workers(false) {
			if i.PeerID == id {
				return true
			}
		}
		return false
	})
}

// request is a call that is passed on.
func request(model, body string) Call {
	return Call{
		Target: router.Request{Model: model, Routes: Route("/v1/chat/completions")}, Selector: router.LeastLoaded{}, Retries: 2,
		Request: &Request{Method: http.MethodPost, Target: "/v1/chat/completions", Header: http.Header{"X-Of-Client": {"1"}}, Body: []byte(body)},
	}
}

// echoBody answers with the body of the request, when it has all of that.
func echoBody(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, _ = w.Write(body)
}

func TestRequest(t *testing.T) {
	a := newTestApp(t, nil)
	var head http.Header
	w := newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
		head = r.Header
		w.Header().Set("X-Of-Worker", "2")
		w.WriteHeader(http.StatusTeapot)
		echoBody(w, r)
	})
	for i, body := range []string{"{}", "", strings.Repeat("x", inlineBody), strings.Repeat("y", 3*inlineBody), strings.Repeat("z", 8<<20)} {
		run, err := lease(t, a).Dispatch(context.Background(), request("m2", body))
		if err != nil {
			t.Fatal(err)
		}
		resp := run.Response()
		if resp == nil || resp.Status != http.StatusTeapot || resp.Header.Get("X-Of-Worker") != "2" {
			t.Fatalf("got %+v", resp)
		}
		got, err := io.ReadAll(run)
		if string(got) != body || err != nil {
			t.Errorf("%d: got %d bytes of %d, %v", i, len(got), len(body), err)
		}
		if head.Get("X-Of-Client") != "1" || head.Get("Authorization") != "" {
			t.Errorf("the worker got %v", head)
		}
		_ = run.Close()
	}
	if n := w.streams.Load(); n != 2 { // one was for the profile
		t.Errorf("%d streams were opened for requests that came one after the other, want 1", n-1)
	}
}

// TestStaleStreams wants a stream that the worker has closed while it was idle to
// be replaced, and a request that a worker may have begun not to be sent again.
func TestStaleStreams(t *testing.T) {
	a := newTestApp(t, nil)
	var served atomic.Int64
	abort := false
	w := newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if abort {
			panic(http.ErrAbortHandler)
		}
		echoBody(w, r)
	})
	w.server.SetKeepAlivesEnabled(true)
	for range 3 {
		if out, _, err := ask(t, a, request("m", "x")); out != "x" || err != nil {
			t.Fatalf("got %q, %v", out, err)
		}
		pool := a.node.Load().streams
		await.Until(t, "the end of the stream is seen", func() bool {
			w.server.SetKeepAlivesEnabled(false) // closes what is idle, which the stream may not be at once
			w.server.SetKeepAlivesEnabled(true)
			pool.mu.Lock()
			defer pool.mu.Unlock()
			list := pool.idle[w.ID()]
			return len(list) == 0 || len(list) == 1 && !list[0].alive() // or the sweep was faster
		})
	}
	if n := served.Load(); n != 3 {
		t.Errorf("3 requests were served %d times", n)
	}
	abort = true
	served.Store(0)
	if _, _, err := ask(t, a, request("m", "x")); !errors.Is(err, ErrStream) {
		t.Errorf("a worker that breaks off: got %v, want ErrStream", err)
	}
	if n := served.Load(); n != 1 {
		t.Errorf("a request was served %d times by one worker", n)
	}
}

// TestRefusals wants each refusal to be what it says, and others to be tried.
func TestRefusals(t *testing.T) {
	for reason, want := range map[wire.Refusal]error{
		wire.RefusalCapacity: wire.ErrCapacity, wire.RefusalUnavailable: ErrUnavailable, wire.RefusalForbidden: wire.ErrRefused,
		wire.RefusalRoute: wire.ErrRefused, wire.RefusalModel: ErrNoModel, "something-new": wire.ErrRefused,
	} {
		t.Run(string(reason), func(t *testing.T) {
			a := newTestApp(t, nil)
			refuse := func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(wire.HeaderRefusal, string(reason))
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.WriteString(w, `{"error":{"message":"because\u001b of this"}}`)
			}
			bad := newHTTPWorker(t, a, refuse)
			_, _, err := ask(t, a, request("m", "x"))
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "because of this") && !strings.Contains(err.Error(), "because  of this") {
				t.Errorf("got %v, want %v with its reason", err, want)
			}
			good := newHTTPWorker(t, a, echoBody)
			good.CurrentTasks = 3 // it is tried last
			good.publish(t)
			bad.publish(t)
			if out, served, err := ask(t, a, request("m", "x")); out != "x" || served.Peer != good.PeerID || err != nil {
				t.Errorf("got %q by %+v, %v", out, served, err)
			}
		})
	}
}

// TestReportedLoad wants what a worker says with an answer to count at once.
func TestReportedLoad(t *testing.T) {
	a := newTestApp(t, nil)
	newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(wire.HeaderLoad, "5/4")
		echoBody(w, r)
	})
	if _, _, err := ask(t, a, request("m", "x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(t, a, request("m", "x")); !errors.Is(err, router.ErrBusy) {
		t.Errorf("a worker that says it is full: got %v, want ErrBusy", err)
	}
}

// TestAside wants a request that is no work to say nothing of its worker.
func TestAside(t *testing.T) {
	a := newTestApp(t, nil)
	newHTTPWorker(t, a, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	judge := func(string, bool) { t.Error("it is judged by that") }
	a.node.Load().judge.Store(&judge)
	c := request("m", "")
	c.Aside = true
	run, err := lease(t, a).Dispatch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(run); err != nil {
		t.Error(err)
	}
	_ = run.Close()
}

// TestSlotAtEnd wants the slot of an answer to be free when that has been read, also before
// it is closed: by then the client can have it all, and ask for the next.
func TestSlotAtEnd(t *testing.T) {
	a := newTestApp(t, nil)
	w := newHTTPWorker(t, a, echoBody)
	l := w.announceSlots(t, a, 1)
	for range 3 {
		body := strings.Repeat("x", 1<<20)
		run, err := l.Dispatch(t.Context(), request("m", body))
		if err != nil {
			t.Fatal(err)
		}
		defer run.Close()
		if _, err := l.Dispatch(t.Context(), request("m", "x")); !errors.Is(err, router.ErrBusy) {
			t.Fatalf("beside an answer that is not read: got %v, want ErrBusy", err)
		}
		if b, err := io.ReadAll(run); string(b) != body || err != nil {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
}

// TestBadAnswers wants answers that are none, or not whole, to be errors.
func TestBadAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"no HTTP":        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
		"nothing":        "",
		"half a head":    "HTTP/1.1 200 OK\r\nContent-Le",
		"endless head":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 1000),
		"interim only":   strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20),
		"short body":     "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
		"no end":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"bad chunk":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n",
		"two lengths":    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhalf",
		"negative":       "HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nhalf",
		"smuggled after": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhalfHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, raw)
			})
			for range 2 {
				out, _, err := ask(t, a, request("m", "x"))
				if name == "smuggled after" {
					if out != "half" || err != nil {
						t.Errorf("got %q, %v", out, err)
					}
				} else if err == nil || errors.Is(err, ErrUnreachable) {
					t.Errorf("got %q, %v", out, err)
				}
			}
		})
	}
}

// TestRequestCancel wants the worker to hear of a client that went away, before
// the first byte of an answer and after it.
func TestRequestCancel(t *testing.T) {
	for _, begun := range []bool{false, true} {
		a := newTestApp(t, nil)
		working, gone := newGate(), newGate()
		newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
			if body, _ := io.ReadAll(r.Body); string(body) != "wait" {
				return
			}
			if begun {
				_, _ = io.WriteString(w, "first")
				_ = http.NewResponseController(w).Flush()
			}
			working.open()
			<-r.Context().Done()
			gone.open()
		})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		l := lease(t, a)
		go func() {
			run, err := l.Dispatch(ctx, request("m", "wait"))
			if err == nil {
				_, err = io.ReadAll(run)
				_ = run.Close()
			}
			ended <- err
		}()
		working.wait()
		cancel()
		gone.wait()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("begun %v: got %v", begun, err)
		}
		for range 4 { // slots
			if _, _, err := ask(t, a, request("m", "x")); err != nil {
				t.Errorf("begun %v: the next request: %v", begun, err)
			}
		}
	}
}

// TestTaskByEvents wants each end of a task of protocol 2 to be what it says.
func TestTaskByEvents(t *testing.T) {
	events := func(write func(*wire.EventWriter)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.Path != wire.PathTasks {
				http.NotFound(w, r)
				return
			}
			frame, _ := io.ReadAll(r.Body)
			if req, err := wire.DecodeTask(frame); err != nil || req.Data != "hi" {
				t.Errorf("the worker got %q: %v", frame, err)
			}
			write(wire.NewEventWriter(w))
		}
	}
	for name, c := range map[string]struct {
		write func(*wire.EventWriter)
		out   string
		err   error
		cause wire.Cause
	}{
		"ok": {func(e *wire.EventWriter) {
			_, _ = io.WriteString(e, "a\nb\xff\r\n[AGENTFM: NO_FILES]\n")
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		}, "a\nb\xff\r\n[AGENTFM: NO_FILES]\n", nil, ""},
		"no output": {func(e *wire.EventWriter) { _ = e.Exit(wire.Exit{Status: wire.ExitOK}) }, "", nil, ""},
		"fails": {func(e *wire.EventWriter) {
			_ = e.Exit(wire.Exit{Status: wire.ExitFailed, Code: 3, Reason: "exit status 3"})
		}, "", wire.ErrAgentFailed, ""},
		"fails later": {func(e *wire.EventWriter) {
			_, _ = io.WriteString(e, "half")
			_ = e.Exit(wire.Exit{Status: wire.ExitStopped, Cause: wire.CauseDeadline, Reason: "timed out"})
		}, "half", wire.ErrAgentFailed, wire.CauseDeadline},
		"of a later version": {func(e *wire.EventWriter) {
			_ = e.Exit(wire.Exit{Status: wire.ExitFailed, Cause: "bored", Reason: "no more"})
		}, "", wire.ErrAgentFailed, wire.CauseRuntimeError},
		"that lies": {func(e *wire.EventWriter) {
			_ = e.Exit(wire.Exit{Status: wire.ExitFailed, Cause: wire.CauseOK})
		}, "", wire.ErrAgentFailed, wire.CauseRuntimeError},
		"no exit": {func(e *wire.EventWriter) { _, _ = io.WriteString(e, "half") }, "half", wire.ErrTruncated, ""},
		"files that are not there": {func(e *wire.EventWriter) {
			_ = e.Artifact(wire.Artifact{Size: 5, SHA256: strings.Repeat("0", 64)})
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		}, "", ErrArtifact, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			w := newHTTPWorker(t, a, events(c.write))
			call := call("m")
			call.Retries = 0
			out, _, err := ask(t, a, call)
			if out != c.out || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", out, err, c.out, c.err)
			}
			if e, ok := errors.AsType[*wire.AgentError](err); ok && e.Cause != c.cause || !ok && c.cause != "" {
				t.Errorf("the cause is %v, want %q", e, c.cause)
			}
			_ = w
		})
	}
}

// TestOriginal wants a worker of protocol 2 to get the client's request where it fits
// beside the prompt, and the task in any case.
func TestOriginal(t *testing.T) {
	const fits = `{"messages":[{"role":"user","content":"hi"}]}`
	for _, original := range []string{fits, `"` + strings.Repeat("x", wire.MaxTaskFrame) + `"`, ""} {
		a := newTestApp(t, nil)
		got := make(chan wire.TaskRequest, 1)
		newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
			frame, _ := io.ReadAll(r.Body)
			req, err := wire.DecodeTask(frame)
			if err != nil {
				t.Error(err)
			}
			got <- req
			_ = wire.NewEventWriter(w).Exit(wire.Exit{Status: wire.ExitOK})
		})
		call := call("m")
		if original != "" {
			call.Original = []byte(original)
		}
		if _, _, err := ask(t, a, call); err != nil {
			t.Fatal(err)
		}
		want := wire.RawJSON(original)
		if len(original) > wire.MaxTaskFrame {
			want = ""
		}
		if req := <-got; req.Request != want || req.Data != "hi" {
			t.Errorf("the worker got %.100q of %.100q", req.Request, original)
		}
	}
}

// TestFetch wants the files of a task to arrive whole, over connections that
// break, or not at all.
func TestFetch(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 64<<10)
	sum := sha256.Sum256([]byte(content))
	announced := wire.Artifact{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	other := announced
	other.SHA256 = strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		announced wire.Artifact
		cuts      int // how often the transfer breaks
		lies      bool
		want      error
	}{
		"whole":            {announced: announced},
		"broken":           {announced: announced, cuts: 5},
		"another hash":     {announced: other, want: errHash},
		"another size":     {announced: wire.Artifact{Size: 7, SHA256: announced.SHA256}, want: wire.ErrBadFrame},
		"ignores the part": {announced: announced, cuts: 1, lies: true, want: wire.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			var mu sync.Mutex
			cuts, forgotten := c.cuts, false
			newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				switch r.Method {
				case http.MethodPost:
					e := wire.NewEventWriter(w)
					_ = e.Artifact(c.announced)
					_ = e.Exit(wire.Exit{Status: wire.ExitOK})
				case http.MethodDelete:
					forgotten = true
				default:
					if cuts > 0 {
						cuts--
						from := 0
						if part := r.Header.Get("Range"); part != "" {
							from, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(part, "bytes="), "-"))
							w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
						}
						w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
						if from > 0 {
							w.WriteHeader(http.StatusPartialContent)
						}
						_, _ = io.WriteString(w, content[from:from+10_000])
						_ = http.NewResponseController(w).Flush()
						panic(http.ErrAbortHandler)
					}
					if c.lies {
						r.Header.Del("Range")
					}
					w.Header().Set("ETag", wire.ArtifactTag(announced.SHA256))
					http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
				}
			})
			call := call("m")
			call.TaskID = "with-files"
			run, err := lease(t, a).Dispatch(context.Background(), call)
			if err == nil {
				_, err = io.ReadAll(run)
				if err == nil && !run.HasFiles() {
					t.Error("no files")
				}
				if left := run.Artifact(); err == nil && (left.Size != int64(len(content)) || left.SHA256 != announced.SHA256) {
					t.Errorf("it says %+v", left)
				}
				_ = run.Close()
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			got, err := os.ReadFile(filepath.Join(a.artifacts.dir, "with-files.zip"))
			if c.want == nil && string(got) != content {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if c.want != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a file that is not whole is there: %d bytes, %v", len(got), err)
			}
			if left, _ := os.ReadDir(a.artifacts.dir); c.want != nil && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			await.Until(t, "the worker is told", func() bool { mu.Lock(); defer mu.Unlock(); return forgotten })
		})
	}
}

// TestProfiles follows what the directory knows of a worker.
func TestProfiles(t *testing.T) {
	a := newTestApp(t, nil)
	w := newHTTPWorker(t, a, echoBody)
	l := lease(t, a)
	serves := func(model string) bool {
		routes, _ := l.Serves(&router.Request{Model: model})
		return routes == Route("/v1/chat/completions")|Route("/v1/embeddings")
	}
	if !serves("m") || !serves("M2") || serves("m3") {
		t.Error("the profile is not known when the worker is online")
	}
	w.Telemetry.ProfileTag = "2"
	w.profile = func() any {
		return wire.Profile{Telemetry: w.Telemetry, Models: []string{"m", "m3"}, Routes: []string{"/v1/chat/completions", "/v1/embeddings"}}
	}
	w.publish(t)
	await.Until(t, "the new profile is known", func() bool { return serves("m3") && !serves("m2") })
}

// TestBadProfiles wants a worker that gives none to be one that takes a text.
func TestBadProfiles(t *testing.T) {
	for name, profile := range map[string]func(w *httpWorker) any{
		"of another": func(*httpWorker) any {
			return wire.Profile{Telemetry: wire.Telemetry{PeerID: "x", CPUCores: 1, MaxTasks: 1, Status: wire.StatusAvailable}}
		},
		"none":      func(*httpWorker) any { return "no" },
		"too large": func(*httpWorker) any { return strings.Repeat("x", wire.MaxProfile) },
		"bad route": func(w *httpWorker) any { return wire.Profile{Telemetry: w.Telemetry, Routes: []string{"/etc/passwd"}} },
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			w := &httpWorker{peerHost: newPeer(t, a)}
			w.Telemetry.Protocol, w.Telemetry.ProfileTag = wire.ProtocolHTTP, "1"
			w.profile = func() any { return profile(w) }
			w.listen(t, echoBody)
			l := lease(t, a)
			await.Until(t, "the worker is online", func() bool { w.publish(t); return l.Online() == 1 })
			if routes, text := l.Serves(&router.Request{Model: "m"}); routes != 0 || !text {
				t.Errorf("serves %b, text %v", routes, text)
			}
		})
	}
}

// TestMixed wants workers of both protocols behind one gateway.
func TestMixed(t *testing.T) {
	a := newTestApp(t, nil)
	old := newWorker(t, a, say("old"+noFiles))
	newer := newPeer(t, a)
	newer.Telemetry.Protocol = wire.ProtocolHTTP // and takes a text
	w := &httpWorker{peerHost: newer}
	w.listen(t, func(w http.ResponseWriter, _ *http.Request) {
		e := wire.NewEventWriter(w)
		_, _ = io.WriteString(e, "new")
		_ = e.Exit(wire.Exit{Status: wire.ExitOK})
	})
	newer.publish(t)
	awaitOnline(t, a, newer.PeerID)
	for id, want := range map[string]string{old.PeerID: "old", newer.PeerID: "new"} {
		c := call("")
		c.Target.Peer = id
		if out, _, err := ask(t, a, c); out != want || err != nil {
			t.Errorf("got %q, %v; want %q", out, err, want)
		}
	}
	seen := make(map[string]bool)
	for range 8 {
		out, _, err := ask(t, a, call("m"))
		if err != nil {
			t.Fatal(err)
		}
		seen[out] = true
	}
	if len(seen) != 2 {
		t.Errorf("only %v served", seen)
	}
}

// TestManyInFlight has as many requests in flight to one worker as a large one may
// have, and no stream is reset.
func TestManyInFlight(t *testing.T) {
	n := 2_000
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		n = 10_000
	}
	// with few processors the worker takes the streams about as fast as they are opened
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	a := newTestApp(t, nil)
	var inside atomic.Int64
	all := newGate()
	w := newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
		if inside.Add(1) == int64(n) {
			all.open()
		}
		all.wait()
		echoBody(w, r)
	})
	t.Cleanup(all.open)
	l := w.announceSlots(t, a, n)
	var failed atomic.Int64
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			run, err := l.Dispatch(context.Background(), request("m", "x"))
			if err == nil {
				_, err = io.ReadAll(run)
				_ = run.Close()
			}
			if err != nil {
				if failed.Add(1) == 1 {
					t.Error(err)
					all.open()
				}
			}
		})
	}
	group.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d failed", failed.Load(), n)
	}
}
