// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// NATS is the NATS servers, with JetStream, in which several gateways keep their tasks
// together. Every setting may hold placeholders, but for the number of replicas. None of
// them can change in a reload.
type NATS struct {
	// The URLs of servers, such as `nats://host:4222`, or `tls://` or `wss://`. Others of
	// the same cluster are learnt from them. Required.
	URLs []string `json:"urls,omitempty"`

	// A file with credentials, as `nsc` writes it. Default: none.
	Credentials string `json:"credentials,omitempty"`
	// A file with the seed of an nkey. Default: none.
	NKey string `json:"nkey,omitempty"`
	// The name and the password of a user. Default: none.
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	// A token. Default: none.
	Token string `json:"token,omitempty"`

	// Files with the certificates of the authorities that the servers' certificates come
	// from. With it, connections are encrypted. Default: those of the system.
	CA []string `json:"ca,omitempty"`
	// Files with the certificate that the gateway shows to servers, and with its key.
	// Default: none.
	Certificate    string `json:"certificate,omitempty"`
	CertificateKey string `json:"certificate_key,omitempty"`

	// How many servers have each message, at most 5. All gateways must say the same.
	// Default: 3, or 1 where the one server is not part of a cluster.
	Replicas int `json:"replicas,omitempty"`
}

// resolve replaces placeholders. The receiver is not nil.
func (n *NATS) resolve() (*NATS, error) {
	out := *n
	out.URLs, out.CA = slices.Clone(n.URLs), slices.Clone(n.CA)
	if len(out.URLs) == 0 {
		return nil, errors.New("urls: want at least one URL")
	}
	fields := map[string]*string{
		"credentials": &out.Credentials, "nkey": &out.NKey, "user": &out.User, "password": &out.Password, "token": &out.Token,
		"certificate": &out.Certificate, "certificate_key": &out.CertificateKey,
	}
	for i := range out.URLs {
		fields[fmt.Sprintf("urls[%d]", i)] = &out.URLs[i]
	}
	for i := range out.CA {
		fields[fmt.Sprintf("ca[%d]", i)] = &out.CA[i]
	}
	repl := caddy.NewReplacer()
	for name, v := range fields {
		var err error
		if *v, err = repl.ReplaceOrErr(*v, true, true); err != nil { // which may show a secret
			return nil, fmt.Errorf("%s: it holds a placeholder that is unknown or empty", name)
		}
	}
	switch {
	case (out.User == "") != (out.Password == ""):
		return nil, errors.New("user and password go together")
	case (out.Certificate == "") != (out.CertificateKey == ""):
		return nil, errors.New("certificate and certificate_key go together")
	}
	for _, file := range append([]*string{&out.Credentials, &out.NKey, &out.Certificate, &out.CertificateKey}, pointers(out.CA)...) {
		if *file == "" {
			continue
		}
		var err error
		if *file, err = filepath.Abs(*file); err != nil {
			return nil, err
		}
	}
	return &out, nil
}

// pointers returns where the strings are.
func pointers(list []string) []*string {
	out := make([]*string, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

// unmarshalNATS reads the servers and their block.
func (t *Tasks) unmarshalNATS(d *caddyfile.Dispenser) error {
	n := &NATS{URLs: d.RemainingArgs()}
	if len(n.URLs) == 0 {
		return d.Err("nats: want at least one URL")
	}
	t.NATS = n
	return option.Set{
		"credentials": option.String(&n.Credentials),
		"nkey":        option.String(&n.NKey),
		"user":        option.Func(pair(&n.User, &n.Password, "a name and a password")),
		"token":       option.Key(&n.Token),
		"ca":          option.Strings(&n.CA),
		"certificate": option.Func(pair(&n.Certificate, &n.CertificateKey, "the file of a certificate and that of its key")),
		"replicas":    option.PositiveInt(&n.Replicas),
	}.Block(d)
}

// pair reads two arguments. Errors do not show them: one may be a secret.
func pair(a, b *string, what string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		args := d.RemainingArgs()
		if len(args) != 2 || args[0] == "" || args[1] == "" {
			return d.Errf("%s: want %s", name, what)
		}
		*a, *b = args[0], args[1]
		return nil
	}
}
