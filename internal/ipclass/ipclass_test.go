// SPDX-License-Identifier: Apache-2.0

package ipclass

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		// public
		"1.1.1.1": true, "8.8.8.8": true, "9.255.255.255": true, "11.0.0.0": true, "78.47.21.107": true,
		"100.63.255.255": true, "100.128.0.0": true, "126.255.255.255": true, "128.0.0.0": true,
		"169.253.255.255": true, "169.255.0.0": true, "172.15.255.255": true, "172.32.0.0": true,
		"192.0.1.0": true, "192.167.255.255": true, "192.169.0.0": true, "198.17.255.255": true, "198.20.0.0": true,
		"223.255.255.255": true, "::ffff:8.8.8.8": true,
		"2606:4700:4700::1111": true, "2a01:4f8::1": true, "2001:4860:4860::8888": true, "2003::1": true,
		// IPv4
		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "10.255.255.255": false,
		"100.64.0.1": false, "100.100.100.200": false, "100.127.255.255": false, "127.0.0.1": false, "127.255.255.255": false,
		"169.254.0.1": false, "169.254.169.254": false, "172.16.0.1": false, "172.31.255.255": false,
		"192.0.0.1": false, "192.0.0.192": false, "192.0.2.1": false, "192.88.99.1": false, "192.168.0.1": false, "192.168.255.255": false,
		"198.18.0.1": false, "198.19.255.255": false, "198.51.100.1": false, "203.0.113.1": false,
		"224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false, "255.255.255.255": false,
		// IPv4 in IPv6
		"::ffff:10.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::ffff:0.0.0.1": false, "::ffff:100.64.0.1": false,
		"::127.0.0.1": false, "::8.8.8.8": false, "::ffff:0:127.0.0.1": false, "::ffff:0:8.8.8.8": false,
		"64:ff9b::a9fe:a9fe": false, "64:ff9b::8.8.8.8": false, "64:ff9b:1::1": false, "64:ff9b:1::8.8.8.8": false,
		"2002:7f00:1::": false, "2002:808:808::1": false, "2001:0:53aa:64c:0:ffff:7f00:1": false, "2001::1": false,
		// IPv6
		"::": false, "::1": false, "100::1": false, "2001:2::1": false, "2001:10::1": false, "2001:20::1": false, "2001:db8::1": false,
		"3fff::1": false, "5f00::1": false, "fc00::1": false, "fd00:ec2::254": false, "fd7a:115c:a1e0::1": false,
		"fe80::1": false, "febf::1": false, "fec0::1": false, "ff02::1": false, "ff05::1": false, "fe80::1%eth0": false,
		"2606:4700::1%eth0": false, "4000::1": false, "1fff::1": false,
	} {
		if got := Public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %v", addr, got)
		}
	}
	if Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestName(t *testing.T) {
	for host, want := range map[string]bool{
		"example.com": true, "localhost": true, "a_b.example": true, "xn--bcher-kva.example": true, "1.2.3.4.example": true, "3com": true,
		strings.Repeat("a", 63) + ".example": true,
		"":                                   false, ".": false, "a..b": false, "a.": false, "-a.example": false, "a-.example": false, "a b": false, "ex%61mple": false, "é.example": false,
		"127.1": false, "2130706433": false, "0x7f000001": false, "127.0x1": false, "1.2.3.4": false, "0177.0.0.1": false,
		strings.Repeat("a", 64) + ".example": false, strings.Repeat("a.", 127): false,
	} {
		if got := Name(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
