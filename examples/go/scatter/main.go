// SPDX-License-Identifier: Apache-2.0

// Scatter gives many prompts to many workers. One that fails ends nothing.
//
//	AGENTFM_GATEWAY_URL=http://localhost:8080 go run ./examples/go/scatter text-report
package main

import (
	"context"
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
	if _, err := c.Workers.Wait(ctx, 1, client.WorkerFilter{Model: model, AvailableOnly: true}); err != nil {
		return err
	}
	var prompts []string
	for i := range 12 {
		prompts = append(prompts, fmt.Sprintf("This is document %d.", i))
	}
	results, err := c.Tasks.ScatterByModel(ctx, prompts, client.ScatterByModelOptions{
		Model: model,
		// Those of the three workers whose CPU has the least to do.
		Pick: func(workers []client.Worker) []client.Worker {
			slices.SortFunc(workers, func(a, b client.Worker) int { return int(a.CPUPercent - b.CPUPercent) })
			return workers
		},
		MaxWorkers:     3,
		ScatterOptions: client.ScatterOptions{MaxConcurrency: 4, MaxRetries: 2},
	})
	if err != nil {
		return err
	}
	for i, r := range results {
		if r.Status == client.ScatterSuccess {
			fmt.Printf("[%d] ok (%d bytes) by %.12s...\n", i, len(r.Text), r.WorkerID)
		} else {
			fmt.Printf("[%d] failed: %v\n", i, r.Err)
		}
	}
	return nil
}
