// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Where a gateway is, and the key for it, when no flag says so.
const (
	gatewayEnv = "AGENTFM_GATEWAY_URL"
	keyEnv     = "AGENTFM_API_KEY"
)

// answerWait is how long the beginning of an answer may take.
const answerWait = time.Minute

// askGateway gives a command the flags of those that use the API of a gateway.
func askGateway(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("gateway", "", "URL of the gateway, such as https://gateway.example.com (default: $"+gatewayEnv+")")
	cmd.Flags().String("api-key-file", "", "File with the API key (default: the key in $"+keyEnv+")")
	cmd.SilenceUsage = true
	return cmd
}

// gatewayClient uses the API of a gateway.
type gatewayClient struct {
	base, key string
	http      *http.Client
}

// newGatewayClient returns one as the flags of a command say.
func newGatewayClient(cmd *cobra.Command) (*gatewayClient, error) {
	base, name := cmd.Flag("gateway").Value.String(), "--gateway"
	if base == "" {
		base, name = os.Getenv(gatewayEnv), gatewayEnv
	}
	if base == "" {
		return nil, fmt.Errorf("which gateway? Set --gateway, or %s, to its URL, such as https://gateway.example.com", gatewayEnv)
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s: want the URL of a gateway, such as https://gateway.example.com", name)
	}
	key, err := apiKey(cmd.Flag("api-key-file").Value.String())
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = answerWait
	return &gatewayClient{base: strings.TrimRight(base, "/"), key: key, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// apiKey returns the key in a file, or else in the environment; empty for none.
func apiKey(file string) (string, error) {
	if file == "" {
		return strings.TrimSpace(os.Getenv(keyEnv)), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("--api-key-file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return "", fmt.Errorf("--api-key-file: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("--api-key-file: %s does not hold a key and nothing else", file)
	}
	return key, nil
}

// gatewayError is an answer of a gateway that is an error.
type gatewayError struct {
	status        int
	code, message string
}

// Error implements error.
func (e *gatewayError) Error() string {
	text := fmt.Sprintf("the gateway says: %s (%d %s)", plain(e.message), e.status, plain(e.code))
	switch e.status {
	case http.StatusUnauthorized:
		text += "; put a key that it accepts into " + keyEnv + ", or a file for --api-key-file"
	case http.StatusForbidden:
		text += "; use a key that may run tasks"
	}
	return text
}

// do sends a request and returns the answer when it is a success. The caller closes its body.
func (g *gatewayClient) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, g.base+path, nil)
	if err != nil {
		return nil, err
	}
	if g.key != "" {
		req.Header.Set("Authorization", "Bearer "+g.key)
	}
	resp, err := g.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the gateway: %w", plainError{err})
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	if to := resp.Header.Get("Location"); resp.StatusCode >= 300 && resp.StatusCode < 400 && to != "" {
		return nil, fmt.Errorf("%s is elsewhere, at %s: name that gateway", g.base, plain(to))
	}
	var v struct {
		Error struct{ Message, Code string }
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(b, &v) != nil || v.Error.Code == "" {
		return nil, fmt.Errorf("%s has no AgentFM gateway, or another server before it answers: status %d", g.base, resp.StatusCode)
	}
	return nil, &gatewayError{resp.StatusCode, v.Error.Code, v.Error.Message}
}

// ask sends a request and reads the answer, which is JSON, into v. It also returns it as it
// came.
func (g *gatewayClient) ask(ctx context.Context, method, path string, v any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*answerWait)
	defer cancel()
	resp, err := g.do(ctx, method, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of the gateway: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("%s has no AgentFM gateway: its answer is not JSON", g.base)
	}
	return b, nil
}

// taskPath returns the path of a task.
func taskPath(id string) (string, error) {
	if id == "" || len(id) > 128 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" || strings.Trim(id, ".") == "" {
		return "", errors.New("that is not the id of a task; `tasks list` shows them")
	}
	return "/api/tasks/" + id, nil
}

// withGateway makes the work of a command of its arguments and a gateway. The work ends on
// Ctrl-C.
func withGateway(work func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		g, err := newGatewayClient(cmd)
		if err != nil {
			return err
		}
		defer g.http.CloseIdleConnections()
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
		return work(ctx, cmd, g, args)
	}
}
