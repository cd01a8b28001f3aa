// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"github.com/gofrs/flock"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
)

// LoadIdentity returns the private key of that name, and makes it when there is
// none. A name with a slash in it is a file; any other is a key in storage,
// apart for each instance of Caddy, since a storage can be shared by many and a
// peer id must not be. A key that cannot be read is an error: a node with a new
// identity would have lost its reputation without a word.
func LoadIdentity(ctx context.Context, storage certmagic.Storage, name string, logger *zap.Logger) (crypto.PrivKey, error) {
	if strings.ContainsAny(name, `/\`) {
		return identityFromFile(name, logger)
	}
	instance, err := instanceID()
	if err != nil {
		return nil, fmt.Errorf("finding the id of this instance of Caddy: %w", err)
	}
	key := path.Join("agentfm", instance, certmagic.StorageKeys.Safe(name)+".key")
	lock := "agentfm_identity_" + instance // storages need not tell a lock from a folder
	if err := storage.Lock(ctx, lock); err != nil {
		return nil, fmt.Errorf("locking identity %q: %w", name, err)
	}
	defer func() { _ = storage.Unlock(context.WithoutCancel(ctx), lock) }()

	return loadOrGenerate("identity "+key+" in Caddy's storage",
		func() ([]byte, error) { return storage.Load(ctx, key) },
		func(b []byte) error { return storage.Store(ctx, key, b) })
}

// instanceForm is the form of the id of an instance.
var instanceForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// instanceID returns the id of this instance of Caddy, and makes it on first use.
// It is not caddy.InstanceID, which can return different ids to those who ask at
// the same time on a first start: the key of one of them would never be found again.
func instanceID() (string, error) {
	file := filepath.Join(caddy.AppDataDir(), "agentfm", "instance")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		var id [16]byte
		_, _ = rand.Read(id[:])
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return "", err
		}
		if err := writeNewFile(file, []byte(hex.EncodeToString(id[:]))); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		b, err = os.ReadFile(file) // whoever was first
	}
	if err != nil {
		return "", err
	}
	if !instanceForm.Match(b) {
		return "", fmt.Errorf("%s is damaged: restore it from a backup; it says where the keys of this instance are", file)
	}
	return string(b), nil
}

// lockIdentity takes the identity for one host, of this process or any other that
// shares the data folder. Two hosts with one peer id would take each other's
// streams, and each would clear away what the other is working on.
func lockIdentity(key crypto.PrivKey) (*flock.Flock, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(caddy.AppDataDir(), "agentfm", "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(dir, id.String()))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("identity %s is in use, by another agent of this Caddy or another Caddy with the same data folder", id), err)
	}
	return lock, nil
}

// identityFromFile is LoadIdentity for a key file.
func identityFromFile(file string, logger *zap.Logger) (crypto.PrivKey, error) {
	warnOpen(file, logger)
	return loadOrGenerate("identity file "+file,
		func() ([]byte, error) { return os.ReadFile(file) },
		func(b []byte) error { return writeNewFile(file, b) })
}

// warnOpen warns of a file with a secret that others can read.
func warnOpen(file string, logger *zap.Logger) {
	if fi, err := os.Stat(file); err == nil && fi.Mode().Perm()&0o077 != 0 {
		logger.Warn("others can read this secret; make its mode 0600", zap.String("file", file))
	}
}

// loadOrGenerate loads a key, or makes and saves one where load finds none.
func loadOrGenerate(what string, load func() ([]byte, error), save func([]byte) error) (crypto.PrivKey, error) {
	b, err := load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return generate(what, save)
	case err != nil:
		return nil, fmt.Errorf("loading %s: %w", what, err)
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err == nil {
		err = works(key)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or remove it to start with a new identity", what, err)
	}
	if key.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("%s is not an Ed25519 key", what)
	}
	return key, nil
}

// works returns an error when the halves of a key do not belong together, which
// its encoding does not tell.
func works(key crypto.PrivKey) error {
	message := []byte("agentfm")
	signature, err := key.Sign(message)
	if err != nil {
		return err
	}
	if ok, err := key.GetPublic().Verify(message, signature); err != nil || !ok {
		return errors.New("its private half does not fit its public half")
	}
	return nil
}

// generate makes a key and saves it.
func generate(what string, save func([]byte) error) (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := save(b); err != nil {
		return nil, fmt.Errorf("saving new %s: %w", what, err)
	}
	return key, nil
}

// writeNewFile writes a private file that must not exist yet, whole or not at all.
func writeNewFile(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Link(f.Name(), file) // unlike a rename, fails when the file has come meanwhile
}
