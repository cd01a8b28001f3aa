// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// attempt is something that this process tries to reach.
type attempt struct {
	Do   string `json:"do"`
	To   string `json:"to"`
	Name string `json:"name"` // in TLS
	Send string `json:"send"`
}

// attemptTime is how long one may take.
const attemptTime = 2 * time.Second

// reach makes the attempts of a list, and says what came of each: "reached" and what was
// answered, or an error.
func reach(list string) {
	var attempts []attempt
	check(json.Unmarshal([]byte(list), &attempts))
	results := make([]string, len(attempts))
	for i, a := range attempts {
		answer, err := a.make()
		if err != nil {
			results[i] = err.Error()
			continue
		}
		results[i] = "reached " + answer
	}
	check(json.NewEncoder(os.Stdout).Encode(results))
}

func (a attempt) make() (string, error) {
	switch a.Do {
	case "socket": // a raw one, of a family and with a protocol
		var family, kind, protocol int
		_, _ = fmt.Sscan(a.To, &family, &kind, &protocol)
		fd, err := syscall.Socket(family, kind, protocol)
		if err == nil {
			_ = syscall.Close(fd)
		}
		return "", err
	case "ping": // an address of IPv4, by the socket that needs no rights
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
		if err != nil {
			return "", err
		}
		defer syscall.Close(fd)
		_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 500000})
		echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
		if err := syscall.Sendto(fd, echo, 0, &syscall.SockaddrInet4{Addr: netip.MustParseAddr(a.To).As4()}); err != nil {
			return "", err
		}
		_, _, err = syscall.Recvfrom(fd, make([]byte, 64), 0)
		return "", err
	case "lookup":
		addresses, err := net.LookupHost(a.To)
		return fmt.Sprint(addresses), err
	case "get": // as the environment says
		client := http.Client{Timeout: attemptTime, Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
		}}
		resp, err := client.Get(a.To)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, b), err
	case "connect": // by the proxy, and TLS for a name
		c, err := net.Dial("tcp4", strings.TrimPrefix(os.Getenv("HTTPS_PROXY"), "http://"))
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(attemptTime))
		if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", a.To, a.To); err != nil {
			return "", err
		}
		b := make([]byte, 512)
		n, err := c.Read(b)
		if err != nil || !bytes.Contains(b[:n], []byte(" 200 ")) {
			return "", fmt.Errorf("%.30q %w", b[:n], err)
		}
		secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: a.Name})
		return "secure", secure.Handshake()
	}
	// dial: tcp, udp or unix
	c, err := net.DialTimeout(a.Do, a.To, attemptTime)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(attemptTime / 4))
	if a.Send != "" || a.Do == "udp" { // others say something by themselves
		if _, err := io.WriteString(c, a.Send+"\n"); err != nil {
			return "", err
		}
	}
	b := make([]byte, 512)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// first connects to a port of its own as soon as it has the prompt, and says how often
// it was refused, and after how many microseconds it was not.
func first(port int) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	refused, began := 0, time.Now()
	for time.Since(began) < 10*time.Second {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			fmt.Printf("%d %d", refused, time.Since(began).Microseconds())
			_ = c.Close()
			return
		}
		refused++
	}
	fmt.Print("never")
}

// listen answers on a port over TCP and UDP, and at an abstract address.
func listen(port int) {
	for network, address := range map[string]string{"tcp": fmt.Sprintf(":%d", port), "unix": fmt.Sprintf("@agentfm-probe-%d", port)} {
		l, err := net.Listen(network, address)
		check(err)
		go func() {
			for {
				if c, err := l.Accept(); err == nil {
					_, _ = io.WriteString(c, "here")
					_ = c.Close()
				}
			}
		}()
	}
	fmt.Print("listening")
	block()
}
