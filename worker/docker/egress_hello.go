// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	// helloTimeout is how long an agent may take to begin with TLS.
	helloTimeout = 30 * time.Second
	// maxHello bounds what is read of it, in bytes: the largest that Go takes, and its frames.
	maxHello = 80 << 10
)

// errHello ends a handshake when there is enough of it.
var errHello = errors.New("read")

// readHello reads the first message of a TLS client, and perhaps more, and returns
// what it read. That it is not for the server that is called name is an errDenied.
func readHello(r io.Reader, name string) ([]byte, error) {
	var read bytes.Buffer
	var asked string
	conn := helloConn{Reader: io.TeeReader(io.LimitReader(r, maxHello), &read)}
	err := tls.Server(conn, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			asked = h.ServerName
			return nil, errHello
		},
	}).Handshake()
	switch {
	case !errors.Is(err, errHello):
		if read.Len() == 0 && errors.Is(err, io.EOF) {
			return nil, io.EOF // an agent that changed its mind
		}
		return nil, fmt.Errorf("%w: through CONNECT to a name goes TLS alone, and this is not", errDenied)
	case asked == "":
		return nil, fmt.Errorf("%w: its TLS names no server", errDenied)
	case !strings.EqualFold(asked, name):
		return nil, fmt.Errorf("%w: its TLS is for the server %q", errDenied, clip(asked))
	}
	return read.Bytes(), nil
}

// helloConn is a connection of which the first message is read, and nothing answered.
type helloConn struct {
	io.Reader
	net.Conn // nil: nothing else is called
}

func (c helloConn) Read(b []byte) (int, error)     { return c.Reader.Read(b) }
func (helloConn) Write(b []byte) (int, error)      { return len(b), nil }
func (helloConn) SetWriteDeadline(time.Time) error { return nil }
func (helloConn) Close() error                     { return nil }
