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
	"syscall"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// askGateway gives a command the flags of those that use the API of a gateway.
func askGateway(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("gateway", "", "URL of the gateway (default: $"+client.EnvGatewayURL+", or "+client.DefaultBaseURL+")")
	cmd.Flags().String("api-key-file", "", "File with the API key (default: the key in $"+client.EnvAPIKey+")")
	cmd.SilenceUsage = true
	return cmd
}

// newClient returns a client of the gateway that the flags of a command name. An agent may
// be silent for as long as it likes.
func newClient(cmd *cobra.Command) (*client.Client, error) {
	opts := []client.Option{client.WithUserAgent("caddy-agentfm")}
	if base := cmd.Flag("gateway").Value.String(); base != "" {
		opts = append(opts, client.WithBaseURL(base))
	}
	if file := cmd.Flag("api-key-file").Value.String(); file != "" {
		key, err := readKey(file)
		if err != nil {
			return nil, err
		}
		opts = append(opts, client.WithAPIKey(key))
	}
	return client.New(opts...)
}

// readKey returns the key in a file.
func readKey(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", usage(fmt.Errorf("--api-key-file: %w", err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return "", usage(fmt.Errorf("--api-key-file: %w", err))
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", usage(fmt.Errorf("--api-key-file: %s does not hold a key and nothing else", file))
	}
	return key, nil
}

// withClient makes the work of a command of its arguments and a client of a gateway. The
// work ends on Ctrl-C.
func withClient(work func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := newClient(cmd)
		if err != nil {
			return err
		}
		defer c.CloseIdleConnections()
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		return explained(work(ctx, cmd, c, args))
	}
}

// explained adds to an error what to do about it.
func explained(err error) error {
	what := ""
	e, _ := errors.AsType[*client.Error](err)
	switch {
	case errors.Is(err, client.ErrAuthentication):
		what = "put a key that the gateway accepts into " + client.EnvAPIKey + ", or a file for --api-key-file"
	case errors.Is(err, client.ErrPermission):
		what = "use a key that may do this"
	case errors.Is(err, client.ErrModelNotFound):
		what = "`models` shows what there is"
	case errors.Is(err, client.ErrConnection), errors.Is(err, client.ErrProtocol),
		e != nil && e.Kind == client.ErrNotFound && e.Code == "": // of no gateway: these say what they have not
		what = "--gateway, or " + client.EnvGatewayURL + ", says where the gateway is"
	default:
		return err
	}
	return fmt.Errorf("%w; %s", err, what)
}
