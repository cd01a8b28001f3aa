// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// files returns the files below a folder and what is in them.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}

// keyFile returns the file in which Caddy's storage keeps an identity.
func (p place) keyFile(t *testing.T, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.storage(), "agentfm", "*", name+".key"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the key of %s: %v %v", name, found, err)
	}
	return found[0]
}

// An identity that is damaged is neither used nor replaced: its peer id would be
// lost without a word.
func TestDamagedIdentity(t *testing.T) {
	s := newServer(t)
	c := oneAgent("hello")
	s.load(c)
	echo, node := s.awaitWorker("echo"), s.node().ID
	for _, name := range []string{"gateway", "agent-echo"} {
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		file := s.place.keyFile(t, name)
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, damaged := range []string{"", string(whole[:len(whole)/2]), "x" + string(whole)} {
			if err := os.WriteFile(file, []byte(damaged), 0o600); err != nil {
				t.Fatal(err)
			}
			err := s.try(c)
			if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), name+".key") {
				t.Errorf("loading with %d of %d bytes of %s: %v", len(damaged), len(whole), name, err)
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != damaged {
				t.Errorf("the damaged key of %s is now %d bytes (%v)", name, len(after), err)
			}
		}
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		s.load(c)
		if got := s.node().ID; got != node {
			t.Errorf("the node is %s, was %s", got, node)
		}
		if got := s.awaitWorker("echo"); got != echo {
			t.Errorf("the agent is %s, was %s", got, echo)
		}
	}
}
