// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// example is a running example: the committed file, in which nothing is changed
// but addresses, folders, who issues certificates, and that agents also work
// while the machine is busy with other tests.
type example struct {
	*process
	dir    string            // its home, and its /etc/caddy
	ports  map[string]string // from what the file says to what is used
	client *http.Client      // trusts its certificates, and finds its names here
}

// setting is what an example finds where it runs.
type setting struct {
	program string   // default: the ready-made binary
	ports   []string // of its sites, as they stand in the file
	// addresses of other servers, from what stands in the file
	addresses map[string]string
	files     map[string]string // in /etc/caddy
	env       []string
}

// startExample starts a file of the folder examples.
func startExample(t *testing.T, file string, s setting) *example {
	t.Helper()
	committed, err := os.ReadFile(filepath.Join(root, "examples", file))
	if err != nil {
		t.Fatal(err)
	}
	e := &example{dir: home(t), ports: make(map[string]string)}
	for name, content := range s.files {
		writeFile(t, e.dir, name, content)
	}
	free := freePorts(t, 4+len(s.ports))
	admin, plain, https, node := free[0], free[1], free[2], free[3]
	text := replaceOnce(t, string(committed), "\n{\n", fmt.Sprintf("\n{\n\tadmin 127.0.0.1:%s\n\thttp_port %s\n\thttps_port %s\n"+
		"\tdefault_bind 127.0.0.1\n\tlocal_certs\n\tskip_install_trust\n", admin, plain, https))
	for i, port := range s.ports {
		e.ports[port] = free[4+i]
		text = strings.ReplaceAll(text, ":"+port, ":"+free[4+i])
	}
	for from, to := range s.addresses {
		text = strings.ReplaceAll(text, from, to)
	}
	text = regexp.MustCompile(`/ip4/0\.0\.0\.0/tcp/4001( /ip4/0\.0\.0\.0/udp/4001/quic-v1)?`).
		ReplaceAllString(text, "/ip4/127.0.0.1/tcp/"+node)
	for _, setting := range []string{"bootstrap", "discovery"} {
		if !regexp.MustCompile(`(?m)^\t+` + setting + ` `).MatchString(text) {
			text = replaceOnce(t, text, "\tmesh {\n", "\tmesh {\n\t\t\t"+setting+" off\n")
		}
	}
	text = regexp.MustCompile(`(?m)^\t+max_cpu .*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`(?m)^\t+max_tasks .*\n`).ReplaceAllString(text, "${0}\t\t\tmax_cpu off\n")
	for _, folder := range []string{"/etc/caddy/", "/var/log/caddy/", "/var/lib/agentfm/"} {
		text = strings.ReplaceAll(text, folder, e.dir+"/")
	}
	e.ports["2019"], e.ports["4001"] = admin, node
	e.process = launch(t, s.program, e.dir, text, s.env)
	e.client = e.newClient(https)
	return e
}

// newClient returns a client that goes to the example whatever the name of the
// site, and trusts the authority that the example has made for itself.
func (e *example) newClient(https string) *http.Client {
	var trust sync.Once
	roots := x509.NewCertPool()
	file := filepath.Join(e.dir, "caddy/pki/authorities/local/root.crt")
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			if host != "localhost" {
				port = https
				pem, err := os.ReadFile(file)
				if err != nil {
					return nil, err // not there yet
				}
				trust.Do(func() { roots.AppendCertsFromPEM(pem) })
			}
			var d net.Dialer
			return d.DialContext(ctx, network, "127.0.0.1:"+port)
		},
		ForceAttemptHTTP2: true,
	}
	e.t.Cleanup(transport.CloseIdleConnections)
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &http.Client{Transport: transport, CheckRedirect: noRedirect, Timeout: patience}
}

// local is the URL of a site of the example at a port of localhost.
func (e *example) local(port string) string { return "http://localhost:" + e.ports[port] }

// answer is the answer to one request.
type answer struct {
	*http.Response
	text string
}

// send sends a request with headers in pairs, and reads the answer.
func (e *example) send(method, url, body string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(e.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp, string(text)}, err
}

// awaitWorker waits until a site has a worker that takes tasks.
func (e *example) awaitWorker(site string, headers ...string) {
	e.t.Helper()
	e.await("an available worker", func() bool {
		a, err := e.send(http.MethodGet, site+"/v1/models", "", headers...)
		return err == nil && a.StatusCode == http.StatusOK && strings.Contains(a.text, `"agentfm_status":"AVAILABLE"`)
	})
}

// chat asks the report agent of a site.
func (e *example) chat(site string, headers ...string) answer {
	e.t.Helper()
	body, err := json.Marshal(chatRequest("text-report", "One two two.", false))
	if err != nil {
		e.t.Fatal(err)
	}
	a, err := e.send(http.MethodPost, site+"/v1/chat/completions", string(body), headers...)
	if err != nil {
		e.t.Fatal(err)
	}
	return a
}

// wantReport wants the answer of the report agent.
func (a answer) wantReport(t *testing.T) {
	t.Helper()
	if a.StatusCode != http.StatusOK || !strings.Contains(a.text, "- Words: 3, of them 2 different") {
		t.Errorf("%s, want a report: %s", a.Status, a.text)
	}
}

// wantError wants an error in the form of the API.
func (a answer) wantError(t *testing.T, status int, code string) {
	t.Helper()
	var envelope struct {
		Error struct {
			Message, Type, Code string
		}
	}
	err := json.Unmarshal([]byte(a.text), &envelope)
	if got := envelope.Error; err != nil || a.StatusCode != status || got.Code != code || got.Message == "" || got.Type == "" {
		t.Errorf("%s, want %d %s: %s", a.Status, status, code, a.text)
	}
}

// address is the multiaddress of the example's node.
func (e *example) address() string {
	e.t.Helper()
	peer, _ := e.awaitLog("mesh node is open")["peer"].(string)
	return "/ip4/127.0.0.1/tcp/" + e.ports["4001"] + "/p2p/" + peer
}

// startReporter starts a worker with the report agent on the example's mesh.
func (e *example) startReporter() {
	e.t.Helper()
	mesh := "\n\t\t\tlisten /ip4/127.0.0.1/tcp/0\n\t\t\tbootstrap " + e.address() + "\n\t\t\tdiscovery off"
	start(e.t, home(e.t), caddyfile(mesh, "", agent("report", "Text report", "text-report", command(reportScript))))
}

// awaitAccess waits for the entry of an access log about the task of an answer.
func awaitAccess(p *process, read func() string, a answer) map[string]any {
	p.t.Helper()
	task := a.Header.Get("X-AgentFM-Task")
	var entry map[string]any
	p.await("the access log", func() bool {
		for line := range strings.Lines(read()) {
			if task != "" && strings.Contains(line, task) && strings.Contains(line, `"handled request"`) {
				return json.Unmarshal([]byte(line), &entry) == nil
			}
		}
		return false
	})
	return entry
}

func bearer(key string) []string { return []string{"Authorization", "Bearer " + key} }

// The gateway with which the image starts has a name when it is told one, and
// serves whom it has keys for.
func TestExampleGateway(t *testing.T) {
	e := startExample(t, "gateway/Caddyfile", setting{
		env: []string{"AGENTFM_API_KEYS=" + testKey, "AGENTFM_SITE=gateway.example.com"},
	})
	e.startReporter()
	const site = "https://gateway.example.com"
	e.awaitWorker(site, bearer(testKey)...)
	e.chat(site, bearer(testKey)...).wantReport(t)
	e.chat(site).wantError(t, http.StatusUnauthorized, "unauthorized")
}

func TestExamplePublic(t *testing.T) {
	e := startExample(t, "public/Caddyfile", setting{files: map[string]string{"api-keys": "alice " + testKey + "\n"}})
	e.startReporter()
	const site = "https://gateway.example.com"
	e.awaitWorker(site, bearer(testKey)...)

	a := e.chat(site, append(bearer(testKey), "X-Api-Key", testKey)...) // as Continue does
	a.wantReport(t)
	if a.TLS == nil || a.ProtoMajor != 2 {
		t.Errorf("%s with TLS %v", a.Proto, a.TLS)
	}
	entry := awaitAccess(e.process, func() string {
		b, _ := os.ReadFile(filepath.Join(e.dir, "access.log")) // empty until it is there
		return string(b)
	}, a)
	fields, _ := entry["agentfm"].(map[string]any)
	if entry["user_id"] != "alice" || fields["peer"] != a.Header.Get("X-AgentFM-Peer") || fields["model"] != "text-report" {
		t.Errorf("access log: %v", entry)
	}
	if strings.Contains(fmt.Sprint(entry), testKey) {
		t.Errorf("the access log has the key: %v", entry)
	}

	e.chat(site).wantError(t, http.StatusUnauthorized, "unauthorized")
	a, err := e.send(http.MethodPost, site+"/v1/chat/completions", strings.Repeat(" ", 4<<20+1), bearer(testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	a.wantError(t, http.StatusRequestEntityTooLarge, "request_too_large")
	// More headers than max_header_size, and what Go allows on top.
	if a, err := e.send(http.MethodGet, site+"/health", "", "X-Large", strings.Repeat("x", 32<<10)); err == nil && a.StatusCode < 400 {
		t.Errorf("too large a header: %s", a.Status)
	}

	writeFile(t, e.dir, "api-keys", "bob another-key-of-this-gateway\n")
	e.await("the end of the old key", func() bool { // not with the new one, which would soon be a guess too many
		a, err = e.send(http.MethodGet, site+"/v1/models", "", bearer(testKey)...)
		return err != nil || a.StatusCode != http.StatusOK
	})
	if err != nil {
		t.Fatal(err)
	}
	a.wantError(t, http.StatusUnauthorized, "invalid_api_key")
	e.chat(site, bearer("another-key-of-this-gateway")...).wantReport(t)
}

func TestExamplePrivateSwarm(t *testing.T) {
	secret := make([]byte, 32)
	rand.Read(secret)
	files := map[string]string{"swarm.key": fmt.Sprintf("/key/swarm/psk/1.0.0/\n/base16/\n%x\n", secret)}
	gateway := startExample(t, "private-swarm/gateway.Caddyfile", setting{files: files, env: []string{"AGENTFM_API_KEYS=" + testKey}})
	startExample(t, "private-swarm/worker.Caddyfile", setting{files: files, env: []string{"AGENTFM_GATEWAY=" + gateway.address()}})
	const site = "https://gateway.example.com"
	gateway.awaitWorker(site, bearer(testKey)...)
	gateway.chat(site, bearer(testKey)...).wantReport(t)
}

// The agent of the Docker example answers from its container.
func TestExampleDocker(t *testing.T) {
	engine := newEngine(t)
	e := startExample(t, "docker/Caddyfile", setting{env: []string{"AGENTFM_API_KEYS=" + testKey, "DOCKER_HOST=" + engine.host}})
	const site = "https://gateway.example.com"
	e.awaitWorker(site, bearer(testKey)...)
	e.chat(site, bearer(testKey)...).wantReport(t)
}

// The models of a server on this machine are there by their names.
func TestExampleModelServer(t *testing.T) {
	b := startBackend(t)
	e := startExample(t, "model-server/Caddyfile", setting{
		addresses: map[string]string{"http://127.0.0.1:11434": b.url},
		env:       []string{"AGENTFM_API_KEYS=" + testKey},
	})
	const site = "https://gateway.example.com"
	e.awaitWorker(site, bearer(testKey)...)
	body := `{"model":"` + backendModel + `","messages":[{"role":"user","content":"hello"}],"max_tokens":4,"temperature":0}`
	a, err := e.send(http.MethodPost, site+"/v1/chat/completions", body, bearer(testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	if a.StatusCode != http.StatusOK || !strings.Contains(a.text, `"completion_tokens":4`) {
		t.Errorf("%s: %s", a.Status, a.text)
	}
	a, err = e.send(http.MethodGet, site+"/v1/models", "", bearer(testKey)...)
	if err != nil || !strings.Contains(a.text, `"agentfm_models":["`+backendModel+`"]`) {
		t.Errorf("%v, %s", err, a.text)
	}
	e.chat(site).wantError(t, http.StatusUnauthorized, "unauthorized")
}

func TestExamplePrometheus(t *testing.T) {
	needProgram(t, "curl")
	e := startExample(t, "prometheus/Caddyfile", setting{ports: []string{"8080", "9180"}})
	e.awaitWorker(e.local("8080"))
	e.chat(e.local("8080")).wantReport(t)
	a, err := e.send(http.MethodGet, e.local("9180")+"/metrics", "")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(a.text, "\ncaddy_http_requests_total{") {
		t.Errorf("no metrics of requests in\n%s", a.text)
	}
	if want := "\nagentfm_tasks_total{status=\"ok\"} 1\n"; !strings.Contains(a.text, want) {
		t.Errorf("no %q in\n%s", want, a.text)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`\bagentfm_[a-z_]+(_total|_seconds|_online|_waiting|_flight|_bucket)\b`).FindAllString(string(page), -1) {
		if !strings.Contains(a.text, "\n"+name+"{") && !strings.Contains(a.text, "\n"+name+" ") && !strings.Contains(a.text, "\n# TYPE "+name+" ") {
			t.Errorf("docs/monitoring.md tells of %s, which is not there", name)
		}
	}
	for _, label := range regexp.MustCompile(`\b(?:status|outcome|protocol|reason)="(\w+)"`).FindAllStringSubmatch(a.text, -1) {
		if !strings.Contains(string(page), "`"+label[1]+"`") {
			t.Errorf("docs/monitoring.md does not tell of the label %s", label[1])
		}
	}
	for _, name := range regexp.MustCompile(`(?m)^# TYPE (agentfm_\w+)`).FindAllStringSubmatch(a.text, -1) {
		if !strings.Contains(string(page), "`"+name[1]) {
			t.Errorf("docs/monitoring.md does not tell of %s", name[1])
		}
	}
	// What the page types at the admin API.
	block := regexp.MustCompile("(?s)```sh\n([^`]*localhost:2019/agentfm.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/monitoring.md has no requests of the admin API")
	}
	typed := strings.ReplaceAll(string(block[1]), "http://localhost:2019", e.local("2019"))
	out, err := exec.CommandContext(t.Context(), "sh", "-euc", typed).CombinedOutput()
	for _, want := range []string{`"workers_online":1`, `"agent_name":"Text report"`, `"direction":"inbound"`, `"ok":false`} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v, no %s in\n%s\nof\n%s", err, want, out, typed)
		}
	}
	if a, err = e.send(http.MethodGet, e.local("8080")+"/metrics", ""); err != nil || strings.Contains(a.text, "caddy_") {
		t.Errorf("the site for clients tells metrics: %s, %v", a.text, err)
	}
}

// One tenant sends too much, and is told so; another does not notice.
func TestExampleRateLimits(t *testing.T) {
	const a, b = "key-of-tenant-a-0123456789", "key-of-tenant-b-0123456789"
	e := startExample(t, "rate-limits/Caddyfile", setting{
		program: withRateLimit(t),
		ports:   []string{"8080"},
		files:   map[string]string{"api-keys": "tenant-a " + a + "\ntenant-b " + b + "\n"},
	})
	site := e.local("8080")
	e.awaitWorker(site, bearer(b)...)
	e.chat(site).wantError(t, http.StatusUnauthorized, "unauthorized")
	e.chat(site, bearer("key-of-nobody-0123456789")...).wantError(t, http.StatusUnauthorized, "invalid_api_key")

	for range 10 {
		e.chat(site, bearer(a)...).wantReport(t)
	}
	for range 5 {
		refused := e.chat(site, bearer(a)...)
		refused.wantError(t, http.StatusTooManyRequests, "rate_limit_exceeded")
		if s, err := strconv.Atoi(refused.Header.Get("Retry-After")); err != nil || s < 1 || s > 60 {
			t.Errorf("Retry-After %q", refused.Header.Get("Retry-After"))
		}
		e.chat(site, bearer(b)...).wantReport(t)
	}
}

// teamPasswordHash is the bcrypt hash of "password of the team", at the lowest cost.
const teamPasswordHash = "$2a$04$kjP0BeKjPJS41sXDS7ZPBuaafdRhrKFjm5/ZWNP9r2brydXQTh73K"

// People come in by the word of the authentication server or with a password,
// programs with a key, and nobody by their own word.
func TestExampleSSO(t *testing.T) {
	// As such servers do, this one knows people by a cookie.
	authority := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch cookie, err := r.Cookie("session"); {
		case err != nil || r.URL.Path != "/verify":
			http.Redirect(w, r, "https://login.example.com/", http.StatusFound)
		case cookie.Value == "of-alice":
			w.Header().Set("Remote-User", "alice")
		case cookie.Value == "of-nobody": // accepted, and without a name
		}
	}))
	defer authority.Close()
	e := startExample(t, "sso/Caddyfile", setting{
		addresses: map[string]string{"127.0.0.1:9091": strings.TrimPrefix(authority.URL, "http://")},
		files:     map[string]string{"api-keys": "ci " + testKey + "\n"},
		env:       []string{"TEAM_PASSWORD_HASH=" + teamPasswordHash},
	})
	const site, team = "https://gateway.example.com", "https://team.example.com"
	e.awaitWorker(site, bearer(testKey)...)

	for _, who := range []struct {
		user    string
		site    string
		headers []string
	}{
		{"ci", site, bearer(testKey)},
		{"ci", site, append(bearer(testKey), "Remote-User", "root")},
		{"alice", site, []string{"Cookie", "session=of-alice"}},
		{"alice", site, []string{"Cookie", "session=of-alice", "Remote-User", "root"}},
		{"team", team, []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("team:password of the team"))}},
	} {
		a := e.chat(who.site, who.headers...)
		a.wantReport(t)
		if entry := awaitAccess(e.process, e.log.String, a); entry["user_id"] != who.user {
			t.Errorf("%s is %v in the access log", who.user, entry["user_id"])
		}
	}

	for _, headers := range [][]string{nil, {"Remote-User", "alice"}} {
		if a := e.chat(site, headers...); a.StatusCode != http.StatusFound || a.Header.Get("Location") != "https://login.example.com/" {
			t.Errorf("without a session: %s", a.Status)
		}
	}
	for _, headers := range [][]string{
		{"Cookie", "session=of-nobody"},
		{"Cookie", "session=of-nobody", "Remote-User", "alice"},
	} {
		e.chat(site, headers...).wantError(t, http.StatusUnauthorized, "unauthorized")
	}
	// A header that keeps the authentication server out of it.
	forged := append(bearer("no-key-of-this-gateway"), "Remote-User", "alice", "X-Remote-User", "alice", "Remote_User", "alice")
	e.chat(site, forged...).wantError(t, http.StatusUnauthorized, "invalid_api_key")
	forged[1] = "bearer"
	if a := e.chat(site, forged...); a.StatusCode != http.StatusFound {
		t.Errorf("with half a header: %s", a.Status)
	}
	for _, headers := range [][]string{nil, {"Remote-User", "team"}, bearer(testKey)} {
		if a := e.chat(team, headers...); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("without a password: %s", a.Status)
		}
	}
}
