// SPDX-License-Identifier: Apache-2.0

package command

import (
	"io"
	"net/http"
	"strings"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// TestComplete wants a shell to be offered what there is, nothing of what it could run, and no
// files where none are wanted.
func TestComplete(t *testing.T) {
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/workers":
			_, _ = io.WriteString(w, `{"agents":[{"peer_id":"12D3A","name":"HR $(x)","model":"llama3.2:1b","hardware":"x"},{"peer_id":"12D3B","name":"b","model":"$(touch /tmp/x)"},
				{"peer_id":"12D3C","name":"c","model":"llama3.2:1b"},{"peer_id":"12D3D","model":"-rf"},{"peer_id":"12D3E","model":"a b"}]}`)
		case "/api/tasks":
			_, _ = io.WriteString(w, `{"tasks":[`+taskJSON+`,`+otherTaskJSON+`]}`)
		case "/v1/peers/12D3A/log":
			_, _ = io.WriteString(w, `{"entries":[{"kind":"Comment","text_cid":"1220ab"},{"kind":"Rating"}]}`)
		default:
			http.NotFound(w, r)
		}
	})
	const files, none, folders = "0", "4", "16"
	for _, c := range []struct{ line, want string }{
		{"run --model ", "llama3.2:1b HR ??x?|:" + none},
		{"run --model=", "llama3.2:1b HR ??x?|:" + none},
		{"workers -m ", "llama3.2:1b HR ??x?|:" + none},
		{"chat --peer ", "12D3A HR ??x? llama3.2:1b|12D3B b ??touch /tmp/x?|12D3C c llama3.2:1b|12D3D  -rf|12D3E  a b|:" + none},
		{"run --model m hello ", ":" + none},
		{"run --files ", ":" + folders},
		{"scatter --model m ", ":" + files},
		{"tasks show ", taskID + " failed HR|" + otherTaskID + " running HR|:" + none},
		{"tasks show x ", ":" + none},
		{"webhooks redeliver x ", taskID + " failed HR|" + otherTaskID + " running HR|:" + none},
		{"tasks list --status ", "queued|running|completed|failed|cancelled|:" + none},
		{"webhooks list --status ", "pending|delivered|disabled|given_up|:" + none},
		{"peers get ", "12D3A HR ??x? llama3.2:1b|12D3B b ??touch /tmp/x?|12D3C c llama3.2:1b|12D3D  -rf|12D3E  a b|:" + none},
		{"peers text 12D3A ", "1220ab|:" + none},
		{"genkey ", "swarm|api|:" + none},
		{"id ", ":" + files},
		{"test --config ", ":" + files},
		{"tasks show --gateway http://127.0.0.1:1 ", ":" + none},
	} {
		out, _, err := run(append([]string{"__complete"}, strings.Split(c.line, " ")...)...)
		got := strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(out), "\n", "|"), "\t", " ")
		if got != c.want || err != nil {
			t.Errorf("%s: %q, %v", c.line, got, err)
		}
	}
	if out, _, err := run("__complete", "task"); !strings.HasPrefix(out, "tasks\tLists, shows") || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// all calls f with each command.
func all(f func(cmd *cobra.Command)) {
	root := &cobra.Command{Use: "agentfm"}
	caddycmd.Commands()["agentfm"].CobraFunc(root)
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		f(cmd)
		for _, below := range cmd.Commands() {
			walk(below)
		}
	}
	walk(root)
}

// TestFlags wants JSON from every command that does something.
func TestFlags(t *testing.T) {
	all(func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.HasSubCommands() && cmd.Name() != "peers" {
			return
		}
		if cmd.Flag("json") == nil {
			t.Errorf("%s has no --json", cmd.CommandPath())
		}
		if (cmd.Flag("gateway") == nil) != (cmd.Flag("api-key-file") == nil) {
			t.Errorf("%s has one of --gateway and --api-key-file alone", cmd.CommandPath())
		}
	})
}
