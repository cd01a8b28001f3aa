// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestKeyFile(t *testing.T) {
	f := newFake(t)
	s := record(f, "/v1/chat/completions")
	file := filepath.Join(t.TempDir(), "key")
	write := func(text string) {
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	r, logs := provision(t, f.URL, func(r *Runtime) { r.APIKeyFile = file })
	for text, want := range map[string]string{"": "no such file", " \n": "no key", "sk-a sk-b": "not one key"} {
		if text != "" {
			write(text)
		}
		if _, err := r.Prepare(t.Context(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sk-") {
			t.Errorf("%q: got %v", text, err)
		}
		_ = os.Remove(file)
	}
	write("sk-1\n")
	prepare(t, r, "")
	g := gateway(t, r)
	for _, c := range []struct{ text, want string }{{"sk-1", "sk-1"}, {"sk-2\n", "sk-2"}, {"sk-3", "sk-3"}, {"", "sk-3"}, {"x y", "sk-3"}, {"sk-4", "sk-4"}} {
		write(c.text)
		post(t, g, "/v1/chat/completions", `{"model":"first"}`)
		if got := s.Header.Get("Authorization"); got != "Bearer "+c.want {
			t.Errorf("%q: the server got %q", c.text, got)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, long, long); err != nil {
		t.Fatal(err)
	}
	post(t, g, "/v1/chat/completions", `{"model":"first"}`) // has it read for the last time
	if err := os.WriteFile(file, []byte("sk-5"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, long, long); err != nil {
		t.Fatal(err)
	}
	post(t, g, "/v1/chat/completions", `{"model":"first"}`)
	if got := s.Header.Get("Authorization"); got != "Bearer sk-4" {
		t.Errorf("a file that has not changed was read: the server got %q", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	post(t, g, "/v1/chat/completions", `{"model":"first"}`)
	post(t, g, "/v1/chat/completions", `{"model":"first"}`)
	if got := s.Header.Get("Authorization"); got != "Bearer sk-4" {
		t.Errorf("without the file the server got %q", got)
	}
	if n := logs.FilterMessageSnippet("cannot be used").Len(); n != 2 {
		t.Errorf("the log tells %d times", n)
	}
}
