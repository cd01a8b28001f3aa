// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"testing"
)

// Routes of these tests.
const (
	chat Routes = 1 << iota
	embeddings
	speech
)

// TestModels wants a worker to be found by each of its models, and by none that
// it does not offer any more.
func TestModels(t *testing.T) {
	r := newRouter(
		Worker{Peer: "p1", Agent: "box", Model: "a", Models: []string{"b", "A", "c"}},
		Worker{Peer: "p2", Agent: "b", Model: "a"},
		Worker{Peer: "p3", Agent: "other", Model: "c"},
	)
	find := func(model, want string, tier Tier, wantErr error) {
		t.Helper()
		slot, err := r.Acquire(&Request{Model: model}, first{})
		if !errors.Is(err, wantErr) || slot.Worker.Peer != want || err == nil && slot.Tier != tier {
			t.Errorf("%s: got %q by its %v, %v; want %q by its %v, %v", model, slot.Worker.Peer, slot.Tier, err, want, tier, wantErr)
		}
		slot.Release(Succeeded)
	}
	find("a", "p1", TierModel, nil)
	find("B", "p2", TierAgent, nil) // names go before models
	find("c", "p1", TierModel, nil)
	find("box", "p1", TierAgent, nil)

	r.Update(Worker{Peer: "p1", Agent: "box", Model: "d", Models: []string{"b"}, MaxTasks: 4, MaxPrompt: 1})
	find("c", "p3", TierModel, nil)
	find("d", "p1", TierModel, nil)
	find("a", "p2", TierModel, nil)
	r.Remove("p2")
	find("b", "p1", TierModel, nil)
	r.Remove("p1")
	find("b", "", TierModel, ErrNoMatch)
	if len(r.names) != 2 { // of p3
		t.Errorf("%d names are left: %v", len(r.names), r.names)
	}
}

// TestModelRights wants the right to one of a worker's models to be no right to
// another.
func TestModelRights(t *testing.T) {
	r := newRouter(Worker{Peer: "p1", Agent: "box", Model: "a", Models: []string{"b"}})
	onlyB := func(_, _, model string) bool { return model == "b" }
	for model, want := range map[string]error{"b": nil, "B": nil, "a": ErrNoMatch, "box": ErrNoMatch, "p1": ErrNoMatch} {
		slot, err := r.Acquire(&Request{Model: model, May: onlyB}, first{})
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", model, err, want)
		}
		slot.Release(Succeeded)
	}
}

// TestRoutes wants requests to go only to workers that serve them.
func TestRoutes(t *testing.T) {
	r := newRouter(
		Worker{Peer: "native", Model: "m", Routes: chat, MaxTasks: 1},
		Worker{Peer: "text", Model: "m"},
		Worker{Peer: "vectors", Model: "v", Routes: embeddings},
	)
	for _, c := range []struct {
		name string
		req  Request
		want string
		err  error
	}{
		{"a task goes to anyone", Request{Model: "v"}, "vectors", nil},
		{"a chat that text agents cannot serve", Request{Model: "m", Routes: chat}, "native", nil},
		{"a chat", Request{Model: "m", Routes: chat, Text: true, Exclude: []string{"native"}}, "text", nil},
		{"a chat for a server without chats", Request{Model: "v", Routes: chat, Text: true}, "", ErrNoRoute},
		{"a chat for text agents only", Request{Model: "m", Text: true}, "text", nil},
		{"a text for a server", Request{Model: "v", Text: true}, "", ErrNoRoute},
		{"either route", Request{Model: "v", Routes: chat | embeddings}, "vectors", nil},
		{"a route of nobody", Request{Model: "m", Routes: speech}, "", ErrNoRoute},
		{"a long chat is not long to a server", Request{Model: "m", Routes: chat, Text: true, PromptSize: 1000}, "native", nil},
		{"a long chat for a text agent", Request{Model: "m", Routes: speech, Text: true, PromptSize: 1000}, "", ErrPromptTooLong},
		{"whoever serves it is excluded", Request{Model: "m", Routes: chat, Exclude: []string{"native"}}, "", ErrExcluded},
	} {
		slot, err := r.Acquire(&c.req, first{})
		if !errors.Is(err, c.err) || slot.Worker.Peer != c.want {
			t.Errorf("%s: got %q, %v; want %q, %v", c.name, slot.Worker.Peer, err, c.want, c.err)
		}
		slot.Release(Succeeded)
	}

	held, err := r.Acquire(&Request{Peer: "native"}, first{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Acquire(&Request{Model: "m", Routes: chat}, first{}); !errors.Is(err, ErrBusy) {
		t.Errorf("the only server is full: got %v, want %v", err, ErrBusy)
	}
	slot, err := r.Acquire(&Request{Model: "m", Routes: chat, Text: true}, first{})
	if err != nil || slot.Worker.Peer != "text" {
		t.Errorf("a full server: got %q, %v; want the text agent", slot.Worker.Peer, err)
	}
	slot.Release(Succeeded)
	held.Release(Succeeded)
}
