// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// TestEvents wants each end of a task to be what a gateway of protocol 2 reads.
func TestEvents(t *testing.T) {
	var b behaviour
	b.run = func(ctx context.Context, task Task) (Exit, error) {
		switch task.Prompt {
		case "code":
			_, _ = io.WriteString(task.Output, "half")
			return Exit{Code: 3}, nil
		case "oom":
			return Exit{Code: 137, Reason: "killed:\nout of memory"}, nil
		case "killed":
			return Exit{Code: 139}, nil
		case "signal":
			return Exit{Code: -1, Reason: "signal: killed"}, nil
		case "memory":
			return Exit{Code: 137, Cause: wire.CauseOOMKilled}, nil
		case "flood":
			return Exit{}, fmt.Errorf("reading: %w", &Failure{wire.CauseOutputLimit, errors.New("secret size")})
		case "image":
			return Exit{}, &Failure{wire.CauseImageUnavailable, errors.New("secret image")}
		case "digest":
			return Exit{}, &Failure{wire.CauseDigestMismatch, errors.New("secret digest")}
		case "error":
			return Exit{}, errors.New("secret path /etc/x")
		case "time":
			<-ctx.Done()
			return Exit{}, ctx.Err()
		default:
			return echo(ctx, task)
		}
	}
	a := ready(t, start(t, b, map[string]any{"timeout": "100ms"}))
	g := newGateway(t, a)
	for prompt, want := range map[string]struct {
		out, err string
		cause    wire.Cause
	}{
		"hello\r\n":                 {"hello\r\n", "", ""},
		"event: exit\ndata: {}\n\n": {"event: exit\ndata: {}\n\n", "", ""},
		"\xff\xfe":                  {"", "request", ""}, // JSON cannot have it
		"":                          {"", "said nothing and left no files", wire.CauseEmpty},
		strings.Repeat("ü", 50_000): {strings.Repeat("ü", 50_000), "", ""},
		"code":                      {"half", "exit status 3", wire.CauseExitCode},
		"oom":                       {"", "killed: out of memory", wire.CauseSignal},
		"killed":                    {"", "exit status 139", wire.CauseSignal},
		"signal":                    {"", "signal: killed", wire.CauseSignal},
		"memory":                    {"", "exit status 137", wire.CauseOOMKilled},
		"flood":                     {"", "it said more than it may", wire.CauseOutputLimit},
		"image":                     {"", "its image is not there", wire.CauseImageUnavailable},
		"digest":                    {"", "its image is not the one", wire.CauseDigestMismatch},
		"error":                     {"", "the worker's log says why", wire.CauseRuntimeError},
		"time":                      {"", "timed out after 100ms", wire.CauseDeadline},
		"a\x00b":                    {"", "request", ""},
		strings.Repeat("x", wire.MaxArgumentPrompt+1): {"", "request", ""},
	} {
		if strings.Contains(prompt, "\xff") {
			continue
		}
		out, files, err := g.run(t, "t1", prompt)
		if out != want.out || files != nil || (err != nil) != (want.err != "") || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%.20q: got %.100q, %v, %v; want %.100q, %q", prompt, out, files, err, want.out, want.err)
		}
		if e, ok := errors.AsType[*wire.AgentError](err); ok && e.Cause != want.cause || !ok && want.cause != "" {
			t.Errorf("%.20q: the cause is %v, want %q", prompt, e, want.cause)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: the gateway learns %v", prompt, err)
		}
	}
	idle(t, a)
	await.Until(t, "the folders are gone", func() bool { return len(leftovers(t)) == 0 })
}

// TestRequestOfATask wants an agent to get the request that its prompt was made of.
func TestRequestOfATask(t *testing.T) {
	const request = `{"messages":[]}`
	got := make(chan string, 1)
	a := ready(t, start(t, behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		got <- task.Request
		return Exit{}, nil
	}}, nil))
	g := newGateway(t, a)
	body, err := wire.EncodeTaskOf("t1", "hi", []byte(request))
	if err != nil {
		t.Fatal(err)
	}
	if r := g.do(t, "POST", wire.PathTasks, string(body)); r.StatusCode != 200 || <-got != request {
		t.Errorf("got %d %s", r.StatusCode, r.body)
	}
	if r := g.do(t, "POST", wire.PathTasks, frame(t, "t1", "hi")); r.StatusCode != 200 || <-got != "" {
		t.Errorf("got %d %s", r.StatusCode, r.body)
	}
}
