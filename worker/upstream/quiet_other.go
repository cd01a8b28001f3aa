// SPDX-License-Identifier: Apache-2.0

//go:build !unix || aix

package upstream

import "net"

// canBeQuiet says whether [quietness] knows.
const canBeQuiet = false

// quietness returns a function that does not know here: no connection is used again.
func quietness(net.Conn) func() bool { return func() bool { return false } }
