// SPDX-License-Identifier: Apache-2.0

package mode

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm/caddyfile"
	_ "github.com/Agent-FM/caddy-agentfm/worker/docker"
)

var update = flag.Bool("update", false, "write what the command lines mean into the files of testdata")

// separator stands between a command line and what becomes of it.
const separator = "----------\n"

// system is one with these variables and files.
func system(env map[string]string, files ...string) System {
	return System{
		Getenv:  func(name string) string { return env[name] },
		Exists:  func(file string) bool { return slices.Contains(files, file) },
		DataDir: "/data/caddy",
	}
}

// TestTranslate translates the command line of each file of testdata: variables of the
// environment, the name of the program, and an argument a line.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(b), separator)
			if !ok {
				t.Fatal("no separator")
			}
			vars, args, _ := strings.Cut(input, "agentfm\n\t")
			env := make(map[string]string)
			for _, l := range strings.Split(vars, "\n") {
				name, value, _ := strings.Cut(l, "=")
				env[name] = value
			}
			got := translated(t, strings.Split(strings.TrimSuffix(args, "\n"), "\n\t"), system(env, "agents/hr/.env"))
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

// translated is what becomes of a command line. Its configuration must be one.
func translated(t *testing.T, args []string, sys System) string {
	t.Helper()
	c, err := Translate(args, sys)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	if c.Config != "" {
		adapt(t, c.Config)
	}
	return "caddy " + strings.Join(c.Args, " ") + "\n" + c.Config
}

// adapt returns the JSON of a Caddyfile.
func adapt(t testing.TB, config string) []byte {
	t.Helper()
	b, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), nil)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v, of\n%s", err, warnings, config)
	}
	return b
}

func TestAsked(t *testing.T) {
	for _, tt := range []struct {
		args string
		want bool
	}{
		{"-mode api", true},
		{"--mode=worker", true},
		{"-apiport 8081 -mode=api", true},
		{"", false},
		{"run --config Caddyfile", false},
		{"--version", false},
		{"agentfm run -mode x", false},
		{"-modem", false},
	} {
		if got := Asked(strings.Fields(tt.args)); got != tt.want {
			t.Errorf("%q: got %v", tt.args, got)
		}
	}
}

// TestHelp wants every mode and flag in the help and in the documentation.
func TestHelp(t *testing.T) {
	page, err := os.ReadFile("../../docs/modes.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Translate([]string{"-mode", "api", "--help"}, system(nil)); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got error %v", err)
	}
	text := usage()
	for _, f := range flags {
		if !strings.Contains(text, "\n  -"+f.name+" ") {
			t.Errorf("no -%s in\n%s", f.name, text)
		}
		if !strings.Contains(string(page), "`-"+f.name+"`") && !strings.Contains(string(page), "`--"+f.name+"`") {
			t.Errorf("no -%s in docs/modes.md", f.name)
		}
	}
	for _, m := range modes {
		if !strings.Contains(text, "\n  "+m.name+" ") {
			t.Errorf("no %s in\n%s", m.name, text)
		}
		if !strings.Contains(string(page), "`"+m.name+"`") {
			t.Errorf("no %s in docs/modes.md", m.name)
		}
	}
}

// TestAgentKey wants a key for each name, which is the name where it can be.
func TestAgentKey(t *testing.T) {
	form, same := regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`), regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	names := map[string]string{}
	for _, name := range []string{
		"hr", "agent", "hr-assistant", "HR Assistant", "hr.assistant", "hr--assistant", "客服", "翻译", "Übersetzer", "ubersetzer", strings.Repeat("long ", 20),
	} {
		key := agentKey(name)
		if other, taken := names[key]; taken || !form.MatchString(key) || len(key) > 63 || same.MatchString(name) && key != name {
			t.Errorf("%q has the key %q, and so has %q", name, key, other)
		}
		names[key] = name
	}
}

// FuzzText wants the text of a flag to be that of the agent, whatever it is.
func FuzzText(f *testing.F) {
	for _, s := range []string{
		"Writes letters.", `say "hi"`, "{$HOME}", "{env.HOME}", `a\`, `a\{b}`, "a`b", "{", "}{$", "{$:{$}", "<<END", "#", "-x", "", "{$A:{$B}}", `\"`, "<",
	} {
		f.Add(s)
	}
	f.Setenv("HOME", "the home")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Translate([]string{"-mode", "worker", "-image", "hr", "-model", "m", "-desc", text}, system(nil))
		if err != nil {
			t.Skip(err)
		}
		var config struct {
			Apps struct {
				Worker struct {
					Agents map[string]struct{ Name, Model, Description string }
				} `json:"agentfm_worker"`
			}
		}
		if err := json.Unmarshal(adapt(t, c.Config), &config); err != nil {
			t.Fatal(err)
		}
		a := config.Apps.Worker.Agents["hr"]
		got, err := caddy.NewReplacer().ReplaceOrErr(a.Description, true, true)
		if err != nil || got != text || a.Model != "m" || len(config.Apps.Worker.Agents) != 1 {
			t.Errorf("got %q, %v, of %q in %+v", got, err, text, config)
		}
	})
}
