// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// gateway is one that runs while an example does; yours has an address of its own.
func gateway() *httptest.Server {
	answers := map[string]string{
		"/api/workers": `{"agents":[{"peer_id":"12D3KooWA","author":"ann","name":"HR","status":"AVAILABLE","hardware":"llama3.2 (CPU: 8 Cores)",
			"max_tasks":2,"online":true,"dispatch_allowed":true,"gpu_usage_pct":70},{"peer_id":"12D3KooWB","name":"HR","status":"AVAILABLE",
			"hardware":"llama3.2 (CPU: 4 Cores)","max_tasks":1,"online":true,"dispatch_allowed":true,"gpu_usage_pct":10}]}`,
		"/api/execute":         "Leave is granted.\n[AGENTFM: NO_FILES]\n",
		"/v1/chat/completions": `data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}` + "\n\n" + `data: {"choices":[{"index":0,"delta":{"content":"!"}}]}` + "\n\ndata: [DONE]\n\n",
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/chat/completions" {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"error":{"message":"you have no task of this id","code":"task_not_found"}}`
		}
		_, _ = w.Write([]byte(answer))
	}))
}

// Discover, pick by peer id, dispatch.
func Example() {
	gw := gateway()
	defer gw.Close()
	ctx := context.Background()
	c, err := client.New(client.WithBaseURL(gw.URL), client.WithAPIKey("your-key"))
	if err != nil {
		fmt.Println(err)
		return
	}
	workers, err := c.Workers.List(ctx, client.WorkerFilter{Model: "llama3.2", AvailableOnly: true})
	if err != nil || len(workers) == 0 {
		fmt.Println("nobody is there:", err)
		return
	}
	result, err := c.Tasks.Run(ctx, client.RunRequest{WorkerID: workers[0].PeerID, Prompt: "Draft a leave policy."})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(result.Text)
	// Output: Leave is granted.
}

// The output as it comes. To leave the loop closes the stream, and stops the agent.
func ExampleTaskService_Stream() {
	gw := gateway()
	defer gw.Close()
	c, _ := client.New(client.WithBaseURL(gw.URL), client.WithoutAPIKey())
	stream, err := c.Tasks.Stream(context.Background(), client.RunRequest{WorkerID: "12D3KooWA", Prompt: "…"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for chunk, err := range stream.All() {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s: %q\n", chunk.Kind, chunk.Text)
	}
	// Output:
	// text: "Leave is granted.\n"
	// marker: "[AGENTFM: NO_FILES]"
}

// The worker whose GPU has the least to do gets all the prompts.
func ExampleTaskService_ScatterByModel() {
	gw := gateway()
	defer gw.Close()
	c, _ := client.New(client.WithBaseURL(gw.URL), client.WithoutAPIKey())
	results, err := c.Tasks.ScatterByModel(context.Background(), []string{"one", "two"}, client.ScatterByModelOptions{
		Model: "llama3.2",
		Pick: func(workers []client.Worker) []client.Worker {
			slices.SortFunc(workers, func(a, b client.Worker) int { return int(a.GPUPercent - b.GPUPercent) })
			return workers[:1]
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, r := range results {
		fmt.Println(i, r.Status, r.WorkerID)
	}
	// Output:
	// 0 success 12D3KooWB
	// 1 success 12D3KooWB
}

func ExampleOpenAIService_ChatStream() {
	gw := gateway()
	defer gw.Close()
	c, _ := client.New(client.WithBaseURL(gw.URL), client.WithoutAPIKey())
	stream, err := c.OpenAI.ChatStream(context.Background(), client.ChatRequest{
		Model: "llama3.2", Messages: []client.ChatMessage{{Role: "user", Content: "hi"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for chunk, err := range stream.All() {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Print(chunk.Text())
	}
	// Output: Hello!
}

// Every error is an *Error, and is found by its kind and by its code.
func ExampleError() {
	gw := gateway()
	defer gw.Close()
	c, _ := client.New(client.WithBaseURL(gw.URL), client.WithoutAPIKey())
	_, err := c.Tasks.Get(context.Background(), "task_1")
	fmt.Println(errors.Is(err, client.ErrNotFound), errors.Is(err, client.CodeTaskNotFound), errors.Is(err, client.ErrConnection))
	if e, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(e.Status, e.Message)
	}
	// Output:
	// true true false
	// 404 you have no task of this id
}

// A receiver for the webhooks of a gateway.
func ExampleWebhookHandler() {
	http.Handle("/agentfm", &client.WebhookHandler{
		Secrets: []string{"the secret of the gateway"},
		Callback: func(_ *http.Request, p client.WebhookPayload) error {
			fmt.Println(p.TaskID, p.Status)
			return nil
		},
	})
}
