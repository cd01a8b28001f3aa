// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// constants are the values of the constants in codes.go.
func constants(t *testing.T) map[string]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			if lit, ok := v.Values[0].(*ast.BasicLit); ok {
				s, _ := strconv.Unquote(lit.Value)
				found[s] = true
			}
		}
		return true
	})
	return found
}

var (
	errorRow = regexp.MustCompile(`(?m)^\| \d{3} \| ([^|]*) \|`)
	taskRow  = regexp.MustCompile("(?m)^\\| (`[^|]*`) \\| [^|]* \\|$")
	quoted   = regexp.MustCompile("`([a-z_]+)`")
)

// TestCodes wants a constant for every code that the documentation has.
func TestCodes(t *testing.T) {
	known := constants(t)
	for page, row := range map[string]*regexp.Regexp{"errors.md": errorRow, "tasks.md": taskRow} {
		text, err := os.ReadFile("../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		from, to := "| status | code", "\n\n"
		if page == "tasks.md" {
			from = "| `reason` | when"
		}
		_, table, _ := strings.Cut(string(text), from)
		table, _, _ = strings.Cut(table, to)
		n := 0
		for _, m := range row.FindAllStringSubmatch(table, -1) {
			for _, code := range quoted.FindAllStringSubmatch(m[1], -1) {
				if n++; !known[code[1]] {
					t.Errorf("%s: no constant for %s", page, code[1])
				}
			}
		}
		if n < 15 {
			t.Errorf("%s: %d codes", page, n)
		}
	}
}

// TestKinds wants each answer to have its kind: the exceptions of the Python SDK, and more.
func TestKinds(t *testing.T) {
	for _, c := range []struct {
		status int
		code   Code
		want   Kind
	}{
		{401, CodeUnauthorized, ErrAuthentication},
		{401, CodeInvalidAPIKey, ErrAuthentication},
		{401, CodeBadSignature, ErrInvalidRequest},
		{403, CodeInsufficientScope, ErrPermission},
		{403, CodeCrossOrigin, ErrPermission},
		{403, CodeNoAuthentication, ErrPermission},
		{403, CodeForbidden, ErrPermission},
		{403, CodeDispatchRefused, ErrDispatchRefused},
		{500, CodeInternal, ErrInternal},
		{501, "", ErrInternal},
		{404, CodeWorkerNotFound, ErrWorkerNotFound},
		{502, CodeWorkerStreamFailed, ErrWorkerStream},
		{502, CodeWorkerUnreachable, ErrWorkerUnreachable},
		{502, "", ErrConnection},
		{504, "", ErrConnection},
		{404, CodeModelNotFound, ErrModelNotFound},
		{503, CodeMeshOverloaded, ErrMeshOverloaded},
		{503, CodeNoWorkerOnline, ErrMeshOverloaded},
		{503, CodeAsyncCapacity, ErrUnavailable},
		{503, CodeTaskStoreUnavailable, ErrUnavailable},
		{503, CodeLedgerUnavailable, ErrUnavailable},
		{400, CodeInvalidRequest, ErrInvalidRequest},
		{400, CodeModelRequired, ErrInvalidRequest},
		{405, CodeMethodNotAllowed, ErrInvalidRequest},
		{413, CodeRequestTooLarge, ErrInvalidRequest},
		{416, CodeInvalidRequest, ErrInvalidRequest},
		{404, CodeTaskNotFound, ErrNotFound},
		{404, CodeUnknownURL, ErrNotFound},
		{404, "", ErrNotFound},
		{409, CodeTaskEnded, ErrConflict},
		{409, CodeTaskIDInUse, ErrConflict},
		{410, CodeOutputExpired, ErrExpired},
		{410, CodeArtifactsExpired, ErrExpired},
		{410, CodeArtifactsExpired, ErrExpired},
		{409, CodeIdempotencyKeyInUse, ErrConflict},
		{422, CodeIdempotencyKeyReused, ErrConflict},
		{502, CodeArtifactTooLarge, ErrArtifact},
		{503, CodeArtifactStorageFull, ErrUnavailable},
		{507, CodeArtifactStorageFull, ErrArtifact},
		{0, CodeArtifactStorageFull, ErrArtifact},
		{404, CodeWebhookNotFound, ErrNotFound},
		{409, CodeWebhookPending, ErrConflict},
		{429, CodeRateLimited, ErrRateLimited},
		{429, CodeRateLimitExceeded, ErrRateLimited},
		{0, CodeWorkerStreamFailed, ErrWorkerStream},
		{0, CodeMeshOverloaded, ErrMeshOverloaded},
		{0, "something_new", ErrWorkerStream},
		{302, "", ErrProtocol},
	} {
		if got := kindOf(c.status, c.code); got != c.want {
			t.Errorf("%d %s: %s, want %s", c.status, c.code, got, c.want)
		}
	}
}

// TestAnswerError wants all that an answer says to be in the error, in whatever form it is.
func TestAnswerError(t *testing.T) {
	for body, want := range map[string]Error{
		`{"error":{"message":"no","code":"worker_not_found","param":"worker_id","cause":"oom_killed"}}`: {Kind: ErrWorkerNotFound, Code: CodeWorkerNotFound, Message: "no", Param: "worker_id", Cause: "oom_killed"},
		`{"error":{"message":"no","code":null,"param":null}}`:                                           {Kind: ErrNotFound, Message: "no"},
		`{"error":{"message":"no","code":404,"param":["x"]}}`:                                           {Kind: ErrNotFound, Code: "404", Message: "no"},
		`{"error":{}}`:                  {Kind: ErrNotFound, Message: "the gateway does not say what is wrong"},
		`{"error":"no"}`:                {Kind: ErrNotFound, Message: `{"error":"no"}`},
		"bare text\n":                   {Kind: ErrNotFound, Message: "bare text"},
		"":                              {Kind: ErrNotFound, Message: "the gateway answered 404 Not Found"},
		`null`:                          {Kind: ErrNotFound, Message: "null"},
		`[1`:                            {Kind: ErrNotFound, Message: "[1"},
		strings.Repeat("x", maxError+1): {Kind: ErrNotFound, Message: strings.Repeat("x", maxText) + "…"},
	} {
		_, err := fake(t, routes{"/": answer(404, body)}).Health(t.Context())
		want.Status, want.RequestID = 404, "req-1"
		if e, ok := errors.AsType[*Error](err); !ok || *e != want {
			t.Errorf("%.80s: %+v", body, err)
		}
	}
}

// TestIs wants errors to be found by what they are.
func TestIs(t *testing.T) {
	err := fmt.Errorf("doing: %w", &Error{Kind: ErrConflict, Code: CodeTaskEnded, Status: 409, Message: "it has\x1b[2J ended", RequestID: "r1", RetryAfter: time.Second, Err: context.Canceled})
	for target, want := range map[error]bool{
		ErrConflict: true, Code("task_ended"): true, context.Canceled: true,
		ErrNotFound: false, CodeTaskIDInUse: false, Code(""): false, context.DeadlineExceeded: false,
	} {
		if errors.Is(err, target) != want {
			t.Errorf("%v: want %v", target, want)
		}
	}
	if errors.Is(&Error{Kind: ErrProtocol}, Code("")) {
		t.Error("no code is no code")
	}
	if got := err.Error(); got != "doing: agentfm: it has [2J ended (task_ended, status 409, request r1)" {
		t.Errorf("%q", got)
	}
	if ErrWorkerNotFound.Error() != "worker not found" || CodeTaskEnded.Error() != "task_ended" {
		t.Error(ErrWorkerNotFound, CodeTaskEnded)
	}
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeTaskEnded {
		t.Error(e)
	}
}
