// SPDX-License-Identifier: Apache-2.0

// Webhook submits a task, is told of its end, and fetches what it has left. The secret is in
// AGENTFM_WEBHOOK_SECRET, here and at the gateway, which must be able to reach WEBHOOK_URL:
// on one machine it needs AGENTFM_WEBHOOK_ALLOW_PRIVATE=1.
//
//	WEBHOOK_ADDRESS=127.0.0.1:8000 WEBHOOK_URL=http://127.0.0.1:8000/ go run ./examples/go/webhook text-report
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/Agent-FM/caddy-agentfm/client"
)

func main() {
	if err := run(context.Background(), os.Args[len(os.Args)-1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, model string) error {
	c, err := client.New()
	if err != nil {
		return err
	}
	told := make(chan client.WebhookPayload, 1)
	server := &http.Server{
		Addr: os.Getenv("WEBHOOK_ADDRESS"), ReadTimeout: 15 * time.Second,
		Handler: &client.WebhookHandler{Callback: func(_ *http.Request, p client.WebhookPayload) error {
			select {
			case told <- p:
			default: // one is enough for this example
			}
			return nil
		}},
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	defer server.Close()
	if _, err := c.Workers.Wait(ctx, 1, client.WorkerFilter{Model: model}); err != nil {
		return err
	}
	ack, err := c.Tasks.Submit(ctx, client.SubmitRequest{Model: model, Prompt: "To be, or not to be.", WebhookURL: os.Getenv("WEBHOOK_URL")})
	if err != nil {
		return err
	}
	fmt.Println("queued task", ack.TaskID)
	select {
	case p := <-told:
		fmt.Printf("task %s -> %s, signed %s\n", p.TaskID, p.Status, p.Signed)
	case err := <-failed:
		return err
	case <-time.After(time.Minute):
		return errors.New("nobody has told of the end")
	}
	output, err := c.Tasks.Output(ctx, ack.TaskID)
	if err != nil {
		return err
	}
	files, err := c.Tasks.Artifacts(ctx, ack.TaskID, "artifacts/"+ack.TaskID)
	if err != nil {
		return err
	}
	fmt.Println(output.Text, files)
	return nil
}
