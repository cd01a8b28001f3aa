// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// maxKey bounds a key, and the file of one, in bytes.
const maxKey = 8 << 10

// settled is how old a file must be for its time to tell of every change.
const settled = 2 * time.Second

// apiKey is the key of the server. None of its errors shows anything of it.
type apiKey struct {
	file   string // empty for a key that does not change
	logger *zap.Logger

	mu     sync.Mutex
	last   string // the header Authorization, or empty
	info   os.FileInfo
	young  bool // the file may have changed again within the same time
	failed bool // the log says so
}

// get returns the header Authorization; empty for none. A file that cannot be
// read leaves the key as it was.
func (k *apiKey) get() string {
	if k.file == "" {
		return k.last
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.refresh()
	switch {
	case err != nil && !k.failed:
		k.logger.Error("the file of the API key cannot be used; the key stays as it was", zap.Error(err))
	case err == nil && k.failed:
		k.logger.Info("the file of the API key can be used again")
	}
	k.failed = err != nil
	return k.last
}

// check reports whether there is a key, where there is to be one.
func (k *apiKey) check() error {
	if k.file == "" {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refresh()
}

// refresh reads the file if it has changed.
func (k *apiKey) refresh() error {
	info, err := os.Stat(k.file)
	if err != nil {
		return fmt.Errorf("api_key_file: %w", err)
	}
	if !k.young && k.info != nil && same(k.info, info) {
		return nil
	}
	f, err := os.Open(k.file)
	if err != nil {
		return fmt.Errorf("api_key_file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	if err != nil {
		return fmt.Errorf("api_key_file: %w", err)
	}
	key, err := Bearer(string(b))
	if err != nil {
		return fmt.Errorf("api_key_file %s: %w", k.file, err)
	}
	k.last, k.info, k.young = key, info, time.Since(info.ModTime()) < settled
	return nil
}

// same reports whether a file has not changed.
func same(a, b os.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && os.SameFile(a, b)
}

// Bearer returns the header Authorization for a key. Errors do not show the key.
func Bearer(text string) (string, error) {
	key := strings.TrimSpace(text)
	switch {
	case key == "":
		return "", errors.New("no key is in it")
	case len(key) > maxKey:
		return "", fmt.Errorf("more than %d bytes", maxKey)
	case strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "", errors.New("not one key: there is a space or another character in it that keys do not have")
	}
	return "Bearer " + key, nil
}

// hide takes the key out of a text of the server's.
func (k *apiKey) hide(text string) string {
	if key := strings.TrimPrefix(k.get(), "Bearer "); key != "" {
		return strings.ReplaceAll(text, key, "[key]")
	}
	return text
}
