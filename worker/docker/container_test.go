// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-units"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestContainerOfATask(t *testing.T) {
	task := worker.Task{ID: "task_1", Prompt: "--do it", Model: "llama3.2", OutputDir: "/var/out/task_1"}
	base := spec{
		agent: worker.Agent{Key: "hr", PeerID: "12D3KooW"}, image: "sha256:abc",
		prompt: promptArgument,
		limits: limits{memory: 512 << 20, tmpfs: 64 << 20, pids: 256, cpus: 1.5},
	}
	common := `"Labels":{"agentfm.agent":"12D3KooW","agentfm.key":"hr","agentfm.task":"task_1"}`
	for _, tc := range []struct {
		name   string
		set    func(*spec)
		config []string // parts of the configuration
		host   []string // parts of the host configuration
	}{
		{
			"defaults", func(*spec) {},
			[]string{
				common, `"Image":"sha256:abc"`, `"Cmd":["--do it"]`, `"OpenStdin":false`, `"Tty":false`,
				`"Env":["AGENTFM_MODEL=llama3.2","AGENTFM_OUTPUT=/tmp/output"]`,
				`"Healthcheck":{"Test":["NONE"]}`, `"User":""`, `"WorkingDir":""`, `"Entrypoint":null`,
			},
			[]string{
				`"NetworkMode":"none"`, `"IpcMode":"private"`, `"CapDrop":["ALL"]`, `"CapAdd":null`, `"Privileged":false`,
				`"SecurityOpt":["no-new-privileges"]`, `"ReadonlyRootfs":true`, `"Init":false`,
				`"Tmpfs":{"/tmp":"rw,noexec,nosuid,nodev,size=67108864,mode=1777,nr_inodes=16384"}`, `"ShmSize":67108864`,
				`"Mounts":[{"Type":"bind","Source":"/var/out/task_1","Target":"/tmp/output","BindOptions":{"Propagation":"rprivate"}}]`,
				`"Memory":536870912`, `"MemorySwap":536870912`, `"NanoCpus":1500000000`, `"PidsLimit":256`,
				`"Ulimits":[{"Name":"nofile","Hard":1024,"Soft":1024},{"Name":"core","Hard":0,"Soft":0}]`,
				`"LogConfig":{"Type":"none","Config":null}`, `"Binds":null`, `"Devices":null`,
				`"PidMode":""`, `"UTSMode":""`, `"UsernsMode":""`, `"AutoRemove":false`,
			},
		},
		{
			"stdin, env and init",
			func(s *spec) { s.prompt, s.init, s.env = promptStdin, true, []string{"A=1", "B="} },
			[]string{
				common, `"Cmd":null`, `"OpenStdin":true`, `"StdinOnce":true`, `"AttachStdin":true`,
				`"Env":["AGENTFM_MODEL=llama3.2","AGENTFM_OUTPUT=/tmp/output","A=1","B="]`,
			},
			[]string{`"Init":true`},
		},
		{
			"user, runtime, limits, GPUs and mounts",
			func(s *spec) {
				s.user, s.runtime = "1000:1000", "runsc"
				s.ulimits = []units.Ulimit{{Name: "fsize", Soft: 1, Hard: 2}, {Name: "nofile", Soft: 64, Hard: 128}}
				s.gpus = []container.DeviceRequest{{Count: -1, Capabilities: [][]string{{"gpu"}}}}
				s.mounts = []mount.Mount{bind("/srv/data", "/data")}
				s.volumes = map[string]struct{}{"/data": {}}
			},
			[]string{`"User":"1000:1000"`},
			[]string{
				`"Runtime":"runsc"`, `"DeviceRequests":[{"Driver":"","Count":-1,"DeviceIDs":null,"Capabilities":[["gpu"]],"Options":null}]`,
				`"Ulimits":[{"Name":"core","Hard":0,"Soft":0},{"Name":"fsize","Hard":2,"Soft":1},{"Name":"nofile","Hard":128,"Soft":64}]`,
				`"Mounts":[{"Type":"bind","Source":"/srv/data","Target":"/data","ReadOnly":true,"BindOptions":{"Propagation":"rprivate","NonRecursive":true}},{`,
				`"Tmpfs":{"/tmp":"rw,noexec,nosuid,nodev,size=67108864,mode=1777,uid=1000,nr_inodes=16384"}`, `"Privileged":false`, `"CapDrop":["ALL"]`,
			},
		},
		{
			"Podman", func(s *spec) { s.podman, s.user = true, "1000" }, nil,
			[]string{`"Tmpfs":{"/tmp":"rw,noexec,nosuid,nodev,size=67108864,mode=1777,notmpcopyup"}`},
		},
		{
			"volumes of the image",
			func(s *spec) { s.volumes = map[string]struct{}{"/data/": {}, "/tmp": {}, "/tmp/output": {}} },
			nil,
			[]string{`"Tmpfs":{"/data":"rw,noexec,nosuid,nodev,size=67108864,mode=1777,nr_inodes=16384","/tmp":"rw,noexec,nosuid,nodev,size=67108864,mode=1777,nr_inodes=16384"}`},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := base
			tc.set(&s)
			wantParts(t, s.config(task), tc.config)
			wantParts(t, s.hostConfig(task), tc.host)
		})
	}
}

// Two tasks do not share what the engine's client may change.
func TestContainersShareNothing(t *testing.T) {
	s := spec{env: make([]string, 1, 8)}
	a, b := s.config(worker.Task{Model: "a"}), s.config(worker.Task{Model: "b"})
	if reflect.DeepEqual(a.Env, b.Env) || a.Env[0] != "AGENTFM_MODEL=a" {
		t.Errorf("environments are %v and %v", a.Env, b.Env)
	}
}

func wantParts(t *testing.T, v any, parts []string) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if !strings.Contains(string(b), part) {
			t.Errorf("no %s in %s", part, b)
		}
	}
}

func TestReason(t *testing.T) {
	for _, tc := range []struct {
		state container.State
		want  worker.Exit
	}{
		{container.State{}, worker.Exit{}},
		{container.State{ExitCode: 1}, worker.Exit{Code: 1}},
		{container.State{ExitCode: 143}, worker.Exit{Code: 143}},
		{container.State{ExitCode: 137}, worker.Exit{Code: 137, Reason: "killed by signal 9, perhaps out of memory (limit 1.5GiB)"}},
		{container.State{ExitCode: 137, OOMKilled: true}, worker.Exit{Code: 137, Reason: "killed: out of memory (limit 1.5GiB)", Cause: wire.CauseOOMKilled}},
		{container.State{ExitCode: 1, OOMKilled: true}, worker.Exit{Code: 1, Reason: "killed: out of memory (limit 1.5GiB)", Cause: wire.CauseOOMKilled}},
		{container.State{OOMKilled: true}, worker.Exit{}}, // a child was killed, and the agent coped
	} {
		p := &spec{limits: limits{memory: 3 << 29}}
		if got := p.exit(&tc.state); got != tc.want {
			t.Errorf("%+v: %+v, want %+v", tc.state, got, tc.want)
		}
	}
}
