// SPDX-License-Identifier: Apache-2.0

package caddyfile_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm"
)

var update = flag.Bool("update", false, "write what the adapter says into the files of testdata/adapt")

// separator stands between a Caddyfile and what becomes of it: JSON, or the
// message of an error.
const separator = "----------\n"

// TestAdapt adapts every file of testdata/adapt.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	adapter := caddyconfig.GetAdapter("caddyfile")
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".caddyfiletest")
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(b), separator)
			if !ok {
				t.Fatal("no separator")
			}
			got := adapt(t, adapter, input, strings.HasPrefix(name, "err_"))
			if *update {
				if err := os.WriteFile(file, []byte(input+separator+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// adapt returns the JSON of a Caddyfile, or the message of the error that it is
// to be.
func adapt(t *testing.T, adapter caddyconfig.Adapter, input string, fails bool) string {
	t.Helper()
	cfg, warnings, err := adapter.Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if fails {
		if err == nil {
			t.Fatalf("adapted to %s", cfg)
		}
		return err.Error() + "\n"
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Errorf("warning: %s", w)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, cfg, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return out.String() + "\n"
}
