// SPDX-License-Identifier: Apache-2.0

// Pick shows three ways to a worker by its peer id, the one name that nobody can take from
// another: browse and pick, fetch by the id, and use an id without a list.
//
//	AGENTFM_GATEWAY_URL=http://localhost:8080 go run ./examples/go/pick text-report
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"

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
	// Browse and pick: the one of these with the least to do.
	workers, err := c.Workers.Wait(ctx, 1, client.WorkerFilter{Model: model, AvailableOnly: true})
	if err != nil {
		return err
	}
	best := slices.MinFunc(workers, func(a, b client.Worker) int { return cmp.Compare(a.CurrentTasks, b.CurrentTasks) })
	fmt.Println("picked", best.PeerID, best.Name)

	// Fetch by the id: is it still there, and what does it offer?
	worker, err := c.Workers.Get(ctx, best.PeerID)
	if err != nil {
		return err
	}
	fmt.Println("fetched", worker.PeerID, worker.Model, worker.Available())

	// Use an id from elsewhere. That it is not online is an error of its own.
	result, err := c.Tasks.Run(ctx, client.RunRequest{WorkerID: best.PeerID, Prompt: "To be, or not to be."})
	switch {
	case errors.Is(err, client.ErrWorkerNotFound):
		return fmt.Errorf("that worker is not online: %w", err)
	case errors.Is(err, client.ErrWorkerUnreachable):
		return fmt.Errorf("it is online, and the gateway cannot reach it: %w", err)
	case errors.Is(err, client.ErrMeshOverloaded):
		return fmt.Errorf("it is full: try again later: %w", err)
	case err != nil:
		return err
	}
	fmt.Printf("%s\nby %s\n", result.Text, result.WorkerID)
	return nil
}
