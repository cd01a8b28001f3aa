// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// chatCommand is `caddy agentfm chat`.
func chatCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "chat --model <model> | --peer <peer id> [--system <text>] [--prompt <text> [--json]]",
		Short: "Talks with a model",
		Long: `
On a terminal, asks for one message after the other and prints the answers as they come.
All that was said is sent each time. The arrow keys bring back what was typed; lines that
are pasted are one message. Ctrl-C stops an answer; Ctrl-D, or /exit, ends the chat; /clear
begins anew.

With --prompt, or when standard input is not a terminal, there is one message: the flag's,
or all of standard input. The exit status is 0 only when its answer is whole.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE:              chat,
	})
	whoFlags(cmd)
	cmd.Flags().String("system", "", "What the model is told before all else")
	cmd.Flags().StringP("prompt", "p", "", "The one message")
	cmd.Flags().Int("max-tokens", 0, "Where each answer is cut; 0 is nowhere")
	jsonFlag(cmd)
	return cmd
}

// talk is a chat.
type talk struct {
	c       *client.Client
	request client.ChatRequest
	begin   []client.ChatMessage // before all else
	out     io.Writer

	mu   sync.Mutex
	stop context.CancelCauseFunc // of the answer that is being given
}

// chat is the work of chatCommand. While somebody types, Ctrl-C is for the answers.
func chat(cmd *cobra.Command, args []string) error {
	prompt, _ := cmd.Flags().GetString("prompt")
	if prompt != "" || !interactive(cmd.InOrStdin()) {
		return withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, _ []string) error {
			t, err := newTalk(cmd, c)
			if err == nil && prompt == "" {
				prompt, err = promptOf(cmd, nil)
			}
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return t.askWhole(ctx, cmd, prompt)
			}
			return t.ask(ctx, prompt)
		})(cmd, args)
	}
	if asJSON(cmd) {
		return usage(errors.New("--json is for one message: give it with --prompt, or on standard input"))
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	t, err := newTalk(cmd, c)
	if err != nil {
		return err
	}
	return t.loop(cmd)
}

// newTalk returns a chat as the flags say.
func newTalk(cmd *cobra.Command, c *client.Client) (*talk, error) {
	model, peers, err := who(cmd, true)
	if err != nil {
		return nil, err
	}
	if model == "" {
		model = peers[0]
	}
	t := &talk{c: c, request: client.ChatRequest{Model: model}, out: answers(cmd)}
	t.request.MaxTokens, _ = cmd.Flags().GetInt("max-tokens")
	if system, _ := cmd.Flags().GetString("system"); system != "" {
		t.begin = []client.ChatMessage{{Role: "system", Content: system}}
	}
	t.request.Messages = t.begin
	return t, nil
}

// interactive reports whether somebody types what is read. A variable for tests.
var interactive = func(in io.Reader) bool { return terminal(in) }

// with returns the request of a message after all that was said.
func (t *talk) with(message string) client.ChatRequest {
	said := len(t.request.Messages)
	request := t.request
	request.Messages = append(request.Messages[:said:said], client.ChatMessage{Role: "user", Content: message})
	return request
}

// askWhole sends one message and prints the answer as JSON.
func (t *talk) askWhole(ctx context.Context, cmd *cobra.Command, message string) error {
	answer, err := t.c.OpenAI.Chat(ctx, t.with(message))
	if err != nil {
		return err
	}
	return printValue(cmd, answer)
}

// ask sends a message with all that was said, and prints the answer. What is not whole is
// forgotten.
func (t *talk) ask(ctx context.Context, message string) error {
	request := t.with(message)
	stream, err := t.c.OpenAI.ChatStream(ctx, request)
	if err != nil {
		return err
	}
	var answer strings.Builder
	for chunk, err := range stream.All() {
		if err != nil {
			return err
		}
		text := chunk.Text()
		answer.WriteString(text)
		if _, err := io.WriteString(t.out, text); err != nil {
			return err
		}
	}
	if !strings.HasSuffix(answer.String(), "\n") {
		fmt.Fprintln(t.out)
	}
	t.request.Messages = append(request.Messages, client.ChatMessage{Role: "assistant", Content: answer.String()})
	return nil
}

// loop asks for messages until there are no more.
func (t *talk) loop(cmd *cobra.Command) error {
	notes := cmd.ErrOrStderr()
	in := newInput(cmd.InOrStdin(), notes)
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	var watcher sync.WaitGroup
	watcher.Go(func() { t.watch(signals, in, notes, done) })
	defer watcher.Wait()
	defer close(done)
	for {
		message, err := in.message()
		switch {
		case errors.Is(err, errStopped):
			fmt.Fprintln(notes, howToEnd)
			continue
		case err != nil:
			fmt.Fprintln(notes)
			if err == io.EOF {
				return nil
			}
			return err
		}
		switch message := strings.TrimSpace(message); message {
		case "":
		case "/exit":
			return nil
		case "/clear":
			t.request.Messages = t.begin
		default:
			if err := t.answer(message); err != nil {
				fmt.Fprintln(notes, "\n"+plain(explained(err).Error()))
			}
		}
	}
}

// howToEnd is what Ctrl-C says between answers.
const howToEnd = "(Ctrl-D ends the chat)"

// watch stops an answer at each interrupt, and between answers says how the chat ends.
func (t *talk) watch(signals <-chan os.Signal, in input, notes io.Writer, done <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM {
				in.restore()
				os.Exit(128 + int(syscall.SIGTERM))
			}
			if !t.interrupt() {
				fmt.Fprint(notes, "\n"+howToEnd+"\n"+ready)
			}
		case <-done:
			return
		}
	}
}

// errStopped says that somebody stopped an answer.
var errStopped = errors.New("stopped")

// interrupt stops the answer that is being given; false says that there is none.
func (t *talk) interrupt() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stop == nil {
		return false
	}
	t.stop(errStopped)
	return true
}

// stopWith sets what stops the answer; nil for none.
func (t *talk) stopWith(stop context.CancelCauseFunc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop = stop
}

// answer is ask, until there is an interrupt.
func (t *talk) answer(message string) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	t.stopWith(cancel)
	err := t.ask(ctx, message)
	t.stopWith(nil)
	if err != nil && context.Cause(ctx) == errStopped {
		return errStopped
	}
	return err
}
