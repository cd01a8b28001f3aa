// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/client"
	"github.com/Agent-FM/caddy-agentfm/client/localgateway"
)

// TestEnvironment wants a gateway to do what its environment says, by the names that AgentFM
// has for it. AGENTFM_ALLOW_UNAUTH_PUBLIC, which needs another network, has its test beside
// the handler.
func TestEnvironment(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	report, err := filepath.Abs(filepath.Join(root, reportScript))
	if err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	agent := "\t\tagent report {\n\t\t\tname Report\n\t\t\tmodel text-report\n\t\t\tmax_cpu off\n\t\t\truntime process {\n\t\t\t\tcommand " + sh + " " + report + "\n\t\t\t\tprompt stdin\n\t\t\t}\n\t\t}"
	plain := localgateway.DefaultCaddyfile("", agent)
	start := func(t *testing.T, config string, env ...string) *client.Client {
		t.Helper()
		gw, err := localgateway.Start(t.Context(), localgateway.Options{
			Program: program, Caddyfile: config, Env: env, StartTimeout: patience, StopTimeout: patience,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := gw.Stop(); err != nil {
				t.Error(err)
			}
		})
		c, err := gw.Client(client.WithoutAPIKey())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	list := func(c *client.Client, opts ...client.Option) error {
		c, err := c.With(opts...)
		if err != nil {
			return err
		}
		_, err = c.Workers.List(t.Context(), client.WorkerFilter{})
		return err
	}
	submit := func(t *testing.T, c *client.Client) error {
		t.Helper()
		if _, err := c.Workers.Wait(t.Context(), 1, client.WorkerFilter{AvailableOnly: true}); err != nil {
			t.Fatal(err)
		}
		_, err := c.Tasks.Submit(t.Context(), client.SubmitRequest{Model: "text-report", Prompt: "x", WebhookURL: "http://127.0.0.1:9999/"})
		return err
	}
	t.Run("AGENTFM_API_KEYS", func(t *testing.T) {
		config := strings.Replace(plain, "\tagentfm\n}\n", "\tagentfm {\n\t\tapi_keys {env.AGENTFM_API_KEYS}\n\t}\n}\n", 1)
		c := start(t, config, "AGENTFM_API_KEYS=another-key-of-sixteen,"+testKey)
		if err := errors.Join(list(c, client.WithAPIKey(testKey)), list(c, client.WithAPIKey("another-key-of-sixteen"))); err != nil {
			t.Error(err)
		}
		for _, opt := range []client.Option{client.WithoutAPIKey(), client.WithAPIKey("a-third-key-of-nobody")} {
			if err := list(c, opt); !errors.Is(err, client.ErrAuthentication) {
				t.Error(err)
			}
		}
	})
	t.Run("AGENTFM_WEBHOOK_ALLOW_PRIVATE", func(t *testing.T) {
		if err := submit(t, start(t, plain)); !errors.Is(err, client.CodeURLNotAllowed) {
			t.Error(err)
		}
		if err := submit(t, start(t, plain, "AGENTFM_WEBHOOK_ALLOW_PRIVATE=1")); err != nil {
			t.Error(err)
		}
	})
}
