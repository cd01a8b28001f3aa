// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// withRateLimit returns a Caddy that xcaddy has built with this module and beside
// another one, as the example rate-limits asks for.
func withRateLimit(t *testing.T) string {
	t.Helper()
	need(t, "AGENTFM_TEST_XCADDY")
	caddy, err := builtWithRateLimit()
	if err != nil {
		t.Fatal(err)
	}
	return caddy
}

// builtWithRateLimit builds it, once.
var builtWithRateLimit = sync.OnceValues(func() (string, error) {
	module, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	if _, err := binary(); err != nil { // it makes the folder
		return "", err
	}
	caddy := filepath.Join(binaryDir, "caddy")
	build := exec.Command(os.Getenv("AGENTFM_TEST_XCADDY"), "build", "v2.11.4",
		"--with", "github.com/Agent-FM/caddy-agentfm@v0.0.0="+module,
		"--with", "github.com/mholt/caddy-ratelimit@v0.1.0",
		"--output", caddy)
	build.Dir = binaryDir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return caddy, nil
})

// xcaddy builds Caddy with this module, and beside another one.
func TestXcaddyBuild(t *testing.T) {
	caddy := withRateLimit(t)
	out, err := exec.CommandContext(t.Context(), caddy, "list-modules", "--skip-standard").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	listed := strings.Fields(string(out))
	for _, id := range []string{
		"admin.api.agentfm", "agentfm", "agentfm_worker", "agentfm.runtimes.docker", "agentfm.runtimes.process",
		"http.handlers.agentfm", "http.handlers.rate_limit",
	} {
		if !slices.Contains(listed, id) {
			t.Errorf("no module %s in\n%s", id, out)
		}
	}
}

// What xcaddy has built is linked statically: where it is not root, but may use the engine,
// its agents reach their model server all the same, and nothing else.
func TestDockerNotRoot(t *testing.T) {
	engine := newEngine(t)
	caddy := withRateLimit(t)
	socket, err := os.Stat(strings.TrimPrefix(engine.host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 || socket.Mode().Perm()&0o060 != 0o060 {
		missing(t, "only root can start a Caddy that is another user, in the group of the engine's socket")
	}
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s with %s", r.URL.Path, r.Header.Get("Authorization"))
	}))
	defer model.Close()
	dir, err := os.MkdirTemp("", "agentfm-not-root") // others get there
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(binaryDir, 0o755)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "Dockerfile", "FROM "+baseImage+"\nENTRYPOINT [\"sh\", \"-c\", \"wget -qO- $OPENAI_BASE_URL/models; echo; wget -qO- http://127.0.0.1:11434/api/tags 2>&1; wget -qO- "+model.URL+" 2>&1\"]\n")
	writeFile(t, dir, "Caddyfile", "{\n\tadmin off\n\tagentfm_worker {\n\t\tagent a {\n\t\t\tmodel m\n\t\t\truntime docker {\n\t\t\t\thost "+engine.host+"\n\t\t\t\tbuild "+dir+
		"\n\t\t\t\tnetwork model "+model.URL+" {\n\t\t\t\t\tapi_key s3cret\n\t\t\t\t}\n\t\t\t}\n\t\t}\n\t}\n}\n")
	test := exec.CommandContext(t.Context(), caddy, "agentfm", "test", "--config", filepath.Join(dir, "Caddyfile"), "--agent", "a", "--prompt", "hello")
	test.Env = []string{"HOME=" + dir, "TMPDIR=" + dir}
	test.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533, Groups: []uint32{socket.Sys().(*syscall.Stat_t).Gid}}}
	var said strings.Builder
	test.Stderr = &said
	out, _ := test.Output() // the last request fails, so the agent does
	got := string(out)
	if !strings.HasPrefix(got, "/v1/models with Bearer s3cret\n") || !strings.Contains(got, "403 Forbidden") || !strings.Contains(got, "refused") {
		t.Errorf("the agent says %q\n%s", got, &said)
	}
}
