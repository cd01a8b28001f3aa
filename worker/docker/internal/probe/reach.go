// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// first connects to a port of its own as early as it can, and says how often it was
// refused, and for how many microseconds.
func first(port int) {
	refused, began := 0, time.Now()
	for time.Since(began) < 10*time.Second {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			fmt.Printf("%d %d", refused, time.Since(began).Microseconds())
			_ = c.Close()
			return
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		refused++
	}
	fmt.Print("never")
	_ = json.NewEncoder(os.Stdout)
}
