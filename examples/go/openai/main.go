// SPDX-License-Identifier: Apache-2.0

// Openai asks a model as OpenAI's API has it: at once, and as the answer comes. OpenAI's own
// library works as well, with the base URL and the key of the client.
//
//	AGENTFM_GATEWAY_URL=http://localhost:8080 go run ./examples/go/openai text-report
package main

import (
	"context"
	"errors"
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
	models, err := c.OpenAI.Models(ctx)
	if err != nil {
		return err
	}
	for _, m := range models {
		fmt.Println(m.ID, m.Engine)
	}
	question := client.ChatRequest{
		Model:    model, // a peer id, an agent's name or a model engine
		Messages: []client.ChatMessage{{Role: "user", Content: "To be, or not to be."}},
	}
	answer, err := c.OpenAI.Chat(ctx, question)
	switch {
	case errors.Is(err, client.ErrModelNotFound):
		return fmt.Errorf("nobody offers %s: %w", model, err)
	case err != nil:
		return err
	}
	fmt.Println(answer.Text(), answer.Usage.TotalTokens, answer.Served.WorkerID)

	stream, err := c.OpenAI.ChatStream(ctx, question)
	if err != nil {
		return err
	}
	for chunk, err := range stream.All() {
		if err != nil {
			return err
		}
		fmt.Print(chunk.Text())
	}
	fmt.Println("\nthe base URL for OpenAI's library:", c.OpenAI.BaseURL())
	return nil
}
