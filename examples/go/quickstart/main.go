// SPDX-License-Identifier: Apache-2.0

// Quickstart finds a worker, runs a task on it, with the files that it leaves, and then one
// whose answer is printed as it comes.
//
//	AGENTFM_GATEWAY_URL=http://localhost:8080 go run ./examples/go/quickstart text-report
package main

import (
	"context"
	"fmt"
	"log"
	"os"

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
	// Discover: every candidate, with all that is known of it.
	workers, err := c.Workers.Wait(ctx, 1, client.WorkerFilter{Model: model})
	if err != nil {
		return err
	}
	for _, w := range workers {
		fmt.Printf("%.12s... %q load=%d/%d\n", w.PeerID, w.Author, w.CurrentTasks, w.MaxTasks)
	}
	// Pick one, and dispatch by its peer id.
	result, err := c.Tasks.Run(ctx, client.RunRequest{
		WorkerID: workers[0].PeerID, Prompt: "To be, or not to be.", ArtifactsDir: "artifacts",
	})
	if err != nil {
		return err
	}
	fmt.Printf("%s\nDuration: %.1fs\n", result.Text, result.Duration.Seconds())
	for _, path := range result.Artifacts {
		fmt.Println("artifact:", path)
	}
	// The same as it comes.
	stream, err := c.Tasks.Stream(ctx, client.RunRequest{WorkerID: workers[0].PeerID, Prompt: "That is the question."})
	if err != nil {
		return err
	}
	for chunk, err := range stream.All() {
		if err != nil {
			return err
		}
		if chunk.Kind == client.ChunkText {
			fmt.Print(chunk.Text)
		}
	}
	return nil
}
