// SPDX-License-Identifier: Apache-2.0

// Package ipclass tells addresses of the public internet from all others, and names from
// addresses, for what dials on a stranger's word.
package ipclass

import (
	"net/netip"
	"strings"
)

// global6 is all of IPv6 that is assigned for the public internet.
var global6 = netip.MustParsePrefix("2000::/3")

// special are the addresses that are not for the public internet, or that a
// gateway on the way may turn into one that is not.
var special = parse(
	"0.0.0.0/8",       // this network
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // carrier-grade NAT; clouds keep their metadata there, too
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local; the metadata of most clouds
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // IETF protocol assignments
	"192.0.2.0/24",    // documentation
	"192.31.196.0/24", // AS112
	"192.52.193.0/24", // AMT
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"192.175.48.0/24", // AS112
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved, and broadcast
	"2001::/23",       // IETF protocol assignments: Teredo, ORCHID, benchmarks
	"2001:db8::/32",   // documentation
	"2002::/16",       // 6to4, which holds an IPv4 address
	"2620:4f:8000::/48",
	"3fff::/20", // documentation
)

func parse(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// Public reports whether a is a unicast address of the public internet. An IPv4
// address in the form ::ffff:a.b.c.d counts as that address; other forms that
// hold one, such as NAT64's and 6to4's, are not public, whatever they hold.
func Public(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	if a = a.Unmap(); !a.IsValid() || a.Is6() && !global6.Contains(a) {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// Name reports whether a host, in lower case and without a dot at its end, is a name of the
// domain name system: a number in any spelling is none, which some resolvers take for an
// address.
func Name(host string) bool {
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
		last = label
	}
	return len(host) <= 253 && strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(last, "0x")
}
