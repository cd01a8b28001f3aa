// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// slack is by how many goroutines an idle Caddy may differ from another time.
const slack = 10

// count counts the goroutines, but for those that earlier tests can still have
// left to Caddy; see caddyGoroutines.
func count() int {
	n := 0
	for _, stack := range goroutines() {
		if !strings.Contains(stack, "certmagic.keepLockfileFresh") {
			n++
		}
	}
	return n
}

// Neither reloads nor validations leave goroutines behind.
func TestReloadsLeaveNothing(t *testing.T) {
	s := newServer(t)
	c := oneAgent("hello")
	s.load(c)
	s.awaitWorker("echo")
	s.wantAnswer("echo", "hello")
	before, looks := 0, 0
	await(t, "the number of goroutines settles", func() bool {
		n := count()
		if looks++; n != before {
			before, looks = n, 0
		}
		return looks == 50
	})
	for i := range attempts {
		s.load(c.with(fmt.Sprintf("reload-%d", i), agent{key: "echo", label: fmt.Sprint(i)}))
		var valid caddy.Config
		if err := caddy.StrictUnmarshalJSON(c.with("validated").json(t, s.place), &valid); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&valid); err != nil {
			t.Fatal(err)
		}
		refused := c.with("refused")
		refused.apps = []string{"refusing"}
		if err := s.try(refused); err == nil {
			t.Fatal("the reload did not fail")
		}
		s.awaitName(fmt.Sprintf("reload-%d", i))
		if got, err := s.ask("echo"); err != nil {
			t.Errorf("after reload %d: %q %v", i, got, err)
		}
	}
	await(t, fmt.Sprintf("at most %d goroutines, as before", before+slack), func() bool { return count() <= before+slack })
}
