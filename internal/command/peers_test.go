// SPDX-License-Identifier: Apache-2.0

package command

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// TestPeersCommands looks at what is said of peers, and adds to it.
func TestPeersCommands(t *testing.T) {
	const text = "Quick, and right.\x1b[2J"
	cid := fmt.Sprintf("1220%x", sha256.Sum256([]byte(text)))
	var comment string
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.RequestURI() {
		case "GET /api/workers?include_offline=true", "GET /api/workers":
			_, _ = io.WriteString(w, `{"agents":[{"peer_id":"12D3A","name":"HR\u001b","model":"m","author":"ann","online":true,"status":"AVAILABLE","honesty_score":0.256,"dispatch_allowed":true,"on_probation":true,"max_tasks":2},
				{"peer_id":"12D3B","name":"b","model":"m","honesty_score":-1,"dispatch_refuse_reason":"peer_is_equivocator"}]}`)
		case "GET /v1/peers/12D3A":
			_, _ = io.WriteString(w, `{"peer_id":"12D3A","agent_name":"HR","online":true,"honesty_score":0.5,"dispatch_allowed":false,"dispatch_refuse_reason":"reputation_below_floor","entries_count":2,"is_equivocator":true,"rater_summary":{"verified_raters_count":1,"unverified_raters_count":3}}`)
		case "GET /v1/peers/12D3N":
			_, _ = io.WriteString(w, `{"peer_id":"12D3N","online":true,"honesty_score":0.1,"dispatch_allowed":true,"on_probation":true}`)
		case "GET /v1/peers/12D3A/log?limit=50&offset=0":
			_, _ = io.WriteString(w, `{"entries":[{"kind":"Rating","dimension":"honesty","score":0.5,"context":"a\tb","entry_hash":"ab","rater_peer_id":"12D3R","rater_status":"verified","received_at":"2026-01-02T03:04:05Z"},{"kind":"Comment","text_cid":"`+cid+`","entry_hash":"cd"}]}`)
		case "POST /v1/peers/12D3A/comments/self":
			b, _ := io.ReadAll(r.Body)
			comment = string(b)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"cid":%q,"ledger_hash":"ab"}`, cid)
		case "GET /v1/peers/12D3A/comments/" + cid:
			_, _ = io.WriteString(w, text)
		default:
			problem(w, http.StatusNotFound, "comment_not_found")
		}
	})
	for _, c := range []struct{ args, want string }{
		{"peers list", "online\t0.26\tallowed, on probation\tHR?\tm\tann\t\t12D3A\noffline\t-1.00\trefused peer_is_equivocator\tb\tm\t\t\t12D3B\n"},
		{"peers get 12D3A", "peer\t12D3A\nstatus\tonline\nagent\tHR\nhonesty\t0.50\ndispatch\trefused reputation_below_floor\nentries\t2\nequivocator\tyes\nverified raters\t1\nother raters\t3\n"},
		{"peers get 12D3N", "peer\t12D3N\nstatus\tonline\nhonesty\t0.10\ndispatch\tallowed, on probation\nentries\t0\n"},
		{"peers log 12D3A", "2026-01-02T03:04:05Z\tRating\thonesty 0.50\ta?b\t12D3R\tverified\tab\n\tComment\t" + cid + "\t\t\t\tcd\n"},
		{"peers log 12D3A -n 1", "2026-01-02T03:04:05Z\tRating\thonesty 0.50\ta?b\t12D3R\tverified\tab\n"},
		{"peers comment 12D3A --rating -0.5 --language en Quick, and right.", "cid\t" + cid + "\nentry\tab\n"},
		{"peers text 12D3A " + cid, text + "\n"},
		{"workers", "AVAILABLE\tHR?\tm\t0/2\t0%\tallowed, on probation\tann\t\t12D3A\nOFFLINE\tb\tm\t0/0\t0%\trefused peer_is_equivocator\t\t\t12D3B\n"},
		{"workers --author Ann --wait 1 --available", "AVAILABLE\tHR?\tm\t0/2\t0%\tallowed, on probation\tann\t\t12D3A\n"},
	} {
		if got, _, err := run(strings.Fields(c.args)...); got != c.want || err != nil {
			t.Errorf("%s: %v\n%q, want\n%q", c.args, err, got, c.want)
		}
	}
	if comment != `{"text":"Quick, and right.","language":"en","rating":-0.5}` {
		t.Error(comment)
	}
	for _, args := range []string{"peers list", "peers list --online", "peers get 12D3A", "peers log 12D3A", "peers text 12D3A " + cid, "peers comment 12D3A x", "workers"} {
		got, _, err := run(append(strings.Fields(args), "--json")...)
		if err != nil || !strings.HasPrefix(got, "{") && !strings.HasPrefix(got, "[") || strings.Contains(got, "\x1b") {
			t.Errorf("%s: %q, %v", args, got, err)
		}
	}
	for args, want := range map[string]int{
		"peers comment 12D3A --rating 2 x":           exitUsage,
		"peers comment 12D3A":                        exitUsage, // no text
		"peers log 12D3A -n 0":                       exitUsage,
		"peers text 12D3A 1220":                      exitNotFound,
		"peers get":                                  exitUsage,
		"workers --wait 9 --timeout 10ms":            exitBusy,
		"workers --model m --address 127.0.0.1:1":    exitUsage,
		"workers --gateway x --address 127.0.0.1:1":  exitUsage,
		"workers --address 127.0.0.1:1 --wait 1":     exitUsage,
		"peers list --api-key-file /does/not/exist":  exitUsage,
		"peers list --gateway http://127.0.0.1:1/x/": exitGateway,
	} {
		if _, _, err := run(strings.Fields(args)...); exitCode(err) != want && !strings.Contains(fmt.Sprint(err), "none of the others can be") {
			t.Errorf("%s: %d, want %d: %v", args, exitCode(err), want, err)
		}
	}
}

// TestID wants the peer id of the running node, and of a file.
func TestID(t *testing.T) {
	address := admin(t, map[string]string{"GET /agentfm/about": `{"peer_id":"12D3A","announced":["/ip4/1.2.3.4/tcp/1"],"more":1}`})
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	table := func(on bool, args ...string) (string, error) {
		defer func(f func(any) bool) { terminal = f }(terminal)
		terminal = func(any) bool { return on }
		out, _, err := run(append([]string{"id"}, args...)...)
		return out, err
	}
	for _, c := range []struct {
		table bool
		args  []string
		want  string
	}{
		{false, []string{file}, id.String() + "\n"},
		{false, []string{"--address", address}, "12D3A\n"},
		{true, []string{"--address", address}, "FIELD    VALUE\npeer     12D3A\naddress  /ip4/1.2.3.4/tcp/1/p2p/12D3A\n"},
		{false, []string{file, "--json"}, "{\n  \"peer_id\": \"" + id.String() + "\"\n}\n"},
	} {
		if got, err := table(c.table, c.args...); got != c.want || err != nil {
			t.Errorf("%q: %q, %v", c.args, got, err)
		}
	}
	for _, name := range []string{"/does/not/exist", write(t, "text", "not a key")} {
		if got, err := table(false, name); err == nil || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := table(false, file, "--address", address); exitCode(err) != exitUsage {
		t.Error(err)
	}
}
