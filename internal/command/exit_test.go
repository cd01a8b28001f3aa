// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// TestExitCodes wants the code of each way to end to be that with which Caddy ends, and the
// error to be told once.
func TestExitCodes(t *testing.T) {
	useGateway(t, func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.URL.Path[len(r.URL.Path)-3:])
		problem(w, status, "a_code")
	})
	defer func(f func(*cobra.Command, error) error) { leave = f }(leave)
	leave = realLeave
	for args, want := range map[string]int{
		"tasks show a-409":                          exitFailed,
		"tasks show a-400":                          exitUsage,
		"tasks show a-403":                          exitKey,
		"tasks show a-404":                          exitNotFound,
		"tasks show a-410":                          exitNotFound,
		"tasks show a-500":                          exitGateway,
		"tasks show":                                exitUsage,
		"tasks show a b":                            exitUsage,
		"tasks show a --foo":                        exitUsage,
		"tasks lst":                                 exitUsage,
		"tasks list --limit 0":                      exitUsage,
		"tasks list --gateway x":                    exitUsage,
		"tasks list --api-key-file /does/not/exist": exitUsage,
		"run x":                    exitUsage,
		"run --model m --peer p x": exitUsage,
		"run --model m x --gateway http://127.0.0.1:1": exitGateway,
		"nonsense":                     exitUsage,
		"ping --address 127.0.0.1:1 x": exitGateway,
		"genkey x":                     exitUsage,
		"genkey":                       exitOK,
	} {
		_, notes, err := run(strings.Fields(args)...)
		if got := codeOf(err); got != want {
			t.Errorf("%s: %d, want %d: %v", args, got, want, err)
		}
		if told := strings.Count(notes, "Error: "); told != min(want/2, 1) { // Caddy itself tells the others
			t.Errorf("%s: %q", args, notes)
		}
	}
}

// codeOf returns the code with which Caddy ends after an error.
func codeOf(err error) int {
	if err == nil {
		return exitOK
	}
	if v := reflect.Indirect(reflect.ValueOf(err)); v.Type().String() == "caddycmd.exitError" {
		return int(v.FieldByName("ExitCode").Int())
	}
	return exitFailed
}

// TestExitDocs wants the codes to be documented alike in the help and on the page.
func TestExitDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	help, _, err := run("--help")
	if err != nil {
		t.Fatal(err)
	}
	help = strings.Join(strings.Fields(caddycmd.Commands()["agentfm"].Long+help), " ")
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| (.*) \|$`).FindAllStringSubmatch(string(page), -1)
	if len(rows) != 9 {
		t.Errorf("%d codes", len(rows))
	}
	for _, r := range rows {
		if r[1] > "1" && !strings.Contains(help, r[1]+" "+r[2]) {
			t.Errorf("the help does not have %s: %s", r[1], r[2])
		}
	}
}

// TestKindCodes wants a code for each kind of error that a gateway can be the reason of.
func TestKindCodes(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../client/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "Err") {
			return true
		}
		kind, _ := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if _, ok := kindCodes[client.Kind(kind)]; ok {
			known++
			return true
		}
		switch client.Kind(kind) {
		case client.ErrConflict, client.ErrArtifact, client.ErrProof, client.ErrGateway: // 1
		default:
			t.Errorf("no exit code for %s", v.Names[0].Name)
		}
		return true
	})
	if known < len(kindCodes) {
		t.Errorf("%d of %d", known, len(kindCodes))
	}
	for err, want := range map[error]int{
		nil:               exitOK,
		errors.New("x"):   exitFailed,
		&client.Error{}:   exitFailed,
		usage(errStopped): exitUsage,
		&client.Error{Kind: client.ErrContext, Err: context.Canceled}:         exitInterrupted,
		&client.Error{Kind: client.ErrContext, Err: context.DeadlineExceeded}: exitBusy,
		&client.Error{Kind: client.ErrConnection, Err: dialTimeout(t)}:        exitGateway,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// dialTimeout returns the error of a dial that takes too long, which is one of a deadline, too.
func dialTimeout(t *testing.T) error {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: time.Nanosecond}).Dial("tcp", "127.0.0.1:1")
	if err == nil {
		_ = conn.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return err
}
