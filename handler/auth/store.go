// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// When the key file is looked at.
const (
	// lookInterval is between two looks.
	lookInterval = time.Second
	// settleTime is how long a file may still change without a later time of
	// change: clocks of file systems are coarse.
	settleTime = 2 * time.Second
)

// store holds the keys, and follows the key file.
type store struct {
	fixed  keySet // of the configuration
	path   string // empty for none
	now    func() time.Time
	logger *zap.Logger
	keys   atomic.Pointer[keySet]
	begun  time.Time
	next   atomic.Int64 // when to look again: a time.Duration since begun

	mu      sync.Mutex        // held by who looks
	seen    fs.FileInfo       // as it was read last; nil for a file that is gone
	content [sha256.Size]byte // hash of what became keys last
	settled bool              // what was read last cannot have changed since
	failed  string            // the last error; empty for none
	warned  bool              // of its permissions
}

// newStore returns a store with the keys of the configuration and of a file.
func newStore(fixed keySet, file string, now func() time.Time, logger *zap.Logger) (*store, error) {
	s := &store{fixed: fixed, now: now, logger: logger, begun: now()}
	s.keys.Store(&fixed)
	if file == "" {
		return s, nil
	}
	var err error
	if s.path, err = caddy.NewReplacer().ReplaceOrErr(file, true, true); err != nil {
		return nil, fmt.Errorf("the path: %w", err)
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, err
	}
	s.next.Store(int64(lookInterval))
	return s, s.read(info, true)
}

// current returns the keys. Once in a while that is a look at the file, by one
// request; others get the keys that were.
func (s *store) current() keySet {
	if s.path != "" && s.due() && s.mu.TryLock() {
		defer s.mu.Unlock()
		if s.due() {
			s.next.Store(int64(s.now().Sub(s.begun) + lookInterval))
			s.look()
		}
	}
	return *s.keys.Load()
}

// due reports whether it is time to look at the file.
func (s *store) due() bool { return int64(s.now().Sub(s.begun)) >= s.next.Load() }

// look reads the file again if it has changed. The keys stay while it is gone or
// broken, which is logged once a change.
func (s *store) look() {
	info, err := os.Stat(s.path)
	changed := !same(s.seen, info)
	if err == nil {
		if !changed && s.settled {
			return
		}
		err = s.read(info, false)
	} else {
		s.seen, s.settled = nil, false
	}
	if err == nil {
		s.failed = ""
		return
	}
	if text := err.Error(); changed || text != s.failed {
		s.failed = text
		s.logger.Error("reading api_keys_file; the keys stay as they were", zap.Error(err))
	}
}

// read reads the file, which info describes, and takes its keys. A last line
// that has no end may be half of one, without its restrictions; while the file
// may still be being written such a file is left for later, but not at first.
func (s *store) read(info fs.FileInfo, first bool) error {
	now := s.now()
	b, err := readFile(s.path, info)
	if err != nil {
		s.seen, s.settled = info, false
		return err
	}
	age := now.Sub(info.ModTime())
	s.seen = info
	s.settled = age >= settleTime || age <= -settleTime
	content := sha256.Sum256(b)
	if !first && (content == s.content || !s.settled && !bytes.HasSuffix(b, []byte("\n"))) {
		return nil
	}
	keys, err := parseFile(b)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	set, err := merge(s.fixed, keys)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	s.warnOfMode(info)
	s.content = content
	s.keys.Store(&set)
	s.logger.Info("api keys are read", zap.String("file", s.path), zap.Int("keys", len(keys)))
	return nil
}

// warnOfMode warns once when others may read the keys.
func (s *store) warnOfMode(info fs.FileInfo) {
	if s.warned || runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 {
		return
	}
	s.warned = true
	s.logger.Warn("other users may read or write the key file; want mode 0600",
		zap.String("file", s.path), zap.Stringer("mode", info.Mode().Perm()))
}

// readFile reads a regular file of a bounded size.
func readFile(path string, info fs.FileInfo) ([]byte, error) {
	if !info.Mode().IsRegular() { // opening a pipe would wait
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	return b, nil
}

// same reports whether two looks saw the same state of a file.
func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && os.SameFile(a, b)
}

// merge adds keys to a set. Where a file is in it, no key and no identity may
// stand twice: who a key stands for, and with which rights, would be chance. Of
// the configuration a key may, for a list can be in two variables.
func merge(set keySet, keys []key) (keySet, error) {
	out := make(keySet, 0, len(set)+len(keys))
	hashes := make(map[[sha256.Size]byte]*key)
	ids := make(map[string]*key)
	for _, list := range [][]key{set, keys} {
		for i := range list {
			k := &list[i]
			other, twice := hashes[k.hash]
			same, taken := ids[k.identity.ID]
			switch {
			case twice && k.line == 0:
				continue
			case twice:
				return nil, fmt.Errorf("line %d: the key is also %s", k.line, other.place())
			case taken && k.line == 0:
				return nil, errors.New("the hashes of two keys have the same first digits; replace one")
			case taken:
				return nil, fmt.Errorf("line %d: the name, or the one made from the hash, is also %s", k.line, same.place())
			}
			hashes[k.hash], ids[k.identity.ID] = k, k
			out = append(out, *k)
		}
	}
	return out, nil
}

// place says where a key stands.
func (k *key) place() string {
	if k.line == 0 {
		return "in api_keys"
	}
	return fmt.Sprintf("in line %d", k.line)
}
