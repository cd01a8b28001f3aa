// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// client opens a connection for each request: one that is kept for reuse is
// closed by a reload, and would belong to an old configuration until then.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: patience}}

// errNoConnection says that a request got no answer at all.
var errNoConnection = errors.New("the connection was not served")

// gateway is a Caddy as its clients see it.
type gateway struct {
	t     *testing.T
	place place
}

// get returns the body of an answer, empty when there is none.
func (g gateway) get(path string) string {
	resp, err := client.Get(g.place.url(path))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(body)
}

// awaitName waits until the configuration of that name answers, and no other. A
// reload is a moment ahead of the end of the HTTP server that it stops, with
// whose socket Caddy shares the port: until then, some connections go there, and
// are answered or reset.
func (g gateway) awaitName(name string) {
	g.t.Helper()
	await(g.t, "configuration "+name+" answers", func() bool {
		for range 10 {
			if g.get("/name") != name {
				return false
			}
		}
		return true
	})
}

// worker is an agent as the gateway lists it.
type worker struct {
	ID     string `json:"peer_id"`
	Name   string `json:"name"`
	Status string `json:"status"`
}

// worker returns the agent of that name, when it is online.
func (g gateway) worker(name string) (worker, bool) {
	var list struct {
		Agents []worker `json:"agents"`
	}
	_ = json.Unmarshal([]byte(g.get("/api/workers")), &list) // no answer is an empty list
	for _, w := range list.Agents {
		if w.Name == name {
			return w, true
		}
	}
	return worker{}, false
}

// awaitWorker waits until the gateway has an agent that takes tasks, and returns
// its peer id.
func (g gateway) awaitWorker(name string) string {
	g.t.Helper()
	var w worker
	await(g.t, "agent "+name+" is available", func() bool {
		var ok bool
		w, ok = g.worker(name)
		return ok && w.Status == "AVAILABLE"
	})
	return w.ID
}

// chat begins a streaming chat with an agent.
func (g gateway) chat(agent, prompt string) *stream {
	g.t.Helper()
	return g.open("/v1/chat/completions", map[string]any{
		"model": agent, "stream": true, "messages": []map[string]string{{"role": "user", "content": prompt}},
	}, (*stream).readChat)
}

// execute begins a task of the native API.
func (g gateway) execute(peer, prompt string) *stream {
	g.t.Helper()
	return g.open("/api/execute", map[string]any{"worker_id": peer, "prompt": prompt}, (*stream).readExecute)
}

// open sends a request whose answer is streamed. Another status than 200 is the
// error with which the stream has ended.
func (g gateway) open(path string, body any, read func(*stream) error) *stream {
	g.t.Helper()
	s, err := g.tryOpen(path, body, read)
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

func (g gateway) tryOpen(path string, body any, read func(*stream) error) (*stream, error) {
	payload, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	resp, err := client.Post(g.place.url(path), "application/json", bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoConnection, err)
	}
	s := &stream{t: g.t, resp: resp, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(resp.Body)
			s.err = fmt.Errorf("%s: %s", resp.Status, text)
			return
		}
		s.err = read(s)
	}()
	g.t.Cleanup(func() {
		resp.Body.Close()
		<-s.ended
	})
	return s, nil
}

// stream is an answer that comes bit by bit.
type stream struct {
	t     *testing.T
	resp  *http.Response
	mu    sync.Mutex
	text  strings.Builder // the agent's output so far
	ended chan struct{}
	err   error // once ended; nil when the answer says that all is well
}

func (s *stream) add(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.WriteString(text)
}

func (s *stream) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// readChat reads events. The end is good when it is marked, and nothing follows.
func (s *stream) readChat() error {
	lines := bufio.NewReader(s.resp.Body)
	done := false
	for {
		line, err := lines.ReadString('\n')
		data, isData := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "data: ")
		switch {
		case err == io.EOF && line == "" && done:
			return nil
		case err != nil:
			return fmt.Errorf("the stream ended without [DONE]: %w", err)
		case !isData:
		case done:
			return fmt.Errorf("after [DONE]: %s", data)
		case data == "[DONE]":
			done = true
		default:
			var chunk struct {
				Error   json.RawMessage
				Choices []struct{ Delta struct{ Content string } }
			}
			if err := json.Unmarshal([]byte(data), &chunk); err != nil || chunk.Error != nil {
				return errors.Join(err, errors.New(data))
			}
			for _, c := range chunk.Choices {
				s.add(c.Delta.Content)
			}
		}
	}
}

// readExecute reads the output and the line after it. The end is good when the
// trailer says so.
func (s *stream) readExecute() error {
	var p [4 << 10]byte
	for {
		n, err := s.resp.Body.Read(p[:])
		s.add(string(p[:n]))
		switch {
		case err == io.EOF && s.resp.Trailer.Get("X-AgentFM-Status") == "ok":
			return nil
		case err != nil:
			return fmt.Errorf("status %q: %w", s.resp.Trailer.Get("X-AgentFM-Status"), err)
		}
	}
}

// awaitLine waits until the agent has said a line. The newline after it may come
// with what follows.
func (s *stream) awaitLine(line string) {
	s.t.Helper()
	await(s.t, "line "+line, func() bool {
		for said := range strings.Lines(s.output()) {
			if strings.TrimSuffix(said, "\n") == line {
				return true
			}
		}
		select {
		case <-s.ended:
			s.t.Fatalf("line %q: the answer has ended (%v) after %q", line, s.err, tail(s.output()))
		default:
		}
		return false
	})
}

// awaitEnd waits for the end of the answer and returns whether it was a good one.
func (s *stream) awaitEnd() error {
	s.t.Helper()
	await(s.t, "end of the answer", func() bool {
		select {
		case <-s.ended:
			return true
		default:
			return false
		}
	})
	return s.err
}

// wantWhole waits for the good end of an answer, which must be exactly this
// output, for the native API with the closing line after it.
func (s *stream) wantWhole(output string) {
	s.t.Helper()
	if err := s.awaitEnd(); err != nil {
		s.t.Errorf("the answer ended with %v, after %d of %d bytes: …%q", err, len(s.output()), len(output), tail(s.output()))
		return
	}
	if strings.HasPrefix(s.resp.Header.Get("Content-Type"), "text/plain") {
		output += "\n[AGENTFM: NO_FILES]\n"
	}
	if got := s.output(); got != output {
		s.t.Errorf("the answer has %d bytes, not %d: …%q, want …%q", len(got), len(output), tail(got), tail(output))
	}
}

// tail is the end of a text, for messages.
func tail(s string) string { return s[max(0, len(s)-200):] }

// ask returns what an agent says to a prompt that ends it at once.
func (g gateway) ask(agent string) (string, error) {
	s, err := g.tryOpen("/v1/chat/completions", map[string]any{
		"model": agent, "stream": true, "messages": []map[string]string{{"role": "user", "content": "now"}},
	}, (*stream).readChat)
	if err != nil {
		return "", err
	}
	<-s.ended
	return strings.TrimSpace(s.output()), s.err
}

// wantAnswer wants an agent to answer a new request with its label.
func (g gateway) wantAnswer(agent, label string) {
	g.t.Helper()
	if got, err := g.ask(agent); got != label || err != nil {
		g.t.Errorf("agent %s says %q (%v), want %q", agent, got, err, label)
	}
}
