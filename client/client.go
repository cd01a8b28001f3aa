// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// Settings that a [Client] has unless it is told otherwise.
const (
	DefaultBaseURL = "http://127.0.0.1:8080"
	DefaultTimeout = 30 * time.Second
	DefaultRetries = 2
)

// Environment variables with what a client is not given.
const (
	EnvGatewayURL = "AGENTFM_GATEWAY_URL"
	EnvAPIKey     = "AGENTFM_API_KEY"
)

// Client talks to one gateway. Make one with [New]. It may be used by several goroutines,
// and does not change: [Client.With] makes another.
type Client struct {
	// Workers are the workers on the mesh.
	Workers *WorkerService
	// Tasks runs tasks, and fetches what they leave.
	Tasks *TaskService
	// OpenAI speaks OpenAI's API.
	OpenAI *OpenAIService
	// Peers is about the reputation of peers.
	Peers *PeerService

	config
}

// config is the settings of a client.
type config struct {
	baseURL   string // without a slash at its end
	key       string // empty for none
	http      *http.Client
	retries   int
	timeout   time.Duration
	userAgent string
	artifacts string        // folder; empty for none
	backoff   time.Duration // before the first retry
}

// Option is a setting of [New] and [Client.With].
type Option func(*config) error

// New returns a client of the gateway that the environment variable [EnvGatewayURL] names,
// or else of that at [DefaultBaseURL], with the key in [EnvAPIKey], if it has one. Options
// change that. It connects to nothing yet.
func New(opts ...Option) (*Client, error) {
	c := config{
		baseURL: DefaultBaseURL, http: defaultHTTPClient(), retries: DefaultRetries, timeout: DefaultTimeout,
		userAgent: userAgent(), backoff: 500 * time.Millisecond,
	}
	opts = append([]Option{withEnv(EnvGatewayURL, WithBaseURL), withEnv(EnvAPIKey, WithAPIKey)}, opts...)
	return c.client(opts)
}

// With returns a client that is like c but for the options. It has the same connections,
// unless it is given others. The environment is not looked at again.
func (c *Client) With(opts ...Option) (*Client, error) { return c.config.client(opts) }

// client returns a client with options.
func (c config) client(opts []Option) (*Client, error) {
	for _, opt := range opts {
		if err := opt(&c); err != nil {
			return nil, err
		}
	}
	client := &Client{config: c}
	client.Workers = &WorkerService{client}
	client.Tasks = &TaskService{client}
	client.OpenAI = &OpenAIService{client}
	client.Peers = &PeerService{client}
	return client, nil
}

// BaseURL returns the URL of the gateway, without a slash at its end.
func (c *Client) BaseURL() string { return c.baseURL }

// APIKey returns the key that is sent; empty for none.
func (c *Client) APIKey() string { return c.key }

// CloseIdleConnections closes the connections that are not in use.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// WithBaseURL sets the URL of the gateway: http or https, without "/v1".
func WithBaseURL(base string) Option {
	return func(c *config) error {
		base := strings.TrimRight(base, "/")
		u, err := url.Parse(base)
		switch {
		case err != nil:
			return invalid("base_url", "the base URL cannot be read: want one such as http://127.0.0.1:8080")
		case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
			return invalid("base_url", "the base URL must begin with http:// or https:// and a host")
		case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
			return invalid("base_url", "the base URL must have no user, query and fragment")
		case strings.HasSuffix(u.Path, "/v1"):
			return invalid("base_url", "the base URL is that of the gateway, without /v1")
		}
		c.baseURL = base
		return nil
	}
}

// WithAPIKey sets the key. An empty one is an error: see [WithoutAPIKey].
func WithAPIKey(key string) Option {
	return func(c *config) error {
		for i := range len(key) {
			if key[i] <= ' ' || key[i] > '~' {
				return invalid("api_key", "the API key has a character that a key cannot have")
			}
		}
		if key == "" {
			return invalid("api_key", "the API key is empty; use WithoutAPIKey for none")
		}
		c.key = key
		return nil
	}
}

// WithoutAPIKey sends no key, also when the environment has one.
func WithoutAPIKey() Option {
	return func(c *config) error {
		c.key = ""
		return nil
	}
}

// withEnv takes an option's value from the environment, if it has one.
func withEnv(name string, option func(string) Option) Option {
	return func(c *config) error {
		value := strings.TrimSpace(os.Getenv(name))
		if value == "" {
			return nil
		}
		if err := option(value)(c); err != nil {
			e := *err.(*Error) // every option's is one
			e.Message = name + ": " + e.Message
			return &e
		}
		return nil
	}
}

// WithHTTPClient sends requests with another HTTP client, for its transport and timeout,
// which is then that of streams, too. Its jar of cookies is not used, and redirects are
// not followed.
func WithHTTPClient(client *http.Client) Option {
	return func(c *config) error {
		if client == nil {
			return invalid("http_client", "the HTTP client is nil")
		}
		c.http = plainClient(client.Transport, client.Timeout)
		return nil
	}
}

// WithRetries sets how often what only looks is sent again, after the first time; 0 is
// never. See the package's comment.
func WithRetries(n int) Option {
	return func(c *config) error {
		if n < 0 || n > 100 {
			return invalid("retries", "retries: want 0 to 100, not %d", n)
		}
		c.retries = n
		return nil
	}
}

// WithTimeout sets how long one attempt of a call may take that is not work of an agent:
// lists, states, submissions. 0 is for as long as its context. Runs, streams and downloads
// have no limit but their context.
func WithTimeout(d time.Duration) Option {
	return func(c *config) error {
		if d < 0 {
			return invalid("timeout", "timeout: want 0 or more, not %v", d)
		}
		c.timeout = d
		return nil
	}
}

// WithUserAgent sets what is said to the gateway of the program.
func WithUserAgent(name string) Option {
	return func(c *config) error {
		if name == "" || printable(name) != name {
			return invalid("user_agent", "the user agent is empty, or cannot be sent")
		}
		c.userAgent = name
		return nil
	}
}

// WithArtifactsDir sets the folder into which the files of tasks go, each task's into a
// folder of its own, where a call does not name another. Without it they are left where
// they are.
func WithArtifactsDir(dir string) Option {
	return func(c *config) error {
		c.artifacts = dir
		return nil
	}
}

// userAgent says which version of this package it is.
var userAgent = sync.OnceValue(func() string {
	const module = "github.com/Agent-FM/caddy-agentfm"
	version := "devel"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == module && m.Version != "" && m.Version != "(devel)" {
				version = m.Version
			}
		}
	}
	return "agentfm-go/" + version
})

// defaultHTTPClient is that of all clients that are not given another. Dials and idle
// connections have limits; a connection that is dead is found by keep-alives.
var defaultHTTPClient = sync.OnceValue(func() *http.Client {
	dialer := &net.Dialer{Timeout: 20 * time.Second, KeepAlive: 15 * time.Second}
	return plainClient(&http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: 20 * time.Second,
		ForceAttemptHTTP2: true, MaxIdleConns: 256, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}, 0)
})

// plainClient returns an HTTP client that follows no redirects: they would carry a prompt
// to another place.
func plainClient(transport http.RoundTripper, timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: transport, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
