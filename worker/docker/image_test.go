// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/docker/docker/api/types/image"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// fakeRegistry is one that has one image, under every tag.
type fakeRegistry struct {
	name   string // of the image, with the registry
	digest string
	asked  atomic.Bool // for a manifest
	locked atomic.Bool // it wants the user "ann" with the password "s3cret"
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// startRegistry starts a registry on loopback, which an engine takes without TLS.
func startRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	text := t.Name()
	_ = tw.WriteHeader(&tar.Header{Name: "agent", Mode: 0o755, Size: int64(len(text))})
	_, _ = tw.Write([]byte(text))
	_ = tw.Close()
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{"Entrypoint":["/agent"],"User":"7"},"rootfs":{"type":"layers","diff_ids":[%q]}}`,
		runtime.GOARCH, digestOf(layer.Bytes()))
	const manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":%d,"digest":%q},`+
		`"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","size":%d,"digest":%q}]}`,
		manifestType, len(config), digestOf(config), layer.Len(), digestOf(layer.Bytes()))
	r := &fakeRegistry{digest: digestOf(manifest)}
	blobs := map[string][]byte{digestOf(config): config, digestOf(layer.Bytes()): layer.Bytes()}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); r.locked.Load() && (user != "ann" || password != "s3cret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, last, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/agent/"), "/")
		switch {
		case req.URL.Path == "/v2/":
		case strings.Contains(req.URL.Path, "/blobs/") && blobs[last] != nil:
			_, _ = w.Write(blobs[last])
		case strings.Contains(req.URL.Path, "/manifests/") && last != "missing":
			r.asked.Store(true)
			w.Header().Set("Content-Type", manifestType)
			w.Header().Set("Docker-Content-Digest", r.digest)
			_, _ = w.Write(manifest)
		default:
			http.NotFound(w, req)
		}
	}))
	t.Cleanup(s.Close)
	r.name = strings.TrimPrefix(s.URL, "http://") + "/agent"
	return r
}

// cause returns what a machine would know of an error.
func cause(err error) wire.Cause {
	var f *worker.Failure
	if errors.As(err, &f) {
		return f.Cause
	}
	return ""
}

func TestPull(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	other := reg.name + "@sha256:" + strings.Repeat("0f", 32)
	agent := testAgent(t)
	var id string
	for _, step := range []struct {
		name  string
		r     *Runtime
		asks  bool // the registry
		cause wire.Cause
		err   string
	}{
		{"never", &Runtime{Image: reg.name + ":v1"}, false, wire.CauseImageUnavailable, "is not on the Docker engine"},
		{"that is not there", &Runtime{Image: reg.name + ":missing", Pull: pullMissing}, false, wire.CauseImageUnavailable, "pulling image"},
		{"missing", &Runtime{Image: reg.name + ":v1", Pull: pullMissing}, true, "", ""},
		{"missing no more", &Runtime{Image: reg.name + ":v1", Pull: pullMissing}, false, "", ""},
		{"always", &Runtime{Image: reg.name + ":v1", Pull: pullAlways}, true, "", ""},
		{"by digest", &Runtime{Image: reg.name + "@" + reg.digest}, false, "", ""},
		{"by tag and digest", &Runtime{Image: reg.name + ":v1@" + reg.digest, Pull: pullMissing}, false, "", ""},
		{"by another digest", &Runtime{Image: reg.name + ":v1@sha256:" + strings.Repeat("0f", 32)}, false, wire.CauseDigestMismatch, "what the engine has by that name is sha256:"},
		{"by a digest that is not there", &Runtime{Image: other}, false, wire.CauseImageUnavailable, "is not on the Docker engine"},
		{"that the registry has not", &Runtime{Image: other, Pull: pullAlways}, true, wire.CauseImageUnavailable, "pulling image"},
		{"for another machine", &Runtime{Image: reg.name + ":v1", Platform: "linux/s390x"}, false, wire.CauseImageUnavailable, "not for platform linux/s390x"},
		{"for this one", &Runtime{Image: reg.name + ":v1", Platform: "linux/" + runtime.GOARCH}, false, "", ""},
	} {
		r := step.r
		img, err := tryPrepare(t, r, agent)
		if cause(err) != step.cause || (err == nil) != (step.err == "") || err != nil && !strings.Contains(err.Error(), step.err) {
			t.Errorf("%s: %v (%q), want %q (%q)", step.name, err, cause(err), step.err, step.cause)
		}
		if got := reg.asked.Swap(false); got != step.asks {
			t.Errorf("%s: asks the registry: %v, want %v", step.name, got, step.asks)
		}
		if err == nil && r.ready.Load().spec.user != "7" {
			t.Errorf("%s: user %q, want that of the image", step.name, r.ready.Load().spec.user)
		}
		if id == "" {
			id = img.Digest
			removeLater(reg.name + ":v1")
		} else if err == nil && img.Digest != id {
			t.Errorf("%s: image %s, want %s", step.name, img.Digest, id)
		}
	}
	// An image that nobody has pulled goes by its id.
	r := &Runtime{Image: "agentfm-test/probe@" + id}
	if err := buildProbe(); err != nil {
		t.Fatal(err)
	}
	if _, err := tryPrepare(t, r, agent); cause(err) != wire.CauseDigestMismatch {
		t.Errorf("another image's id: %v", err)
	}
	f := startProbe(t, "exit 0", nil)
	r = &Runtime{Image: "agentfm-test/probe@" + f.ready.Load().spec.image}
	if _, err := tryPrepare(t, r, agent); err != nil {
		t.Error(err)
	}
}

func TestPullLogs(t *testing.T) {
	t.Parallel()
	reg := startRegistry(t)
	core, logs := observer.New(zap.InfoLevel)
	r := &Runtime{Host: engineHost(t), Image: reg.name + ":v1", Pull: pullMissing}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	r.logger = zap.New(core)
	agent, told := testAgent(t), []string(nil)
	agent.Progress = func(what string, percent float64) { told = append(told, fmt.Sprint(what, " ", percent)) }
	if _, err := r.Prepare(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	removeLater(reg.name + ":v1")
	if len(told) == 0 || told[0] != "pulling image 0" {
		t.Errorf("told of %v", told)
	}
	for _, want := range []string{"pulling image", "image is pulled"} {
		if logs.FilterMessage(want).Len() != 1 {
			t.Errorf("%d entries %q, want 1", logs.FilterMessage(want).Len(), want)
		}
	}
}

// How far a pull is: each layer is loaded, and then unpacked.
func TestPulled(t *testing.T) {
	layers := make(map[string]layer)
	for i, step := range []struct {
		id, status     string
		current, total int64
		want           float64
	}{
		{"a", "Pulling fs layer", 0, 0, 0},
		{"a", "Downloading", 50, 100, 25},
		{"b", "Downloading", 0, 100, 12},
		{"a", "Download complete", 0, 0, 25},
		{"a", "Extracting", 50, 100, 37},
		{"a", "Pull complete", 0, 0, 50},
		{"b", "Pull complete", 0, 0, 100},
		{"c", "Already exists", 0, 0, 100},
	} {
		if l, ok := layers[step.id].next(step.status, layer{Current: step.current, Total: step.total}); ok {
			layers[step.id] = l
		}
		if got := pulled(layers); got != step.want {
			t.Errorf("step %d: %v %%, want %v", i, got, step.want)
		}
	}
}

const noCause = wire.Cause("none of those that machines are told")

func TestCheckImage(t *testing.T) {
	for _, tc := range []struct {
		ref, img string
		cause    wire.Cause
	}{
		{"a@sha256:1", `{"Id":"sha256:2","RepoDigests":["b@sha256:3","a@sha256:1"],"Config":{"Entrypoint":["a"]}}`, ""},
		{"a@sha256:1", `{"Id":"sha256:1","Config":{"Entrypoint":["a"]}}`, ""},
		{"a@sha256:1", `{"Id":"sha256:2","RepoDigests":["a@sha256:11"],"Config":{"Entrypoint":["a"]}}`, wire.CauseDigestMismatch},
		{"a@sha256:1", `{"Id":"sha256:2"}`, wire.CauseDigestMismatch},
		{"a", `{"Id":"sha256:2","Config":{"Entrypoint":["a"],"Volumes":{"/tmp/output":{},"/tmp/outputs/x":{}}}}`, ""},
		{"a", `{"Id":"sha256:2","Config":{"Entrypoint":["a"],"Volumes":{"/tmp//output/x":{}}}}`, noCause},
	} {
		var img image.InspectResponse
		if err := json.Unmarshal([]byte(tc.img), &img); err != nil {
			t.Fatal(err)
		}
		if err := (&Runtime{Prompt: promptArgument}).checkImage(img, tc.ref); (err == nil) != (tc.cause == "") || tc.cause != noCause && cause(err) != tc.cause {
			t.Errorf("%s, %s: %v", tc.ref, tc.img, err)
		}
	}
}

func TestPullWithCredentials(t *testing.T) {
	reg := startRegistry(t)
	reg.locked.Store(true)
	host, _, _ := strings.Cut(reg.name, "/")
	dir := folder(t, nil)
	t.Setenv("DOCKER_CONFIG", dir)
	for _, tc := range []struct {
		name, config string
		err          string // in the error; empty: none
	}{
		{"no file", "", "no basic auth credentials"},
		{"another registry", `{"auths":{"registry.example.com":{"auth":"YW5uOnMzY3JldA=="}}}`, "no basic auth credentials"},
		{"a helper", `{"auths":{"` + host + `":{}},"credsStore":"pass"}`, "no basic auth credentials"},
		{"a wrong password", `{"auths":{"` + host + `":{"auth":"YW5uOnMzY3JldDI="}}}`, "pulling image"},
		{"nonsense", `{"auths":s3cret`, "is not as docker login writes it"},
		{"no login", `{"auths":{"` + host + `":{"auth":"s3cret"}}}`, "no login for " + host},
		{"one of docker login's own beside it", `{"auths":{"https://` + host + `/v1/":{"auth":"YW5uOnMzY3JldA=="},"https://` + host + `/v1/access-token":{"auth":"YW5uOnMzY3JldDI="},"https://` + host + `/v1/refresh-token":{"auth":"YW5uOnMzY3JldDI="}}}`, ""},
		{"the right one", `{"auths":{"https://` + host + `/v1/":{"auth":"YW5uOnMzY3JldA=="}}}`, ""},
	} {
		if tc.config != "" {
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(tc.config), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := tryPrepare(t, &Runtime{Image: reg.name + ":locked", Pull: pullMissing}, testAgent(t))
		if (err == nil) != (tc.err == "") || err != nil && (!strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
		}
	}
	removeLater(reg.name + ":locked")
	for key, want := range map[string]string{
		"https://index.docker.io/v1/": "docker.io", "registry.example.com:5000": "registry.example.com:5000", "http://a/b": "a",
	} {
		if got := registryOf(key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}
