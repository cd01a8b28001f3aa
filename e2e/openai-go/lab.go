// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// What the test that starts this sets, see python/lab.py.
var (
	baseURL = os.Getenv("GATEWAY_URL") + "/v1"
	key     = os.Getenv("GATEWAY_KEY")
	name    = os.Getenv("GATEWAY_CLIENT")
	own     = "one/" + name  // a worker that no other client uses: one whose agent fails often rests
	pair    = "pair/" + name // it and another one
	state   = os.Getenv("GATEWAY_STATE")
	silent  = os.Getenv("GATEWAY_SILENCE")
	words   = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)

// runsFile is where the lab agent notes the runs of a prompt.
type runsFile string

var tokens int

// lab returns a prompt for the lab agent, and the file of its runs.
func lab(test, command string, args ...string) (string, runsFile) {
	tokens++
	token := fmt.Sprintf("%s-%s-%d", test, name, tokens)
	return strings.Join(append([]string{"lab:", command, token}, args...), " "), runsFile(filepath.Join(state, token))
}

// runs returns the notes of the runs, "PID WORKER" each.
func (f runsFile) runs() []string {
	b, _ := os.ReadFile(string(f)) // none before the first
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

// awaitStart waits until the agent runs.
func (f runsFile) awaitStart() error {
	return until("start of the agent", time.Minute, func() bool { return len(f.runs()) > 0 })
}

// awaitEnd waits until the agent of the only run is gone, which must be soon.
func (f runsFile) awaitEnd() error {
	var pid int
	if _, err := fmt.Sscan(f.runs()[0], &pid); err != nil {
		return err
	}
	return until("end of the agent", 2*time.Second, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
}

func until(what string, limit time.Duration, holds func() bool) error {
	for end := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %v", what, limit)
		}
	}
	return nil
}

// check returns an error unless all of it is as wanted: pairs of what there is
// and what should be.
func check(where any, pairs ...any) error {
	for i := 0; i < len(pairs); i += 2 {
		if got, want := fmt.Sprintf("%#v", pairs[i]), fmt.Sprintf("%#v", pairs[i+1]); got != want {
			return fmt.Errorf("got %s, want %s, in %+v", got, want, where)
		}
	}
	return nil
}

// run runs a case. A panic, such as for a choice that is missing, is its failure.
func run(test string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v\n%s", r, debug.Stack())
		}
	}()
	f, ok := cases[test]
	if !ok {
		return errors.New("no such case")
	}
	return f()
}

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := run(lines.Text()); err != nil {
			fmt.Println(err)
			fmt.Println("== failed", lines.Text())
			continue
		}
		fmt.Println("== ok", lines.Text())
	}
}
