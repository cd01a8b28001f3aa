// SPDX-License-Identifier: Apache-2.0

// Package localgateway starts a gateway of one's own, for tests and notebooks: a process
// of the binary agentfm, or of a Caddy with the modules of caddy-agentfm.
//
//	gw, err := localgateway.Start(ctx, localgateway.Options{})
//	defer gw.Stop()
//	c, err := gw.Client()
//
// It listens at a free port of 127.0.0.1, is ready when Start returns, and leaves nothing
// when it is stopped.
package localgateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// Environment variables that the process has, for a Caddyfile of one's own: {$GATEWAY_ADDRESS}.
const (
	EnvAddress = "GATEWAY_ADDRESS" // where it shall listen: 127.0.0.1 and a port
	EnvKey     = "GATEWAY_KEY"     // Options.APIKey
	EnvDir     = "GATEWAY_DIR"     // Options.Dir
)

// Options are how a gateway is started. The zero value is a gateway on a mesh of its own,
// without workers and without a key.
type Options struct {
	// Program is the path of the binary; empty is agentfm, or else caddy, of the PATH.
	Program string
	// Caddyfile is the configuration; empty is [DefaultCaddyfile]. Its site must be
	// http://{$GATEWAY_ADDRESS}. The state of the process is in Dir, whatever it says.
	Caddyfile string
	// APIKey is the key of the gateway, of at least 16 characters; empty is none.
	APIKey string
	// Dir is the folder for its state; empty is one that is removed at the end.
	Dir string
	// Env is added to the environment of this process.
	Env []string
	// Log gets what the process says on standard error, beside [Gateway.Log]; it may be nil.
	Log io.Writer
	// StartTimeout is how long it may take until it is ready; 0 is 30 seconds.
	StartTimeout time.Duration
	// StopTimeout is how long it may take to end before it is killed; 0 is 10 seconds.
	StopTimeout time.Duration
}

// DefaultCaddyfile returns the configuration of a gateway on a mesh of its own. agents are
// the agents of the process, as blocks of the option agentfm_worker; there may be none.
func DefaultCaddyfile(apiKey string, agents ...string) string {
	keys, worker := "", ""
	if apiKey != "" {
		keys = " {\n\t\tapi_keys {$" + EnvKey + "}\n\t}"
	}
	if len(agents) > 0 {
		worker = "\tagentfm_worker {\n" + strings.Join(agents, "\n") + "\n\t}\n"
	}
	return `{
	admin off
	persist_config off
	agentfm {
		mesh {
			listen /ip4/127.0.0.1/tcp/0
			bootstrap off
			discovery off
		}
		artifacts {$` + EnvDir + `}/artifacts
	}
` + worker + `}

http://{$` + EnvAddress + `} {
	bind 127.0.0.1
	agentfm` + keys + `
}
`
}

// Gateway is a gateway that runs.
type Gateway struct {
	url    string
	o      Options
	cmd    *exec.Cmd
	log    tail
	ended  chan struct{} // closed when the process has ended
	remove bool          // the folder
	once   sync.Once
	err    error
}

// failed is the error for a gateway that cannot be started.
func failed(err error, format string, args ...any) error {
	message := fmt.Sprintf(format, args...)
	if err != nil {
		message += ": " + err.Error()
	}
	return &client.Error{Kind: client.ErrGateway, Message: message, Err: err}
}

// Start starts a gateway and returns when it is ready. When ctx ends before that, it is
// stopped; afterwards, ctx has no effect.
func Start(ctx context.Context, o Options) (*Gateway, error) {
	o.StartTimeout = cmp.Or(o.StartTimeout, 30*time.Second)
	o.StopTimeout = cmp.Or(o.StopTimeout, 10*time.Second)
	if o.Caddyfile == "" {
		o.Caddyfile = DefaultCaddyfile(o.APIKey)
	}
	var err error
	if o.Program, err = findProgram(o.Program); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	for tries := 1; ; tries++ {
		g, err := start(ctx, o)
		if err == nil {
			return g, nil
		}
		// Between choosing a port and using it, another process may have taken it.
		if taken := g != nil && strings.Contains(g.Log(), "address already in use"); !taken || tries == 3 || ctx.Err() != nil {
			return nil, err
		}
	}
}

// findProgram returns the path of the binary.
func findProgram(program string) (string, error) {
	names := []string{program}
	if program == "" {
		names = []string{"agentfm", "caddy"}
	}
	var all error
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err == nil {
			return path, nil
		}
		all = errors.Join(all, err)
	}
	return "", failed(all, "finding the binary of a gateway")
}

// start starts a process once. After an error, a gateway that is returned is stopped.
func start(ctx context.Context, o Options) (*Gateway, error) {
	g := &Gateway{o: o, ended: make(chan struct{})}
	if err := g.prepare(); err != nil {
		g.removeDir()
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		g.removeDir()
		return nil, failed(err, "starting %s", o.Program)
	}
	go func() {
		_ = g.cmd.Wait() // how it ended is in its ProcessState
		close(g.ended)
	}()
	if err := g.awaitReady(ctx); err != nil {
		_ = g.Stop() // err says more
		return g, err
	}
	return g, nil
}

// prepare makes the folder, the configuration and the command.
func (g *Gateway) prepare() error {
	if g.o.Dir == "" {
		dir, err := os.MkdirTemp("", "agentfm-gateway-")
		if err != nil {
			return failed(err, "making a folder")
		}
		g.o.Dir, g.remove = dir, true
	}
	dir, err := filepath.Abs(g.o.Dir)
	if err != nil {
		return failed(err, "finding the folder")
	}
	g.o.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return failed(err, "making the folder")
	}
	config := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(config, []byte(g.o.Caddyfile), 0o600); err != nil {
		return failed(err, "writing the configuration")
	}
	address, err := freeAddress()
	if err != nil {
		return failed(err, "finding a free port")
	}
	g.url = "http://" + address
	g.cmd = exec.Command(g.o.Program, "run", "--config", config, "--adapter", "caddyfile")
	g.cmd.Dir = dir
	g.cmd.Env = append(os.Environ(), g.o.Env...)
	g.cmd.Env = append(g.cmd.Env, EnvAddress+"="+address, EnvKey+"="+g.o.APIKey, EnvDir+"="+dir,
		"XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	g.cmd.Stderr = io.Writer(&g.log)
	if g.o.Log != nil {
		g.cmd.Stderr = io.MultiWriter(&g.log, g.o.Log)
	}
	g.cmd.WaitDelay = 5 * time.Second // what it has started may hold its standard error
	return nil
}

// freeAddress returns an address of this machine that is free now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// awaitReady waits until the gateway takes requests.
func (g *Gateway) awaitReady(ctx context.Context) error {
	c, err := g.Client(client.WithRetries(0), client.WithTimeout(5*time.Second))
	if err != nil {
		return err
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		_, err := c.Health(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-g.ended:
			return failed(nil, "the gateway has ended (%v); the end of its log:\n%s", g.cmd.ProcessState, g.lastLines())
		case <-ctx.Done():
			return failed(errors.Join(ctx.Err(), err), "the gateway is not ready; the end of its log:\n%s", g.lastLines())
		case <-ticker.C:
		}
	}
}

// lastLines returns the end of the log, for an error.
func (g *Gateway) lastLines() string {
	log := g.Log()
	return log[max(0, len(log)-2<<10):]
}

// URL returns the URL of the gateway.
func (g *Gateway) URL() string { return g.url }

// APIKey returns the key of the gateway; empty for none.
func (g *Gateway) APIKey() string { return g.o.APIKey }

// Client returns a client of the gateway, with its key.
func (g *Gateway) Client(opts ...client.Option) (*client.Client, error) {
	key := client.WithoutAPIKey()
	if g.o.APIKey != "" {
		key = client.WithAPIKey(g.o.APIKey)
	}
	return client.New(append([]client.Option{client.WithBaseURL(g.url), key}, opts...)...)
}

// Log returns the last 1 MiB of what the process has said on standard error.
func (g *Gateway) Log() string { return g.log.String() }

// Ended returns a channel that is closed when the process has ended.
func (g *Gateway) Ended() <-chan struct{} { return g.ended }

// Stop ends the process: it is asked to, and killed when it takes too long. Then its folder
// is removed, where Start has made it. Stop may be called more than once, and returns the
// same error each time: that of a process that did not end well.
func (g *Gateway) Stop() error {
	g.once.Do(func() {
		g.err = g.stop()
		g.removeDir()
	})
	return g.err
}

// stop ends the process.
func (g *Gateway) stop() error {
	select {
	case <-g.ended: // by itself
		return failed(nil, "the gateway had ended already (%v)", g.cmd.ProcessState)
	default:
	}
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil { // Windows has no such signal
		_ = g.cmd.Process.Kill()
	}
	timer := time.NewTimer(g.o.StopTimeout)
	defer timer.Stop()
	select {
	case <-g.ended:
	case <-timer.C:
		_ = g.cmd.Process.Kill() // it fails only when it has ended
		<-g.ended
		return failed(nil, "the gateway did not end within %v and was killed", g.o.StopTimeout)
	}
	if !g.cmd.ProcessState.Success() && g.cmd.ProcessState.Exited() {
		return failed(nil, "the gateway ended with %v", g.cmd.ProcessState)
	}
	return nil
}

// removeDir removes the folder that was made.
func (g *Gateway) removeDir() {
	if g.remove {
		_ = os.RemoveAll(g.o.Dir) // a temporary one
	}
}

// maxLog is how much of a log is kept, in bytes.
const maxLog = 1 << 20

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.b = append(t.b, p...); len(t.b) > 2*maxLog {
		t.b = append(t.b[:0], t.b[len(t.b)-maxLog:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b[max(0, len(t.b)-maxLog):])
}
