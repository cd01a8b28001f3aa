// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestNetworkCaddyfile(t *testing.T) {
	for _, tc := range []struct{ input, want, err string }{
		{input: "none", want: `{"mode":"none"}`},
		{input: "bridge", want: `{"mode":"bridge"}`},
		{input: "host", want: `{"mode":"host"}`},
		{input: "model http://127.0.0.1:11434", want: `{"mode":"model","url":"http://127.0.0.1:11434"}`},
		{input: "model http://x/v1 {\napi_key {env.KEY}\n}", want: `{"mode":"model","url":"http://x/v1","api_key":"{env.KEY}"}`},
		{input: "egress a:1 *.b:2", want: `{"mode":"egress","allow":["a:1","*.b:2"]}`},
		{input: "", err: "wrong argument count"},
		{input: `""`, err: "is not none, model, egress, bridge or host"},
		{input: "agentfm-net", err: "network 'agentfm-net' is not none, model, egress, bridge or host"},
		{input: "none a", err: "wrong argument count"},
		{input: "host a:1", err: "wrong argument count"},
		{input: "bridge {\nname x\n}", err: "unrecognized option 'name'"},
		{input: "model", err: "network model: want the URL"},
		{input: "model http://a http://b", err: "network model: want the URL"},
		{input: "model http://a {\nkey s3cret\n}", err: "unrecognized option 'key'"},
		{input: "model http://a {\napi_key s3cret\napi_key s3cret\n}", err: "'api_key' is already specified"},
		{input: "model http://a {\napi_key s3cret s3cret\n}", err: "api_key: want one key"},
		{input: "egress", err: "network egress: want one or more"},
		{input: "egress a:1 {\napi_key s3cret\n}", err: "unrecognized option 'api_key'"},
		{input: "none\nnetwork none", err: "option 'network' is already specified"},
	} {
		var r Runtime
		err := r.UnmarshalCaddyfile(caddyfile.NewTestDispenser("docker {\nimage a\nnetwork " + tc.input + "\n}"))
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%q: error is %v, want %q", tc.input, err, tc.err)
			}
			continue
		}
		if got, _ := json.Marshal(r.Network); err != nil || string(got) != tc.want {
			t.Errorf("%q: %s (%v), want %s", tc.input, got, err, tc.want)
		}
	}
}

func TestNetworkConfig(t *testing.T) {
	t.Setenv("AGENTFM_TEST_KEY", "s3cret")
	model := []string{"OPENAI_BASE_URL=http://127.0.0.1:11434/v1", "OPENAI_API_KEY=none"}
	for _, tc := range []struct {
		config string // of the runtime, beside its image
		docker string // network of the container
		env    []string
		err    string
	}{
		{config: `"pids":1`, docker: "none"},
		{config: `"network":{}`, docker: "none"},
		{config: `"network":{"mode":"none"}`, docker: "none"},
		{config: `"network":{"mode":"bridge"}`, docker: "bridge"},
		{config: `"network":{"mode":"host"}`, docker: "host"},
		{config: `"network":{"mode":"model","url":"http://127.0.0.1:1"}`, docker: "none", env: model},
		{config: `"network":{"mode":"model","url":"https://x/y/","api_key":"{env.AGENTFM_TEST_KEY}"}`, docker: "none", env: model},
		{
			config: `"env":{"OPENAI_API_KEY":"mine","A":"b"},"network":{"mode":"model","url":"http://x"}`, docker: "none",
			env: []string{model[0], "A=b", "OPENAI_API_KEY=mine"},
		},
		{
			config: `"serve":11434,"network":{"mode":"model","url":"http://x"}`, docker: "none",
			env: []string{"OPENAI_BASE_URL=http://127.0.0.1:11435/v1", "OPENAI_API_KEY=none"},
		},
		{
			config: `"network":{"mode":"egress","allow":["A.example.com.:443","*.b.example:0080","[2001:db8::1]:1"]}`, docker: "none",
			env: []string{
				"HTTP_PROXY=http://127.0.0.1:3128", "HTTPS_PROXY=http://127.0.0.1:3128", "NO_PROXY=localhost,127.0.0.1,::1",
				"http_proxy=http://127.0.0.1:3128", "https_proxy=http://127.0.0.1:3128", "no_proxy=localhost,127.0.0.1,::1",
			},
		},
		{config: `"network":{"mode":"internal"}`, err: "network: network 'internal' is not"},
		{config: `"network":{"url":"http://x"}`, err: "url and api_key are for the mode model alone"},
		{config: `"network":{"mode":"egress","api_key":"s3cret","allow":["a:1"]}`, err: "url and api_key are for the mode model alone"},
		{config: `"network":{"mode":"host","allow":["a:1"]}`, err: "allow is for the mode egress alone"},
		{config: `"network":{"mode":"model"}`, err: "url: not a URL such as"},
		{config: `"network":{"mode":"model","url":"unix:///x"}`, err: "url: not a URL such as"},
		{config: `"network":{"mode":"model","url":"http://u:s3cret@x"}`, err: "url: has credentials in it"},
		{config: `"network":{"mode":"model","url":"{env.AGENTFM_TEST_UNSET}"}`, err: "url: "},
		{config: `"network":{"mode":"model","url":"http://x","api_key":"{env.AGENTFM_TEST_UNSET}s3cret"}`, err: "api_key: a placeholder"},
		{config: `"network":{"mode":"model","url":"http://x","api_key":"s3cret s3cret"}`, err: "api_key: not one key"},
		{config: `"network":{"mode":"egress"}`, err: "egress needs one or more"},
		{config: `"network":{"mode":"egress","allow":["a"]}`, err: "allow: 'a' is not a host and a port"},
		{config: `"network":{"mode":"egress","allow":["*:443"]}`, err: "allow: '*:443' is not a host"},
		{config: `"network":{"mode":"egress","allow":["*.10.0.0.1:1"]}`, err: "is not a host"},
		{config: `"network":{"mode":"egress","allow":["0.0.0.0:1"]}`, err: "is no address of a server"},
		{config: `"network":{"mode":"egress","allow":["[ff02::1]:1"]}`, err: "is no address of a server"},
		{config: `"network":{"mode":"egress","allow":["127.1:1"]}`, err: "is not a host"},
		{config: `"network":{"mode":"egress","allow":["bücher.example:1"]}`, err: "other alphabets as xn--"},
	} {
		var r Runtime
		if err := caddy.StrictUnmarshalJSON([]byte(`{"image":"a",`+tc.config+`}`), &r); err != nil {
			t.Fatal(err)
		}
		err := provision(t, &r)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: error is %v, want %q", tc.config, err, tc.err)
			}
			continue
		}
		s := spec{network: r.outlet}
		if err != nil || !slices.Equal(r.environ, tc.env) || string(s.commonHost().NetworkMode) != tc.docker {
			t.Errorf("%s: environment %q, network %s (%v)\nwant %q, %s", tc.config, r.environ, s.commonHost().NetworkMode, err, tc.env, tc.docker)
		}
	}
}

// A container that serves is another one when what it can reach is.
func TestNetworkSettings(t *testing.T) {
	seen := [][]any{(*outlet)(nil).settings()}
	for _, n := range []Network{
		{Mode: networkModel, URL: "http://x"}, {Mode: networkModel, URL: "http://y"}, {Mode: networkModel, URL: "http://x", APIKey: "k"},
		{Mode: networkEgress, Allow: []string{"a:1"}}, {Mode: networkEgress, Allow: []string{"*.a:1"}}, {Mode: networkHost},
	} {
		o, err := newOutlet(&n, 0, caddy.NewReplacer())
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(seen, func(s []any) bool { return reflect.DeepEqual(s, o.settings()) }) {
			t.Errorf("%+v is as another: %v", n, o.settings())
		}
		seen = append(seen, o.settings())
	}
	if o, err := newOutlet(&Network{}, 0, nil); err != nil || o.settings() != nil {
		t.Errorf("none is not as nothing: %v (%v)", o.settings(), err)
	}
}

func TestNetworkWarnings(t *testing.T) {
	for config, want := range map[string]string{
		`"network":{}`: "",
		`"network":{"mode":"none"},"oci_runtime":"runsc"`:                   "",
		`"network":{"mode":"model","url":"http://x"}`:                       "",
		`"network":{"mode":"model","url":"http://x"},"oci_runtime":"runc"`:  "",
		`"network":{"mode":"bridge"}`:                                       "network bridge: ",
		`"network":{"mode":"host"},"oci_runtime":"runsc"`:                   "network host: ",
		`"network":{"mode":"model","url":"http://x"},"oci_runtime":"runsc"`: "a runtime with a network stack of its own",
		`"network":{"mode":"egress","allow":["a:1"]},"oci_runtime":"runsc"`: "a runtime with a network stack of its own",
		`"serve":80,"oci_runtime":"runsc"`:                                  "a runtime with a network stack of its own",
	} {
		var r Runtime
		if err := caddy.StrictUnmarshalJSON([]byte(`{"image":"a",`+config+`}`), &r); err != nil {
			t.Fatal(err)
		}
		core, seen := observer.New(zapcore.WarnLevel)
		if err := provision(t, &r); err != nil {
			t.Fatal(err)
		}
		r.warnOfNetwork(zap.New(core))
		var got string
		for _, line := range seen.All() {
			got += line.Message
		}
		if (want == "") != (got == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

// An engine elsewhere is told of before anything is started.
func TestNetworkElsewhere(t *testing.T) {
	r := &Runtime{Image: "x", Host: "tcp://192.0.2.1:2375", Network: &Network{Mode: networkEgress, Allow: []string{"a:1"}}}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	_, err := r.Prepare(t.Context(), testAgent(t))
	for _, part := range []string{"network egress: a way into a container", "Caddy beside the Docker engine", "tcp://192.0.2.1:2375"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error is %v, want %q in it", err, part)
		}
	}
}
