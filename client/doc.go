// SPDX-License-Identifier: Apache-2.0

// Package client is the Go SDK of an AgentFM gateway: it finds workers, runs tasks on
// them, fetches what they leave, speaks OpenAI's API, and receives webhooks.
//
//	c, err := client.New() // of AGENTFM_GATEWAY_URL, with the key in AGENTFM_API_KEY
//	workers, err := c.Workers.List(ctx, client.WorkerFilter{Model: "llama3.2"})
//	result, err := c.Tasks.Run(ctx, client.RunRequest{
//		WorkerID:     workers[0].PeerID,
//		Prompt:       "Draft a leave policy. Save it as policy.md.",
//		ArtifactsDir: "artifacts",
//	})
//	fmt.Println(result.Text, result.Artifacts)
//
// # Choosing a worker
//
// On an open mesh anybody may offer any name. The peer id is the one name that nobody can
// take from another: list, pick, and run by peer id. So [TaskService.Run] and
// [TaskService.Stream] take nothing else. OpenAI's routes and [TaskService.Submit] take a
// model, too: a peer id, an agent's name or a model engine, the first of these that fits.
//
// # Contexts
//
// Every call that waits takes a context, and ends soon after it. A stream ends with its
// context, too; to close a stream stops the agent. Calls that only look something up have a
// limit of their own, see [WithTimeout].
//
// # Errors
//
// Every error is an [*Error], also that of a broken connection or an ended context. Its
// [Kind] says what sort of thing went wrong, its [Code] what the gateway calls it:
//
//	switch {
//	case errors.Is(err, client.ErrMeshOverloaded): // all workers are busy
//	case errors.Is(err, client.CodeTaskEnded):     // the one case of ErrConflict that is meant
//	}
//
// # Retries
//
// What only looks is sent again when the connection breaks or the gateway says 429, 502,
// 503 or 504: see [WithRetries]. What starts work is sent once, since an agent may have run,
// unless the call has an [IdempotencyKey]. [TaskService.Scatter] has retries of its own.
package client
