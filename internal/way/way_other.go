// SPDX-License-Identifier: Apache-2.0

//go:build !linux

// Package way is a way into the network of a container for who may not enter it. There
// is none here.
package way

import (
	"context"
	"errors"
	"net"
)

var errNone = errors.New("there is no way into containers on this system")

// Serve is what the program in the container does.
func Serve(string) error { return errNone }

// Door waits for the program.
type Door struct{}

// NewDoor makes a socket for the program.
func NewDoor(string, string) (*Door, error) { return nil, errNone }

// Accept returns the way that the program opens.
func (*Door) Accept() (*Way, error) { return nil, errNone }

// Close ends the waiting.
func (*Door) Close() {}

// Way leads into the network of a container.
type Way struct{}

// Close has the program end.
func (*Way) Close() {}

// Listen listens on a port of the loopback interface in there.
func (*Way) Listen(int) (net.Listener, error) { return nil, errNone }

// Dial connects to a port of the loopback interface in there.
func (*Way) Dial(context.Context, int) (net.Conn, error) { return nil, errNone }
