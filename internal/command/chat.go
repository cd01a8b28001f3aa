// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// chatCommand is `caddy agentfm chat`.
func chatCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "chat --model <model> | --peer <peer id> [--system <text>] [--prompt <text>]",
		Short: "Talks with a model",
		Long: `
On a terminal, asks for one message after the other and prints the answers as they come.
All that was said is sent each time. Ctrl-C stops an answer; Ctrl-D, or /exit, ends the
chat; /clear begins anew.

With --prompt, or when standard input is not a terminal, there is one message: the flag's,
or all of standard input. The exit status is 0 only when its answer is whole.`,
		Args: cobra.NoArgs,
		RunE: chat,
	})
	whoFlags(cmd)
	cmd.Flags().String("system", "", "What the model is told before all else")
	cmd.Flags().StringP("prompt", "p", "", "The one message")
	cmd.Flags().Int("max-tokens", 0, "Where each answer is cut; 0 is nowhere")
	return cmd
}

// talk is a chat.
type talk struct {
	c       *client.Client
	request client.ChatRequest
	begin   []client.ChatMessage // before all else
	out     io.Writer
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
			return t.ask(ctx, prompt)
		})(cmd, args)
	}
	g, err := newGatewayClient(cmd)
	if err != nil {
		return err
	}
	c, err := g.sdk()
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
var interactive = func(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && terminal(f)
}

// ask sends a message with all that was said, and prints the answer. What is not whole is
// forgotten.
func (t *talk) ask(ctx context.Context, message string) error {
	said := len(t.request.Messages)
	request := t.request
	request.Messages = append(request.Messages[:said:said], client.ChatMessage{Role: "user", Content: message})
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
	lines := bufio.NewScanner(cmd.InOrStdin())
	lines.Buffer(nil, maxPrompt)
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	for {
		fmt.Fprint(notes, "> ")
		if !lines.Scan() {
			fmt.Fprintln(notes)
			return lines.Err()
		}
		switch line := strings.TrimSpace(lines.Text()); line {
		case "":
		case "/exit":
			return nil
		case "/clear":
			t.request.Messages = t.begin
		default:
			if err := t.answer(cmd.Context(), line, interrupts); err != nil {
				fmt.Fprintln(notes, "\n"+plain(explained(err).Error()))
			}
		}
	}
}

// errStopped says that somebody stopped an answer.
var errStopped = errors.New("stopped")

// answer is ask, until there is an interrupt. One from before counts for nothing.
func (t *talk) answer(ctx context.Context, message string, interrupts <-chan os.Signal) error {
	if ctx == nil {
		ctx = context.Background()
	}
	select {
	case <-interrupts:
	default:
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-interrupts:
			cancel(errStopped)
		case <-ctx.Done():
		}
	}()
	err := t.ask(ctx, message)
	stopped := context.Cause(ctx) == errStopped
	cancel(nil)
	<-watched
	if stopped && err != nil {
		return errStopped
	}
	return err
}
