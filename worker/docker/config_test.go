// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func TestUnmarshalCaddyfile(t *testing.T) {
	for _, tc := range []struct {
		name, input string
		want        string // as JSON
		err         string
	}{
		{name: "nothing", input: `docker`, err: "image or build is required"},
		{name: "empty block", input: "docker {\n}", err: "image or build is required, at Testfile:2"},
		{name: "image alone", input: "docker {\nimage a\n}", want: `{"image":"a"}`},
		{
			name: "everything",
			input: `docker {
				image    hr:v1
				build    ./agents/hr
				host     unix:///run/docker.sock
				prompt   stdin
				warm     2
				stderr   log
				memory   1GiB
				cpus     0.5
				pids     64
				tmpfs    16MiB
				output   2MiB
				grace    1.5s
				env      API_KEY {env.HR_API_KEY}
				env      EMPTY ""
				env_file hr.env
				secret   db /etc/db.key
				secret   key {env.HR_KEY}
				mount    /srv/data /data
				mount    /srv/more /more
				user     1000:1000
				allow_root
				ulimit   nofile 64:128
				ulimit   fsize 1024
				runtime  runsc
				require_runtime
				gpus     device=0,1
				platform linux/amd64
				pull     missing
			}`,
			want: `{"image":"hr:v1","pull":"missing","platform":"linux/amd64","build":"./agents/hr","host":"unix:///run/docker.sock","prompt":"stdin","warm":2,"stderr":"log","memory":"1GiB",` +
				`"cpus":0.5,"pids":64,"tmpfs":"16MiB","output":"2MiB","grace":1500000000,"user":"1000:1000","allow_root":true,"ulimits":{"fsize":"1024","nofile":"64:128"},` +
				`"oci_runtime":"runsc","require_runtime":true,"gpus":"device=0,1","mounts":[{"source":"/srv/data","target":"/data"},{"source":"/srv/more","target":"/more"}],` +
				`"secrets":{"db":"/etc/db.key","key":"{env.HR_KEY}"},"env":{"API_KEY":"{env.HR_API_KEY}","EMPTY":""},"env_file":"hr.env"}`,
		},
		{
			name: "serve",
			input: `docker {
				image  ollama:v1
				serve  11434
				models llama3.2 embed
				rename llama3.2 llama3.2:latest
				rename embed nomic-embed-text:latest
				routes /v1/chat/completions /v1/embeddings
			}`,
			want: `{"image":"ollama:v1","serve":11434,"models":["llama3.2","embed"],` +
				`"rename":{"embed":"nomic-embed-text:latest","llama3.2":"llama3.2:latest"},"routes":["/v1/chat/completions","/v1/embeddings"]}`,
		},
		{name: "serve and prompt", input: "docker {\nimage a\nserve 1\nprompt stdin\n}", err: "prompt: not with serve"},
		{name: "serve twice", input: "docker {\nimage a\nserve 1\nserve 2\n}", err: "option 'serve' is already specified"},
		{name: "serve two", input: "docker {\nimage a\nserve 1 2\n}", err: "wrong argument count"},
		{name: "serve text", input: "docker {\nimage a\nserve http\n}", err: "serve: 'http' is not a whole number above 0"},
		{name: "models alone", input: "docker {\nimage a\nmodels b\n}", err: "models, rename, routes: only with serve"},
		{name: "rename alone", input: "docker {\nimage a\nrename b c\n}", err: "models, rename, routes: only with serve"},
		{name: "routes alone", input: "docker {\nimage a\nroutes /v1/x\n}", err: "models, rename, routes: only with serve"},
		{name: "warm alone", input: "docker {\nimage a\nwarm 1\n}", err: "warm: needs prompt stdin or file"},
		{name: "warm and serve", input: "docker {\nimage a\nwarm 1\nserve 80\n}", err: "warm: not with serve"},
		{name: "warm none", input: "docker {\nimage a\nprompt stdin\nwarm 0\n}", err: "warm: '0' is not a whole number above 0"},
		{name: "warm twice", input: "docker {\nwarm 1\nwarm 1\n}", err: "option 'warm' is already specified"},
		{name: "argument on the line", input: `docker hr:v1`, err: "wrong argument count"},
		{name: "unknown", input: "docker {\nprivileged\n}", err: "unrecognized option 'privileged'"},
		{name: "too few", input: "docker {\nimage\n}", err: "wrong argument count"},
		{name: "too many", input: "docker {\nimage a b\n}", err: "wrong argument count"},
		{name: "empty", input: "docker {\nimage \"\"\n}", err: "wrong argument count"},
		{name: "a block", input: "docker {\nimage {\na b\n}\n}", err: "wrong argument count"},
		{name: "twice", input: "docker {\nimage a\nimage b\n}", err: "option 'image' is already specified"},
		{name: "number twice", input: "docker {\ncpus 1\ncpus 1\n}", err: "option 'cpus' is already specified"},
		{name: "cpus too many", input: "docker {\ncpus 1 2\n}", err: "wrong argument count"},
		{name: "cpus text", input: "docker {\ncpus some\n}", err: `cpus: 'some' is not a number above 0`},
		{name: "cpus zero", input: "docker {\ncpus 0\n}", err: `cpus: '0' is not a number above 0`},
		{name: "pids fraction", input: "docker {\npids 1.5\n}", err: `pids: '1.5' is not a whole number above 0`},
		{name: "pids zero", input: "docker {\npids 0\n}", err: `pids: '0' is not a whole number above 0`},
		{name: "env too few", input: "docker {\nenv A\n}", err: "env: want a name and a value"},
		{name: "env too many", input: "docker {\nenv A b s3cret\n}", err: "env: want a name and a value"},
		{name: "grace off", input: "docker {\nimage a\ngrace off\n}", want: `{"image":"a","grace":-1}`},
		{name: "grace none", input: "docker {\nimage a\ngrace 0s\n}", err: "grace: '0s' is not a duration such as 90s, or off"},
		{name: "secret too few", input: "docker {\nsecret A\n}", err: "secret: want a name and a value"},
		{name: "secret twice", input: "docker {\nsecret A s3cret\nsecret A s3cret\n}", err: "secret: 'A' is already specified"},
		{name: "mount too few", input: "docker {\nmount /a\n}", err: "mount: want a path on the host and a path in the container"},
		{name: "mount too many", input: "docker {\nmount /a /b rw\n}", err: "mount: want a path on the host and a path in the container"},
		{name: "mount block", input: "docker {\nmount /a /b {\nrw\n}\n}", err: "unexpected block"},
		{name: "allow_root yes", input: "docker {\nallow_root yes\n}", err: "wrong argument count"},
		{name: "ulimit twice", input: "docker {\nulimit core 0\nulimit core 1\n}", err: "ulimit: 'core' is already specified"},
		{name: "user two", input: "docker {\nuser 1 2\n}", err: "wrong argument count"},
		{name: "privileged", input: "docker {\nprivileged\n}", err: "unrecognized option 'privileged'"},
		{name: "pid", input: "docker {\npid host\n}", err: "unrecognized option 'pid'"},
		{name: "env twice", input: "docker {\nenv A s3cret\nenv A s3cret\n}", err: "env: 'A' is already specified"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Runtime
			err := r.UnmarshalCaddyfile(caddyfile.NewTestDispenser(tc.input))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("error is %v, want %q", err, tc.err)
				}
				return
			}
			got, jsonErr := json.Marshal(&r)
			if err != nil || jsonErr != nil || string(got) != tc.want {
				t.Errorf("got %s (%v, %v)\nwant %s", got, err, jsonErr, tc.want)
			}
		})
	}
}

// What follows the block is not this runtime's business.
func TestUnmarshalCaddyfileStops(t *testing.T) {
	d := caddyfile.NewTestDispenser("runtime docker {\nimage a\n}\nmax_tasks 4\n")
	d.Next()
	d.NextArg()
	var r Runtime
	if err := r.UnmarshalCaddyfile(d.NewFromNextSegment()); err != nil || r.Image != "a" {
		t.Errorf("image %q, error %v", r.Image, err)
	}
	if !d.Next() || d.Val() != "max_tasks" {
		t.Errorf("the next word is %q, want max_tasks", d.Val())
	}
}

func TestDefaults(t *testing.T) {
	r := &Runtime{Image: "hr:v1"}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	if want := (limits{memory: 512 << 20, tmpfs: 64 << 20, output: 1 << 30, pids: 256, cpus: 1}); r.limits != want {
		t.Errorf("limits are %+v, want %+v", r.limits, want)
	}
	if r.PromptLimit() != wire.MaxArgumentPrompt || r.PromptNUL() {
		t.Errorf("prompt limit is %d, NUL %v", r.PromptLimit(), r.PromptNUL())
	}
	r = &Runtime{Image: "hr:v1", Prompt: "stdin"}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	if r.PromptLimit() != wire.MaxTaskFrame || !r.PromptNUL() {
		t.Errorf("prompt limit is %d, NUL %v", r.PromptLimit(), r.PromptNUL())
	}
}

// A runtime is a server by its settings, before anything is done with them.
func TestServerBySettings(t *testing.T) {
	if s := (&Runtime{}).Server(); s != nil {
		t.Errorf("without serve: %v", s)
	}
	s := (&Runtime{Serve: 1}).Server()
	if s == nil {
		t.Fatal("no server")
	}
	if offer, up := s.Offer(); up {
		t.Errorf("offers %+v", offer)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		config string
		err    string // empty: none
	}{
		{`{"image":"a"}`, ""},
		{`{"build":"a"}`, ""},
		{`{"image":"a","memory":"6MiB","cpus":0.01,"pids":1,"tmpfs":"1"}`, ""},
		{`{"image":"a","memory":"536870912"}`, ""},
		{`{"image":"a","serve":65535,"models":["a"],"rename":{"b":"c"},"routes":["/v1/x"]}`, ""},
		{`{"image":"a","serve":65536}`, "serve is 65536, not a port"},
		{`{"image":"a","serve":-1}`, "serve is -1, not a port"},
		{`{"image":"a","serve":80,"prompt":"argument"}`, "prompt: not with serve"},
		{`{"image":"a","models":["b"]}`, "only with serve"},
		{`{"image":"a","rename":{"b":"c"}}`, "only with serve"},
		{`{"image":"a","routes":["/v1/x"]}`, "only with serve"},
		{`{"image":"a","serve":80,"routes":["/x"]}`, "is not a route"},
		{`{"image":"a","serve":80,"models":["b","b"]}`, "is there twice"},
		{`{}`, "image or build is required"},
		{`{"image":"a","prompt":"file","stderr":"log"}`, ""},
		{`{"image":"a","prompt":"socket"}`, `prompt is "socket", not argument, stdin, file`},
		{`{"image":"a","prompt":"stdin","warm":256}`, ""},
		{`{"image":"a","prompt":"stdin","warm":257}`, "warm is 257, not a number from 1 to 256"},
		{`{"image":"a","prompt":"stdin","warm":-1}`, "warm is -1"},
		{`{"image":"a","warm":1}`, "warm: needs prompt stdin or file"},
		{`{"image":"a","prompt":"argument","warm":1}`, "warm: needs prompt stdin or file"},
		{`{"image":"a","serve":80,"warm":1}`, "warm: not with serve"},
		{`{"image":"a","stderr":"file"}`, `stderr is "file", not answer or log`},
		{`{"image":"a","serve":80,"stderr":"log"}`, "output, stderr: not with serve"},
		{`{"image":"a","memory":"lots"}`, "reading memory"},
		{`{"image":"a","memory":"5MiB"}`, "memory is 5MiB, less than 6MiB"},
		{`{"image":"a","memory":"-1GiB"}`, "memory"},
		{`{"image":"a","tmpfs":"none"}`, "reading tmpfs"},
		{`{"image":"a","tmpfs":"0"}`, "tmpfs is 0, not a size above 0"},
		{`{"image":"a","grace":-1}`, ""},
		{`{"image":"a","grace":"21s"}`, "grace is 21s, not a duration up to 20s"},
		{`{"image":"a","output":"some"}`, "reading output"},
		{`{"image":"a","output":"0"}`, "output is 0, not a size above 0"},
		{`{"image":"a","serve":80,"output":"1"}`, "stderr: not with serve"},
		{`{"image":"a","cpus":-1}`, "cpus is -1"},
		{`{"image":"a","cpus":0.001}`, "cpus is 0.001"},
		{`{"image":"a","pids":-1}`, "pids is -1"},
		{`{"image":"a","user":"0"}`, "user is root: choose another, or set allow_root"},
		{`{"image":"a","user":"root:65534"}`, "user is root"},
		{`{"image":"a","user":"00"}`, "user is root"},
		{`{"image":"a","user":"0","allow_root":true}`, ""},
		{`{"image":"a","user":"app:0","ulimits":{"nofile":"64","fsize":"-1"},"gpus":"all"}`, ""},
		{`{"image":"a","ulimits":{"files":"64"}}`, "reading ulimit files"},
		{`{"image":"a","ulimits":{"nofile":"many"}}`, "reading ulimit nofile"},
		{`{"image":"a","ulimits":{"nofile":"65:64"}}`, "reading ulimit nofile"},
		{`{"image":"a","oci_runtime":"runsc","require_runtime":true}`, ""},
		{`{"image":"a","require_runtime":true}`, "require_runtime: no runtime is set"},
		{`{"image":"a","gpus":"2"}`, ""},
		{`{"image":"a","gpus":"device=0,GPU-1"}`, ""},
		{`{"image":"a","gpus":"0"}`, `gpus is "0", not all`},
		{`{"image":"a","gpus":"device=0,"}`, "gpus is"},
		{`{"image":"a","gpus":"some"}`, "gpus is"},
		{`{"image":"a","platform":"linux/arm64/v8","pull":"always"}`, ""},
		{`{"image":"a","platform":"linux"}`, `platform is "linux"`},
		{`{"image":"a","platform":"linux//v8"}`, "platform is"},
		{`{"image":"a","pull":"sometimes"}`, `pull is "sometimes", not never, missing or always`},
		{`{"build":"a","pull":"always"}`, "pull: not with build"},
		{`{"image":"a@sha256:` + strings.Repeat("0f", 32) + `"}`, ""},
		{`{"image":"a@sha256:0f"}`, "want a digest of sha256"},
		{`{"image":"a@sha256:` + strings.Repeat("0f", 32) + `","build":"b"}`, "not for an image that is built"},
		{`{"image":"a","secrets":{"a/b":"s3cret"}}`, `secret "a/b" is no name of a file`},
		{`{"image":"a","secrets":{"..":"s3cret"}}`, `secret ".." is no name of a file`},
		{`{"image":"a","secrets":{"a":""}}`, "secret a: want a file, or a placeholder"},
		{`{"image":"a","secrets":{"a":"{env.AGENTFM_TEST_UNSET}"}}`, "in secret a: evaluated placeholder {env.AGENTFM_TEST_UNSET} is empty"},
		{`{"image":"a","secrets":{"a":"{nonsense}"}}`, "in secret a: unrecognized placeholder {nonsense}"},
		{`{"image":"a","mounts":[{"source":"/srv/a","target":"/a"},{"source":"/srv/b","target":"/a/"}]}`, "/a is there twice"},
		{`{"image":"a","env":{"A B":"s3cret"}}`, `env "A B"`},
		{`{"image":"a","env":{"":"s3cret"}}`, `env ""`},
		{`{"image":"a","env":{"A":"s3cret\u0000"}}`, `env "A"`},
		{`{"image":"a","env":{"A":"s3cret{env.AGENTFM_TEST_UNSET}"}}`, "in env A: evaluated placeholder {env.AGENTFM_TEST_UNSET} is empty"},
		{`{"image":"{env.AGENTFM_TEST_UNSET}"}`, "placeholders in image"},
		{`{"image":"a","env_file":"/nonexistent/hr.env"}`, "/nonexistent/hr.env"},
	} {
		var r Runtime
		if err := caddy.StrictUnmarshalJSON([]byte(tc.config), &r); err != nil {
			t.Fatal(err)
		}
		err := provision(t, &r)
		if (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: error is %v, want %q", tc.config, err, tc.err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: secret in error %v", tc.config, err)
		}
	}
}

func TestPlaceholders(t *testing.T) {
	t.Setenv("AGENTFM_TEST_VALUE", "value")
	dir := folder(t, map[string]string{"value.env": "A=file\nB=file\n"})
	t.Setenv("AGENTFM_TEST_DIR", dir)
	r := &Runtime{
		Image: "hr:{env.AGENTFM_TEST_VALUE}", Host: "unix://{env.AGENTFM_TEST_DIR}/x", EnvFile: "{env.AGENTFM_TEST_DIR}/value.env",
		Env: map[string]string{"B": "{env.AGENTFM_TEST_VALUE}!", "JSON": `{"a":{}}`},
	}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	if want := []string{"A=file", "B=value!", `JSON={"a":{}}`}; !slices.Equal(r.environ, want) {
		t.Errorf("environment is %q, want %q", r.environ, want)
	}
	if r.Image != "hr:value" || r.Host != "unix://"+dir+"/x" {
		t.Errorf("image %q, host %q", r.Image, r.Host)
	}
	// The replaced values, secrets perhaps, are not in the exported fields.
	if r.Env["B"] != "{env.AGENTFM_TEST_VALUE}!" {
		t.Errorf("env holds %q", r.Env["B"])
	}
}

func TestEnvFile(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
		err        string // ends the error; empty: none
	}{
		{"empty", "", nil, ""},
		{"values", "# keys\n\nA=1\r\n  B = two words \nC=\"quoted\"\nD=a=b\nE=\n", nil, ".env:4: not a line NAME=value"},
		{"verbatim", "# keys\n\nA=1\r\n  B=two words \nC=\"quoted\"\nD=a=b\nE=\nA=later", []string{"A=later", "B=two words ", `C="quoted"`, "D=a=b", "E="}, ""},
		{"no value", "A=1\ns3cret\n", nil, ".env:2: not a line NAME=value"},
		{"no name", "=s3cret\n", nil, ".env:1: not a line NAME=value"},
		{"export", "export A=s3cret\n", nil, ".env:1: not a line NAME=value"},
		{"NUL", "A=s3cret\x00\n", nil, ".env:1: not a line NAME=value"},
		{"too long", "A=1\nB=" + strings.Repeat("x", maxEnvLine), nil, ".env:2: bufio.Scanner: token too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(folder(t, map[string]string{"hr.env": tc.text}), "hr.env")
			got, err := environment(file, nil, caddy.NewReplacer())
			if tc.err == "" && (err != nil || !slices.Equal(got, tc.want)) {
				t.Errorf("got %q (%v), want %q", got, err, tc.want)
			}
			if tc.err != "" && (err == nil || !strings.HasSuffix(err.Error(), tc.err) || strings.Contains(err.Error(), "s3cret")) {
				t.Errorf("error is %v, want %q", err, tc.err)
			}
		})
	}
}
