// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
)

// The tests in the files security_*_test.go try what a stranger on the internet
// may send: security.md says which promise is tested where, and how long.

// front is a gateway with a plain site and one with TLS, which speaks HTTP/1.1,
// HTTP/2 and HTTP/3. Both have the same handlers.
type front struct {
	*process
	dir  string // where it runs
	host string // of the site with TLS, with its port
}

// startFront starts a gateway with more global options and the lines of its
// sites' blocks.
func startFront(t *testing.T, global, site string, agents ...string) *front {
	t.Helper()
	return startFrontOn(t, localMesh, global, site, agents...)
}

// startFrontOn does the same with the lines of the mesh block.
func startFrontOn(t *testing.T, mesh, global, site string, agents ...string) *front {
	t.Helper()
	f := &front{dir: home(t), host: "localhost:" + freePorts(t, 1)[0]}
	// Caddy 2.11.4's cleaner of certificates has a data race with its own start.
	text := replaceOnce(t, caddyfile(mesh, site, agents...), "\tadmin ADMIN\n",
		"\tadmin ADMIN\n\tskip_install_trust\n\tauto_https disable_redirects\n\tstorage_clean_interval off\n"+global)
	text += fmt.Sprintf("https://%s {\n\tbind 127.0.0.1\n\ttls internal\n\t%s\n}\n", f.host, site)
	f.process = start(t, f.dir, text)
	f.await("the sites", func() bool {
		for _, c := range []*http.Client{newClient(t, 1), newClient(t, 2)} {
			resp, err := c.Get("https://" + f.host + "/health")
			if err != nil {
				return false
			}
			resp.Body.Close()
		}
		resp, err := newClient(t, 1).Get(f.url + "/health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode != http.StatusServiceUnavailable // the gateway is starting
	})
	return f
}

// trustLoopback has Caddy take the address of a client from X-Forwarded-For, so
// that a test can come from anywhere.
const trustLoopback = "\tservers {\n\t\ttrusted_proxies static 127.0.0.0/8\n\t}\n"

// newClient returns a client of a version of HTTP. It does not know Caddy's own
// authority, whose certificates are of no interest here.
func newClient(t *testing.T, version int) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: version == 2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// received is an answer that has come whole.
type received struct {
	status int
	header http.Header
	body   string
}

// failed wants an error in the form of the APIs, and nothing beside it.
func (a received) failed(t *testing.T, status int, code string) {
	t.Helper()
	var envelope struct {
		Error *struct {
			Message, Type, Code string
			Param               json.RawMessage
		}
	}
	dec := json.NewDecoder(strings.NewReader(a.body))
	dec.DisallowUnknownFields()
	err := dec.Decode(&envelope)
	switch {
	case a.status != status:
		t.Errorf("status %d, want %d: %.300q", a.status, status, a.body)
	case err != nil || envelope.Error == nil || envelope.Error.Message == "" || envelope.Error.Type == "" || envelope.Error.Param == nil:
		t.Errorf("no error of the APIs (%v): %.300q", err, a.body)
	case envelope.Error.Code != code:
		t.Errorf("code %q, want %q: %.300q", envelope.Error.Code, code, a.body)
	case a.header.Get("Content-Type") != "application/json" || a.header.Get("X-Request-Id") == "" ||
		a.header.Get("X-Content-Type-Options") != "nosniff":
		t.Errorf("headers %v", a.header)
	}
}

// ask sends a request, with pairs of names and values for its headers, and reads
// the answer.
func ask(ctx context.Context, c *http.Client, method, url string, body io.Reader, headers ...string) (received, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return received{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return send(c, req)
}

// send sends a request and reads the answer.
func send(c *http.Client, req *http.Request) (received, error) {
	resp, err := c.Do(req)
	if err != nil {
		return received{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return received{resp.StatusCode, resp.Header, string(b)}, err
}

// wantAsk is ask for requests that must be answered.
func wantAsk(t *testing.T, c *http.Client, method, url, body string, headers ...string) received {
	t.Helper()
	a, err := ask(t.Context(), c, method, url, strings.NewReader(body), headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

// address returns host and port of the plain site.
func (f *front) address() string { return strings.TrimPrefix(f.url, "http://") }

// dial connects to one of the sites.
func (f *front) dial(t *testing.T, overTLS bool) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	if overTLS {
		conn, err = tls.Dial("tcp", f.host, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	} else {
		conn, err = net.Dial("tcp", f.address())
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// raw sends bytes on a connection of their own, which no client has touched, and
// reads one answer to a request of that method.
func (f *front) raw(t *testing.T, overTLS bool, method, text string) (received, error) {
	t.Helper()
	conn := f.dial(t, overTLS)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return received{}, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return received{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return received{resp.StatusCode, resp.Header, string(b)}, err
}

// rawURL returns a URL that a client sends as it is, with no look at the path.
func rawURL(base, path string) *url.URL {
	scheme, host, _ := strings.Cut(base, "://")
	return &url.URL{Scheme: scheme, Host: host, Opaque: "//" + host + path}
}

// liveHeap returns how many bytes the process holds once its garbage is gone.
// Unlike resident memory, that does not depend on when the collector ran, nor on
// the race detector.
func (p *process) liveHeap(t *testing.T) int64 {
	t.Helper()
	return profileNumber(t, p.admin+"/debug/pprof/heap?debug=1&gc=1", "# HeapAlloc = ")
}

// goroutines returns how many goroutines the process has.
func (p *process) goroutines(t *testing.T) int64 {
	t.Helper()
	return profileNumber(t, p.admin+"/debug/pprof/goroutine?debug=1", "goroutine profile: total ")
}

// profileNumber returns the number after a prefix in one of Caddy's profiles.
func profileNumber(t *testing.T, url, prefix string) int64 {
	t.Helper()
	a := wantAsk(t, httpClient, http.MethodGet, url, "")
	for line := range strings.Lines(a.body) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s: %d, without %q", url, a.status, prefix)
	return 0
}

// resident returns the resident memory of the process in bytes, now and at its
// highest; 0 where there is no /proc.
func (p *process) resident() (now, peak int64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		var kb int64
		switch {
		case strings.HasPrefix(line, "VmRSS:"):
			_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &kb)
			now = kb << 10
		case strings.HasPrefix(line, "VmHWM:"):
			_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &kb)
			peak = kb << 10
		}
	}
	return now, peak
}

// resetPeak forgets the highest resident memory so far, where the kernel can.
func (p *process) resetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// files counts the open files of the process; -1 where there is no /proc.
func (p *process) files() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		return -1
	}
	return len(list)
}

// count returns how many log entries have a message.
func (p *process) count(message string) int {
	return strings.Count(p.log.String(), fmt.Sprintf("%q:%q", "msg", message))
}

// wantCleanLog wants no byte in the log that a terminal would take for a command.
// Caddy's own access log has what clients send in headers; it escapes ASCII alone.
func (p *process) wantCleanLog(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(p.log.String()) {
		line = strings.TrimSuffix(line, "\n")
		ours := !strings.Contains(line, `"logger":"http.log.access`)
		if i := strings.IndexFunc(line, func(r rune) bool {
			return unicode.IsControl(r) && (r < 0x80 || ours) || unicode.Is(unicode.Bidi_Control, r) && ours
		}); i >= 0 {
			t.Errorf("raw control character at byte %d of log entry %q", i, line)
		}
	}
}

// noteRuns is an agent that notes each run in the file $STATE/runs, and answers.
const noteRuns = `echo $$ >>"$STATE/runs"
cat >/dev/null
printf 'served'
`

// runCount returns how many lines an agent has noted.
func runCount(t *testing.T, state string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(state, "runs"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// newRequest returns a request with pairs of names and values for its headers.
func newRequest(t *testing.T, method, url, body string, headers ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return req
}

// children returns the names of the programs that a process runs; none where
// there is no /proc.
func children(t *testing.T, pid int) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// "pid (name) state parent …"
		begin, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
		if begin < 0 || end < 0 {
			continue
		}
		var state string
		var parent int
		if _, err := fmt.Sscan(string(b[end+1:]), &state, &parent); err == nil && parent == pid && state != "Z" {
			names = append(names, string(b[begin+1:end]))
		}
	}
	return names
}

// manySlots is an agent with room for every client of a test.
func manySlots(t *testing.T, block string) string {
	t.Helper()
	return replaceOnce(t, block, "max_tasks 4", "max_tasks 1024")
}
