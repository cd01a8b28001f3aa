// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// TestNew wants a server to be reached through the dial function alone, and to be
// looked after when somebody says so.
func TestNew(t *testing.T) {
	f := newFake(t)
	var dials atomic.Int64
	r := New(Settings{
		Port: 1, // nobody is there
		Dial: func(ctx context.Context) (net.Conn, error) {
			dials.Add(1)
			return new(net.Dialer).DialContext(ctx, "tcp", f.Listener.Addr().String())
		},
		Rename: map[string]string{"mine": "first"},
		Logger: zap.NewNop(),
	})
	if err := r.Validate(); err != nil || dials.Load() != 0 {
		t.Fatalf("%v, %d connections", err, dials.Load())
	}
	prepare(t, r, "mine")
	if got := offers(r); got != "mine second"+chats {
		t.Errorf("offers %s", got)
	}
	resp, body := post(t, gateway(t, r), "/v1/chat/completions", `{"model":"mine"}`)
	if resp.StatusCode != http.StatusOK || body != `{"ok":true}` || dials.Load() == 0 {
		t.Errorf("got %d %s by %d connections", resp.StatusCode, body, dials.Load())
	}
	f.set(func(f *fake) { f.models = []string{"first", "third"} })
	r.Look()
	await.Until(t, "the new model", func() bool { return offers(r) == "mine third"+chats })
}

// TestNewGivesNoAdvice wants no options to be named that this module does not have.
func TestNewGivesNoAdvice(t *testing.T) {
	for name, status := range map[string]int{"key": 401, "redirect": 307, "path": 404} {
		f := newFake(t)
		f.list = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
		r := New(Settings{Port: 1, Logger: zap.NewNop(), Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", f.Listener.Addr().String())
		}})
		_, err := r.Prepare(t.Context(), worker.Agent{})
		if err == nil || strings.Contains(err.Error(), "base_url") || strings.Contains(err.Error(), "api_key") {
			t.Errorf("%s: %v", name, err)
		}
		r.transport.CloseIdleConnections()
	}
	r := New(Settings{Port: 1, Logger: zap.NewNop(), Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("no way") }})
	if _, err := r.Prepare(t.Context(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), "no way") {
		t.Errorf("got %v", err)
	}
}
