// SPDX-License-Identifier: Apache-2.0

// Package await is how tests wait: for a condition, with a limit, and not for a
// length of time. And for how often: as the environment says.
package await

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// Until waits until condition holds, and fails the test when it does not within
// 20 seconds. what says in the failure what was waited for.
func Until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Times returns the number that a variable of the environment has: how often a test does
// something, or everyday when the variable is not there.
func Times(t testing.TB, variable string, everyday int) int {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return everyday
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}
