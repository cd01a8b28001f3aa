// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"errors"
	"strings"
	"testing"
)

// hostile are URLs to which nothing is sent.
var hostile = strings.Fields(`
	x / // /hook hook.example.com //hook.example.com http: http:// https:// http:/// https:hook.example.com http:hook.example.com/x
	file:///etc/passwd gopher://example.com/ ftp://example.com/ ws://example.com/ javascript:alert(1) data:text/plain,x unix:///run/docker.sock
	HTTPS+X://example.com/ http://user@example.com/ http://user:pass@example.com/ http://example.com@127.0.0.1/ https://@example.com/
	http://example.com/#x http://example.com/x# http://example.com\@127.0.0.1/ http:\\127.0.0.1 http://example.com\
	http://example.com:0/ http://example.com:22/ http://example.com:25/ http://example.com:6379/ http://example.com:2375/ http://example.com:70000/
	http://example.com:/ http://example.com:x/ http://example.com:-1/ http://example.com:443x/ http://example.com:080/
	http://127.0.0.1/ http://127.0.0.2/ http://127.255.255.255/ http://127.0.0.1:80/ http://127.0.0.1:8080/ https://127.0.0.1:443/
	http://0.0.0.0/ http://0.1.2.3/ http://10.0.0.1/ http://10.255.255.255/ http://100.64.0.1/ http://100.100.100.200/ http://100.127.255.255/
	http://169.254.169.254/latest/meta-data/ http://169.254.0.1/ http://172.16.0.1/ http://172.31.255.255/ http://192.0.0.1/ http://192.0.0.192/
	http://192.0.2.1/ http://192.88.99.1/ http://192.168.0.1/ http://192.168.255.255/ http://198.18.0.1/ http://198.19.255.255/ http://198.51.100.1/
	http://203.0.113.1/ http://224.0.0.1/ http://239.255.255.255/ http://240.0.0.1/ http://255.255.255.255/
	http://2130706433/ http://017700000001/ http://0x7f000001/ http://0x7f.0x0.0.1/ http://127.1/ http://127.0.1/ http://0177.0.0.1/ http://0177.0x0.0x0.1/
	http://0/ http://0x0/ http://00/ http://127.000.000.001/ http://2852039166/ http://0xa9fea9fe/ http://0xA9.0xFE.0xA9.0xFE/ http://169.254.43518/ http://127.0.0.1./
	http://1.1.1.1.1/ http://256.256.256.256/ http://1.2.3/ http://example.0x7f/ http://example.1/
	http://[::]/ http://[::1]/ http://[::1]:8080/ http://[0:0:0:0:0:0:0:1]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::ffff:169.254.169.254]/
	http://[::ffff:10.0.0.1]/ http://[::ffff:0.0.0.1]/ http://[::127.0.0.1]/ http://[::ffff:0:127.0.0.1]/ http://[64:ff9b::a9fe:a9fe]/ http://[64:ff9b::8.8.8.8]/
	http://[64:ff9b:1::1]/ http://[2002:7f00:1::]/ http://[2002:808:808::1]/ http://[2001:0:53aa:64c:0:ffff:7f00:1]/ http://[2001:db8::1]/ http://[2001:10::1]/
	http://[fc00::1]/ http://[fd00:ec2::254]/ http://[fd7a:115c:a1e0::1]/ http://[fe80::1]/ http://[fe80::1%25eth0]/ http://[febf::1]/ http://[fec0::1]/
	http://[ff02::1]/ http://[ff05::1]/ http://[100::1]/ http://[5f00::1]/ http://[3fff::1]/ http://[2606:4700::1%25lo]/ http://[::1 http://::1/ http://[]/ http://[x]/
	http://localhost/ http://LOCALHOST/ http://localhost./ http://a.localhost/ http://printer.local/ http://metadata.google.internal/ http://metadata/
	http://router.lan/ http://x.home.arpa/ http://x.intranet/ http://db/ http://redis:8080/ http://x.corp/ http://x.home/
	http://exa%00mple.com/ http://%31%32%37.0.0.1/ http://exa%6dple.com/ http://example..com/ http://.example.com/ http://-a.example.com/ http://a-.example.com/
	http://exämple.com/ http://127。0。0。1/ http://①②⑦.0.0.1/ http://example.com/ä http://ex*mple.com/ http://exam,ple.com/ http://exam'ple.com/
`)

func TestCheckURL(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "")
	for _, url := range append(hostile, "", " http://example.com/", "http://example.com/ ", "http://exa\tmple.com/", "http://example.com/\n", "http://exam ple.com/",
		"http://example.com/\x00", "http://"+strings.Repeat("a", 2000)+".com/", "http://"+strings.Repeat("a", 64)+".com/", "https://example.com/"+strings.Repeat("a", 2000)) {
		if err := CheckURL(url); !errors.Is(err, ErrURL) {
			t.Errorf("%q: %v", url, err)
		}
	}
	if len(hostile) < 120 {
		t.Errorf("only %d", len(hostile))
	}
	for _, url := range strings.Fields(`
		https://hook.example.com https://hook.example.com/ https://hook.example.com/a/b?c=d&e=%20 http://hook.example.com/ HTTPS://Hook.Example.COM/
		https://hook.example.com:443/ http://hook.example.com:80/ http://hook.example.com:8080/ https://hook.example.com:8443/ https://hook.example.com./
		https://8.8.8.8/ http://100.63.255.254/ http://100.128.0.1/ http://1.1.1.1:8080/ https://[2606:4700:4700::1111]/ https://[2606:4700:4700::1111]:443/
		http://[::ffff:8.8.8.8]/ https://xn--exmple-cua.com/ https://a_b.example.com/ https://0x7f.example.com/ https://1.example.com/ https://localhost.example.com/
		https://example.com/@x https://example.com/?u=http://127.0.0.1/`) {
		if err := CheckURL(url); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	for url, ok := range map[string]bool{
		"http://127.0.0.1:1234/": true, "http://localhost:99/": true, "http://[::1]:99/": true, "http://db/": true,
		"file:///etc/passwd": false, "http://u@127.0.0.1/": false, "http://127.1/": false, "http://127.0.0.1:0/": false,
	} {
		if err := CheckURL(url); (err == nil) != ok {
			t.Errorf("private allowed: %q: %v", url, err)
		}
	}
}
