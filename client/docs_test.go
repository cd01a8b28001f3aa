// SPDX-License-Identifier: Apache-2.0

package client

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// python are the names of the Python SDK that a table of the page must have: its methods, its
// exceptions, and the variables of the environment.
var python = []string{
	"AgentFMClient", "AsyncAgentFMClient", "with_options", "api_key", "aclosing",
	"workers.list", "tasks.run", "tasks.stream", "tasks.submit_async", "tasks.scatter", "tasks.scatter_by_model", "pick",
	"openai.chat.completions.create", "openai.completions", "openai.models",
	"peers.list", "peers.get", "peers.log", "peers.comment_body", "WebhookReceiver", "WebhookPayload", "LocalMeshGateway",

	"AgentFMError", "AuthenticationError", "GatewayConnectionError", "GatewayInternalError", "GatewayProtocolError", "WorkerNotFoundError",
	"WorkerStreamError", "WorkerUnreachableError", "ModelNotFoundError", "MeshOverloadedError", "InvalidRequestError", "ArtifactError",

	"AGENTFM_API_KEY", "AGENTFM_API_KEYS", "AGENTFM_ALLOW_UNAUTH_PUBLIC", "AGENTFM_WEBHOOK_SECRET", "AGENTFM_WEBHOOK_ALLOW_PRIVATE",
}

var (
	tableRow = regexp.MustCompile(`(?m)^\| (.*) \| (.*) \|$`)
	code     = regexp.MustCompile("`([^`]+)`")
	pyName   = regexp.MustCompile(`[A-Za-z_][\w.]*`)
	goName   = regexp.MustCompile(`(?:[a-z]+\.)?[A-Z]\w*(?:\.[A-Z]\w*)*`)
)

// TestPython wants every name of the Python SDK to be in the tables of the page, and every
// name of Go beside it to exist and to be used by a test.
func TestPython(t *testing.T) {
	text, err := os.ReadFile("../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(text), "## From Python")
	page, _, _ = strings.Cut(page, "\n## ")
	there, there2 := namesOf(t, "*.go", false), namesOf(t, "localgateway/*.go", false)
	maps.Copy(there, there2)
	tested := namesOf(t, "*_test.go", true)
	maps.Copy(tested, namesOf(t, "localgateway/*_test.go", true))
	had, names := map[string]bool{}, 0
	for _, row := range tableRow.FindAllStringSubmatch(page, -1) {
		for _, c := range code.FindAllStringSubmatch(row[1], -1) {
			for _, name := range pyName.FindAllString(c[1], -1) {
				had[name] = true
			}
		}
		for _, c := range code.FindAllStringSubmatch(row[2], -1) {
			for _, name := range goName.FindAllString(c[1], -1) {
				if strings.HasPrefix(name, "errors.") || strings.HasPrefix(name, "http.") || strings.Contains(name, "AGENTFM_") {
					continue
				}
				names++
				if rest, ok := strings.CutPrefix(name, "c."); ok {
					onClient(t, rest)
				}
				last := name[strings.LastIndex(name, ".")+1:]
				if !there[last] || !tested[last] {
					t.Errorf("%s is beside %s, and there: %v, used by a test: %v", name, row[1], there[last], tested[last])
				}
			}
		}
	}
	for _, name := range python {
		if !had[name] {
			t.Errorf("the page does not have %s", name)
		}
	}
	if names < 60 {
		t.Errorf("%d names of Go", names)
	}
}

// onClient wants a [Client] to have a path of fields and a method: Tasks.Run.
func onClient(t *testing.T, path string) {
	t.Helper()
	v := reflect.TypeFor[*Client]()
	names := strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		f, ok := v.Elem().FieldByName(name)
		if !ok {
			t.Errorf("a client has no %s", path)
			return
		}
		v = f.Type
	}
	if _, ok := v.MethodByName(names[len(names)-1]); !ok {
		t.Errorf("a client has no %s", path)
	}
}

// namesOf returns the exported names that files have: those that they use in tests, and else
// those that they declare.
func namesOf(t *testing.T, pattern string, used bool) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") != used {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.IsExported() {
				names[id.Name] = true
			}
			return true
		})
	}
	return names
}

// TestDoc wants a comment on every exported name of the package, and on every exported field
// and method but those that say it themselves.
func TestDoc(t *testing.T) {
	for _, pattern := range []string{"*.go", "localgateway/*.go", "unzip/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Name.IsExported() && d.Doc == nil {
						t.Errorf("%s: %s has no comment", file, d.Name.Name)
					}
				case *ast.GenDecl:
					for _, s := range d.Specs {
						if s, ok := s.(*ast.TypeSpec); ok && s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
							t.Errorf("%s: %s has no comment", file, s.Name.Name)
						}
					}
				}
			}
		}
	}
}
