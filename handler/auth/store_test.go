// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// shelf is a store whose file a test changes.
type shelf struct {
	*store
	t     *testing.T
	clock *clock
	logs  *observer.ObservedLogs
}

func newShelf(t *testing.T, text string) *shelf {
	t.Helper()
	s := &shelf{t: t, clock: newClock()}
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, text)
	s.date(path, -time.Hour)
	var core zapcore.Core
	core, s.logs = observer.New(zapcore.DebugLevel)
	var err error
	if s.store, err = newStore(nil, path, s.clock.now, zap.New(core)); err != nil {
		t.Fatal(err)
	}
	return s
}

// date sets when a file changed, from now.
func (s *shelf) date(path string, age time.Duration) {
	s.t.Helper()
	at := s.clock.now().Add(age)
	if err := os.Chtimes(path, at, at); err != nil {
		s.t.Fatal(err)
	}
}

// write changes the file in place, age ago.
func (s *shelf) write(text string, age time.Duration) {
	s.t.Helper()
	writeKeys(s.t, s.path, text)
	s.date(s.path, -age)
}

// wants fails unless the store has exactly these of all keys, after a second.
func (s *shelf) wants(what string, keys ...string) {
	s.t.Helper()
	s.clock.advance(lookInterval)
	set := s.current()
	for _, key := range keys {
		if set.find(key) == nil {
			s.t.Errorf("%s: %s is not valid", what, key)
		}
	}
	if len(set) != len(keys) {
		s.t.Errorf("%s: got %d keys, want %d", what, len(set), len(keys))
	}
}

// errors counts the errors in the log.
func (s *shelf) errors() int { return s.logs.FilterLevelExact(zapcore.ErrorLevel).Len() }

const (
	fileOne = "the-first-key-of-file"
	fileTwo = "another-key-of-a-file"
)

func TestRotation(t *testing.T) {
	s := newShelf(t, fileOne+"\n")
	s.wants("at first", fileOne)
	s.write(fileOne+"\n"+fileTwo+"\n", time.Minute)
	if s.current().find(fileTwo) != nil {
		t.Error("looked at twice in a second")
	}
	s.wants("added", fileOne, fileTwo)
	s.write(fileTwo+"\n", 0)
	s.wants("revoked", fileTwo)
	// Replaced by another file, of the same size and age.
	info, err := os.Stat(s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.clock.advance(time.Hour)
	s.wants("settled", fileTwo)
	other := s.path + ".new"
	writeKeys(t, other, fileOne+"\n")
	if err := os.Chtimes(other, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, s.path); err != nil {
		t.Fatal(err)
	}
	s.wants("renamed over", fileOne)
	if n := s.errors(); n != 0 {
		t.Errorf("%d errors", n)
	}
}

// A change that leaves size and time as they were is found while the file is
// young.
// TestSignerRotation wants a new secret of webhooks to count as a new key does.
func TestSignerRotation(t *testing.T) {
	s := newShelf(t, "bob "+fileOne+" webhook_secret=first\nann "+fileTwo+"\n")
	c := &Checker{keys: s.store}
	sign := func(id string) string {
		h := make(http.Header)
		c.Signer(id).Sign(h, "msg_1", time.Unix(1, 0), []byte("body"))
		return h.Get("Webhook-Signature")
	}
	if c.Signer("ann") != nil || c.Signer("nobody") != nil || c.Signer("") != nil {
		t.Error("a signer without a secret")
	}
	first := sign("bob")
	s.write("bob "+fileOne+" webhook_secret=second,first\n", time.Minute)
	s.clock.advance(lookInterval)
	if both := sign("bob"); first == "" || !strings.HasSuffix(both, " "+first) || strings.HasPrefix(both, first) {
		t.Errorf("got %s after %s", both, first)
	}
	for _, e := range s.logs.All() {
		if strings.Contains(fmt.Sprint(e), "second") {
			t.Errorf("in the log: %v", e)
		}
	}
}

func TestCoarseClock(t *testing.T) {
	s := newShelf(t, fileOne+"\n")
	s.write(fileTwo+"\n", 0)
	at := s.clock.now()
	s.wants("written", fileTwo)
	writeKeys(t, s.path, fileOne+"\n")
	if err := os.Chtimes(s.path, at, at); err != nil {
		t.Fatal(err)
	}
	s.wants("written again in the same tick", fileOne)
}

// A half-written file does not count for long.
func TestHalfWritten(t *testing.T) {
	s := newShelf(t, fileOne+"\n")
	s.write("", 0)
	s.wants("truncated", fileOne)
	s.write("ann "+fileTwo, 0) // without the restriction that is to come
	s.wants("without the end of a line", fileOne)
	s.write("ann "+fileTwo+" models=a", 0)
	s.wants("still without", fileOne)
	s.clock.advance(settleTime)
	s.wants("nothing more came", fileTwo)
	if s.current().find(fileTwo).identity.MayUse("b") {
		t.Error("the restriction is lost")
	}
	if n := s.errors(); n != 0 {
		t.Errorf("%d errors", n)
	}
	s.write("", time.Hour)
	s.wants("empty for long", fileTwo)
	if n := s.errors(); n != 1 {
		t.Errorf("%d errors", n)
	}
}

// What is gone or broken is logged once a change, and the keys stay.
func TestBrokenFile(t *testing.T) {
	s := newShelf(t, fileOne+"\n")
	look := func(what string, errors int) {
		t.Helper()
		for range 5 {
			s.wants(what, fileOne)
		}
		if n := s.errors(); n != errors {
			t.Errorf("%s: %d errors, want %d", what, n, errors)
		}
	}
	s.write(fileTwo+"\nshort\n", 0)
	look("broken", 1)
	s.write(fileTwo+"\n\nshort\n", time.Hour)
	look("broken otherwise", 2)
	s.write("short\n", time.Hour)
	look("broken again", 3)
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	look("gone", 4)
	if err := os.Mkdir(s.path, 0o700); err != nil {
		t.Fatal(err)
	}
	look("a folder", 5)
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	look("gone again", 6)
	s.write(strings.Repeat("#", maxFile+1), time.Hour)
	look("too large", 7)
	s.write(fileTwo+"\n"+fileTwo+"\n", time.Hour)
	look("a key twice", 8)
	s.write(fileOne+"\n", time.Hour)
	look("whole again", 8)
	s.write(fileTwo+"\n", time.Hour)
	s.wants("another", fileTwo)
	for _, e := range s.logs.FilterLevelExact(zapcore.ErrorLevel).All() {
		text, _ := e.ContextMap()["error"].(string)
		if !strings.Contains(text, s.path) || strings.Contains(text, fileTwo) {
			t.Errorf("error %q", text)
		}
	}
}

func TestDuplicates(t *testing.T) {
	keys, err := parseValues([]string{keyOne})
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := merge(nil, keys)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"bob " + keyOne + "\n":                                          "line 1: the key is also in api_keys",
		"# x\nbob " + Hash(keyOne) + "\n":                               "line 2: the key is also in api_keys",
		"bob " + fileOne + "\nann " + fileOne + "\n":                    "line 2: the key is also in line 1",
		"bob " + fileOne + "\nbob " + fileTwo + "\n":                    "line 2: the name, or the one made from the hash, is also in line 1",
		"key-" + Hash(keyOne)[7:15] + " " + fileTwo + "\n":              "line 1: the name, or the one made from the hash, is also in api_keys",
		fileOne + "\nkey-" + Hash(fileOne)[7:15] + " " + fileTwo + "\n": "line 2: the name, or the one made from the hash, is also in line 1",
	} {
		path := filepath.Join(t.TempDir(), "keys")
		writeKeys(t, path, text)
		if _, err := newStore(fixed, path, time.Now, zap.NewNop()); err == nil || !strings.Contains(err.Error(), path+": "+want) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestFirstLoadMustSucceed(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	writeKeys(t, broken, "bob secret-15-chars\n")
	for file, want := range map[string]string{
		filepath.Join(dir, "nothing"): "no such file",
		dir:                           "not a regular file",
		broken:                        broken + ": line 1: the key has fewer",
		"{env.TEST_UNSET}/keys":       "TEST_UNSET",
	} {
		_, err := New(Options{Keys: []string{keyOne}, File: file})
		if err == nil || !strings.HasPrefix(err.Error(), "api_keys_file: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", file, err)
		}
	}
	if _, err := New(Options{}); err == nil {
		t.Error("a checker without keys")
	}
	if _, err := New(Options{Keys: []string{}, File: broken}); err == nil || !strings.HasPrefix(err.Error(), "api_keys: no key") {
		t.Errorf("got %v", err)
	}
	t.Setenv("TEST_DIR", dir)
	writeKeys(t, broken, fileOne)
	c, err := New(Options{File: "{env.TEST_DIR}/broken"})
	if err != nil || c.keys.current().find(fileOne) == nil {
		t.Errorf("got %v", err)
	}
}

func TestModeWarning(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are not those of Unix")
	}
	s := newShelf(t, fileOne+"\n")
	warnings := func() int { return s.logs.FilterLevelExact(zapcore.WarnLevel).Len() }
	if n := warnings(); n != 0 {
		t.Errorf("%d warnings at mode 0600", n)
	}
	if err := os.Chmod(s.path, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fileTwo, fileOne, fileTwo} {
		s.write(text+"\n", time.Minute)
		s.wants("changed", text)
	}
	if n := warnings(); n != 1 {
		t.Errorf("%d warnings at mode 0640", n)
	}
}

// Keys of which the default identities are one cannot be told apart.
func TestSameIdentity(t *testing.T) {
	first := key{identity: Unrestricted("key-00000000")}
	second := first
	second.hash[31] = 1
	if _, err := merge(nil, []key{first, second}); err == nil || !strings.Contains(err.Error(), "first digits") {
		t.Errorf("got %v", err)
	}
	if set, err := merge(nil, []key{first, first}); err != nil || len(set) != 1 {
		t.Errorf("got %d keys, %v", len(set), err)
	}
}

// Requests and rotation at the same time.
func TestRotationUnderLoad(t *testing.T) {
	s := newShelf(t, fileOne+"\n")
	var group sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if set := s.current(); set.find(fileOne) == nil && set.find(fileTwo) == nil {
					t.Error("no key is valid")
					return
				}
			}
		})
	}
	for i := range 50 {
		text := []string{fileOne, fileTwo}[i%2]
		writeKeys(t, s.path+".new", text+"\n")
		if err := os.Rename(s.path+".new", s.path); err != nil {
			t.Fatal(err)
		}
		s.clock.advance(lookInterval)
	}
	close(done)
	group.Wait()
}
