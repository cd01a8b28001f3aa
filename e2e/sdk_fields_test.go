// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// TestSDKFields wants the types of the Go SDK to have every field that a gateway answers with.
func TestSDKFields(t *testing.T) {
	t.Parallel()
	p := startWith(t, home(t), caddyfile(localMesh, withKey, agent("report", "Text report", "text-report", command(reportScript))),
		[]string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"})
	p.awaitWorkers(1)
	c, ctx := p.sdk(), t.Context()
	peer := p.workerID("Text report")
	rating := 0.5
	receipt, err := c.Peers.Comment(ctx, peer, client.CommentRequest{Text: "x", Rating: &rating, Language: "en"})
	if err != nil {
		t.Fatal(err)
	}
	ack, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: "text-report", Prompt: "x", WebhookURL: "http://127.0.0.1:9/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tasks.Wait(ctx, ack.TaskID); err != nil {
		t.Fatal(err)
	}
	p.await("an attempt to deliver the webhook", func() bool {
		task, err := c.Tasks.Get(ctx, ack.TaskID)
		return err == nil && task.Webhook.Attempts > 0
	})
	for path, get := range map[string]func(context.Context) (any, error){
		"/health":                           func(ctx context.Context) (any, error) { return c.Health(ctx) },
		"/v1/about":                         func(ctx context.Context) (any, error) { return c.About(ctx) },
		"/api/tasks/" + ack.TaskID:          func(ctx context.Context) (any, error) { return c.Tasks.Get(ctx, ack.TaskID) },
		"/v1/models/" + peer:                func(ctx context.Context) (any, error) { return c.OpenAI.Model(ctx, peer) },
		"/v1/peers/" + peer:                 func(ctx context.Context) (any, error) { return c.Peers.Get(ctx, peer) },
		"/v1/peers/" + peer + "/reputation": func(ctx context.Context) (any, error) { return c.Peers.Reputation(ctx, peer) },
		"/v1/peers/" + peer + "/log":        func(ctx context.Context) (any, error) { return c.Peers.LogPage(ctx, peer, 0, 0) },
		"/v1/peers/" + peer + "/proof?entry=" + receipt.LedgerHash: func(ctx context.Context) (any, error) {
			return c.Peers.Proof(ctx, peer, receipt.LedgerHash)
		},
		"/api/workers": func(ctx context.Context) (any, error) {
			workers, err := c.Workers.List(ctx, client.WorkerFilter{})
			return map[string]any{"agents": workers, "success": 0, "online_count": 0, "offline_count": 0}, err
		},
	} {
		var raw, typed any
		p.decode(p.get(path), &raw)
		v, err := get(ctx)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		b, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(b, &typed)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range lost(path, raw, typed) {
			t.Errorf("the SDK does not have %s", field)
		}
	}
}

// lost returns the fields of a JSON value that another does not have.
func lost(path string, from, to any) (fields []string) {
	switch from := from.(type) {
	case map[string]any:
		others, _ := to.(map[string]any)
		for name, value := range from {
			other, ok := others[name]
			if zero := fmt.Sprint(value); !ok && zero != "0" && zero != "" && zero != "false" && zero != "<nil>" && zero != "[]" {
				fields = append(fields, path+" "+name)
			} else if ok {
				fields = append(fields, lost(path+" "+name, value, other)...)
			}
		}
	case []any:
		others, _ := to.([]any)
		for i := range min(len(from), len(others)) {
			fields = append(fields, lost(path, from[i], others[i])...)
		}
	}
	return fields
}
