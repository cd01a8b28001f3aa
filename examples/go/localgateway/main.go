// SPDX-License-Identifier: Apache-2.0

// Localgateway starts a gateway with an agent of its own, asks it, and leaves nothing.
//
//	go build -o agentfm ./xcaddy && go run ./examples/go/localgateway ./agentfm
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/Agent-FM/caddy-agentfm/client"
	"github.com/Agent-FM/caddy-agentfm/client/localgateway"
)

// agent is an agent that says what it is told, also while this machine is busy.
const agent = `
		agent echo {
			name Echo
			model echo
			max_cpu off
			runtime process {
				command cat
				prompt stdin
			}
		}`

func main() {
	if err := run(context.Background(), os.Args[len(os.Args)-1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, program string) (err error) {
	const key = "a-key-of-this-example"
	gw, err := localgateway.Start(ctx, localgateway.Options{
		Program: program, APIKey: key, Caddyfile: localgateway.DefaultCaddyfile(key, agent),
	})
	if err != nil {
		return err
	}
	defer func() {
		if stopped := gw.Stop(); err == nil {
			err = stopped
		}
	}()
	c, err := gw.Client()
	if err != nil {
		return err
	}
	workers, err := c.Workers.Wait(ctx, 1, client.WorkerFilter{Model: "echo", AvailableOnly: true})
	if err != nil {
		return err
	}
	result, err := c.Tasks.Run(ctx, client.RunRequest{WorkerID: workers[0].PeerID, Prompt: "hello from " + gw.URL()})
	if err != nil {
		return err
	}
	fmt.Print(result.Text)
	return nil
}
