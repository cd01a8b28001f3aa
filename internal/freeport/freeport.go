// SPDX-License-Identifier: Apache-2.0

// Package freeport gives tests ports for the processes that they start.
package freeport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports are taken from below those that systems give to outgoing connections: one of
// these could be gone again before the process listens.
const (
	first = 10000
	last  = 32000
)

var (
	mu    sync.Mutex
	given = make(map[int]bool)
)

// Get returns a port of the loopback interface that is free now, for TCP and for UDP. No
// port comes twice.
func Get(t testing.TB) int {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	for range 1000 {
		port := first + rand.N(last-first)
		if !given[port] && IsFree(port) {
			given[port] = true
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// IsFree reports whether a port can be bound, for TCP and for UDP.
func IsFree(port int) bool {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	defer l.Close()
	p, err := net.ListenPacket("udp", address)
	if err != nil {
		return false
	}
	_ = p.Close()
	return true
}
