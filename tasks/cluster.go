// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// Cluster is where a store is that several gateways share: NATS servers with JetStream.
type Cluster struct {
	URLs        []string
	Credentials string // a .creds file
	NKey        string // the file of a seed
	User        string
	Password    string
	Token       string
	// CA are files with the certificates of authorities; empty for those of the system.
	CA []string
	// Certificate and CertificateKey are the files that the gateway shows itself with.
	Certificate    string
	CertificateKey string
	// Replicas is how many servers have each message; 0 for [DefaultReplicas], or for 1
	// where there is but one server.
	Replicas int
}

// Numbers of servers that have each message.
const (
	DefaultReplicas = 3
	MaxReplicas     = 5
)

// check looks at the settings and the files that they name.
func (c *Cluster) check() error {
	for _, s := range c.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || strings.Contains(s, ",") { // at which nats.go splits; the error shows what may be a secret
			return errors.New("nats: want URLs such as nats://host:4222")
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return fmt.Errorf("nats: the URL of %s has the scheme %q; want nats, tls, ws or wss", u.Host, u.Scheme)
		}
	}
	if c.Replicas < 0 || c.Replicas > MaxReplicas {
		return fmt.Errorf("nats: replicas: want a number from 1 to %d", MaxReplicas)
	}
	if c.Credentials != "" {
		if _, err := os.Stat(c.Credentials); err != nil {
			return fmt.Errorf("nats: credentials: %w", err)
		}
	}
	opts, err := c.options()
	if err != nil {
		return err
	}
	var o nats.Options
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return fmt.Errorf("nats: %w", err)
		}
	}
	return nil
}

// options returns what a connection is made with.
func (c *Cluster) options() ([]nats.Option, error) {
	var opts []nats.Option
	if c.Credentials != "" {
		opts = append(opts, nats.UserCredentials(c.Credentials))
	}
	if c.NKey != "" {
		opt, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("nats: nkey: reading the seed in %s: %w", c.NKey, err)
		}
		opts = append(opts, opt)
	}
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	if c.Token != "" {
		opts = append(opts, nats.Token(c.Token))
	}
	if len(c.CA) > 0 {
		opts = append(opts, nats.RootCAs(c.CA...))
	}
	if c.Certificate != "" {
		opts = append(opts, nats.ClientCert(c.Certificate, c.CertificateKey))
	}
	return opts, nil
}

// String names the servers, without who may use them.
func (c *Cluster) String() string {
	hosts := make([]string, len(c.URLs))
	for i, s := range c.URLs {
		if u, err := url.Parse(s); err == nil {
			hosts[i] = u.Host
		}
	}
	return "the NATS servers " + strings.Join(hosts, ", ")
}

// How a connection to a cluster is kept.
const (
	dialTimeout    = 3 * time.Second
	reconnectPause = 500 * time.Millisecond
	pingInterval   = 5 * time.Second // two without an answer are the end of a connection
)

// minPayload is what servers must take in one message: a prompt of the greatest size.
const minPayload = 1 << 20

// connect connects to a cluster.
func (s *store) connect(c *Cluster, log *zap.Logger) error {
	opts, err := c.options()
	if err != nil {
		return err
	}
	opts = append(opts,
		nats.Name("caddy-agentfm"), nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1), nats.ReconnectWait(reconnectPause), nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2),
		// What cannot be sent now is an error now: it must not be sent later, when its
		// sender has given up.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("the connection to the task store broke", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("connected to the task store again", zap.String("server", nc.ConnectedServerName()))
		}),
		errorsTo(log),
	)
	if s.conn, err = nats.Connect(strings.Join(c.URLs, ","), opts...); err != nil {
		return err
	}
	if most := s.conn.MaxPayload(); most < minPayload {
		return fmt.Errorf("the servers take %d bytes in a message; set max_payload to at least %d there", most, minPayload)
	}
	s.js, err = jetstream.New(s.conn, jetstream.WithDefaultTimeout(callTimeout))
	return err
}

// How a call to a cluster is tried again.
const (
	tryTimeout = 3 * time.Second
	tryPause   = 100 * time.Millisecond
)

// patiently makes a call to the store. When the store is a cluster, of which one server may
// be going while another takes over, it is made again and again, for as long as a call may
// take: it must be one that may be made twice.
func patiently[T any](ctx context.Context, s *store, call func(context.Context) (T, error)) (T, error) {
	if !s.shared {
		return call(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		try, done := context.WithTimeout(ctx, tryTimeout)
		v, err := call(try)
		done()
		if err == nil || ctx.Err() != nil || !passing(err) {
			return v, err
		}
		pause(ctx, tryPause)
	}
}

// errStoreFailed is how JetStream says that a message is one too many.
const errStoreFailed jetstream.ErrorCode = 10077

// passing reports whether an error of a cluster may be over soon.
func passing(err error) bool {
	if apiErr, ok := errors.AsType[*jetstream.APIError](err); ok {
		return apiErr.Code == 503 && apiErr.ErrorCode != errStoreFailed
	}
	for _, lasting := range []error{
		nats.ErrConnectionClosed, nats.ErrMaxPayload, jetstream.ErrKeyNotFound, jetstream.ErrMsgNotFound, jetstream.ErrInvalidKey,
	} {
		if errors.Is(err, lasting) {
			return false
		}
	}
	return true
}
