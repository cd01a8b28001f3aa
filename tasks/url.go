// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
)

// ErrURL says that a URL cannot be that of a webhook.
var ErrURL = errors.New("the URL is not allowed")

// maxURL bounds the length of one, in bytes.
const maxURL = 2000

// publicPorts are where the servers of the web are.
var publicPorts = map[string]bool{"": true, "80": true, "443": true, "8080": true, "8443": true}

// privateAllowed reports whether webhooks may go to addresses that are not public.
func privateAllowed() bool { return os.Getenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE") == "1" }

// CheckURL returns an [ErrURL] for a URL to which no webhook is sent, as far as the URL
// shows it. The address is looked at when it is dialled.
func CheckURL(raw string) error {
	refuse := func(why string) error { return fmt.Errorf("%w: %s", ErrURL, why) }
	if len(raw) > maxURL {
		return refuse(fmt.Sprintf("it has more than %d bytes", maxURL))
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		return refuse("it holds characters that a URL has only when they are encoded")
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return refuse("it is malformed")
	case u.Scheme != "http" && u.Scheme != "https", u.Opaque != "":
		return refuse("want one that begins with https:// or http://")
	case u.User != nil:
		return refuse("it holds a user")
	case u.Fragment != "" || strings.HasSuffix(raw, "#"):
		return refuse("it has a fragment")
	}
	return checkHost(u.Hostname(), u.Port(), strings.HasSuffix(u.Host, ":"))
}

// checkHost looks at the host and the port of a URL.
func checkHost(host, port string, noPort bool) error {
	refuse := func(why string) error { return fmt.Errorf("%w: %s", ErrURL, why) }
	addr, err := netip.ParseAddr(host)
	literal := err == nil
	switch {
	case host == "" || noPort || !literal && !ipclass.Name(strings.ToLower(strings.TrimSuffix(host, "."))):
		return refuse("its host is malformed")
	case port == "0":
		return refuse("its port is malformed")
	case privateAllowed():
		return nil
	case !publicPorts[port]:
		return refuse("its port is not 443, 8443, 80 or 8080")
	case literal && !ipclass.Public(addr), !literal && localName(host):
		return refuse("its host is not on the public internet")
	}
	return nil
}

// localName reports whether a name is one of this machine or of a network around it.
func localName(host string) bool {
	host = "." + strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.Count(host, ".") == 1 { // such a name is completed by the resolver
		return true
	}
	for _, zone := range []string{".localhost", ".local", ".internal", ".lan", ".home.arpa", ".intranet", ".corp", ".home"} {
		if strings.HasSuffix(host, zone) {
			return true
		}
	}
	return false
}
