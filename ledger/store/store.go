// SPDX-License-Identifier: Apache-2.0

// Package store keeps a reputation ledger on disk: the log of this node, the logs of
// others as far as they are known, the texts of comments, and who has equivocated. An
// entry and the head that covers it are written in one transaction, which is synced
// before anybody hears of them.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	_ "modernc.org/sqlite" // the driver

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Errors of the store. Test with errors.Is.
var (
	// ErrDamaged says that the store holds what it cannot hold.
	ErrDamaged = errors.New("the store of the ledger is damaged")
	// ErrBehind says that this node has published more of its log than the store holds.
	ErrBehind = errors.New("the store of the ledger is older than what this node has published; it must not sign")
	// ErrForked says that this node's own log has two continuations.
	ErrForked = errors.New("this node's log was continued twice; it must not sign")
	// ErrOther says that the epoch of this node's log was not begun by this process. It is that of
	// another with its key, which may be running, or the store is older than the epoch. When it is
	// opened again, peers are asked what was signed since.
	ErrOther = errors.New("this node's log was recovered by another process with its key, or before its store was restored; stop the other, if there is one, and restart this one")
	// ErrRecovering says that this node's log is being signed anew.
	ErrRecovering = errors.New("this node's log is being recovered; try again in a moment")
	// ErrNotFound says that there is no such entry or comment.
	ErrNotFound = errors.New("not found")
)

// readers is how many reads run at one time.
const readers = 4

// Store is the ledger on disk. Reads run beside each other and beside the one writer.
type Store struct {
	key  crypto.PrivKey
	self peer.ID
	me   int64 // row of self
	lock *flock.Flock
	db   *sql.DB // of the writer, which has the one connection
	conn *sql.Conn
	ro   *sql.DB
	now  func() time.Time

	known *sql.Stmt // of readers: see knownEntry

	owners atomic.Pointer[owners] // replaced as a whole, under mu, by what is on disk

	mu     sync.Mutex // of the writer
	head   *wire.Head // of the own log; nil while it is empty
	lost   *wire.Head // the largest of the own log that is not of what is stored, as a peer has shown; nil for none
	forked bool
	other  bool                 // see ErrOther
	stmts  map[string]*sql.Stmt // of the writer

	resumed bool // see Resumed
}

// schema makes the tables. A peer is named by its row, and the place of an entry in its
// author's log is its position, from 0. The row of an entry is its place among all. A peer's
// since is when its first entry was stored; 0 for never.
const schema = `
CREATE TABLE IF NOT EXISTS peer (
	id INTEGER PRIMARY KEY, bytes BLOB NOT NULL UNIQUE,
	size INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0, since INTEGER NOT NULL,
	entries INTEGER NOT NULL DEFAULT 0, ratings INTEGER NOT NULL DEFAULT 0, last INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS entry (
	id INTEGER PRIMARY KEY AUTOINCREMENT, hash BLOB NOT NULL UNIQUE,
	author INTEGER NOT NULL, position INTEGER NOT NULL, subject INTEGER NOT NULL,
	received INTEGER NOT NULL, cid BLOB, bytes BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS entry_log ON entry (author, position);
CREATE INDEX IF NOT EXISTS entry_subject ON entry (subject, id);
CREATE INDEX IF NOT EXISTS entry_cid ON entry (cid) WHERE cid IS NOT NULL;
CREATE TABLE IF NOT EXISTS tree (
	author INTEGER NOT NULL, level INTEGER NOT NULL, place INTEGER NOT NULL, hash BLOB NOT NULL,
	PRIMARY KEY (author, level, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vote (
	subject INTEGER NOT NULL, author INTEGER NOT NULL, entries INTEGER NOT NULL,
	sum REAL NOT NULL, weight REAL NOT NULL, mark INTEGER NOT NULL,
	PRIMARY KEY (subject, author)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orphan (
	hash BLOB PRIMARY KEY, prev BLOB NOT NULL, author BLOB NOT NULL, received INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS orphan_prev ON orphan (prev);
CREATE INDEX IF NOT EXISTS orphan_author ON orphan (author, received);
CREATE TABLE IF NOT EXISTS head (id INTEGER PRIMARY KEY AUTOINCREMENT, peer BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS unproven (
	id INTEGER PRIMARY KEY AUTOINCREMENT, peer BLOB NOT NULL, newest INTEGER NOT NULL, received INTEGER NOT NULL, bytes BLOB NOT NULL, UNIQUE (peer, newest));
CREATE TABLE IF NOT EXISTS cosigned (peer BLOB PRIMARY KEY, bytes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS equivocator (id INTEGER PRIMARY KEY AUTOINCREMENT, peer BLOB NOT NULL UNIQUE, evidence BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS epochs (id INTEGER PRIMARY KEY AUTOINCREMENT, peer BLOB NOT NULL, bytes BLOB NOT NULL, received INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS voiding (author INTEGER PRIMARY KEY, next INTEGER NOT NULL, again INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS anew (before BLOB PRIMARY KEY, after BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS comment (cid BLOB PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wanted (cid BLOB PRIMARY KEY, author INTEGER NOT NULL, received INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (peer BLOB PRIMARY KEY, row INTEGER NOT NULL, hash BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
	peer BLOB PRIMARY KEY, good REAL NOT NULL, bad REAL NOT NULL, updated INTEGER NOT NULL, recent_good REAL NOT NULL, recent_bad REAL NOT NULL, mark INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS number (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO number VALUES ('orphans', 0) ON CONFLICT DO NOTHING;
CREATE TRIGGER IF NOT EXISTS orphan_more AFTER INSERT ON orphan BEGIN UPDATE number SET value = value + 1 WHERE name = 'orphans'; END;
CREATE TRIGGER IF NOT EXISTS orphan_less AFTER DELETE ON orphan BEGIN UPDATE number SET value = value - 1 WHERE name = 'orphans'; END;
`

// version is that of the schema. A program that knows 5 would show what is void by the table voiding.
const version = 6

// toVersion2 makes a store of version 1 one of version 2: its heads may be of entries that are
// not stored.
const toVersion2 = `
INSERT OR REPLACE INTO unproven SELECT h.id, h.peer, 0, 0, h.bytes FROM head h LEFT JOIN peer p ON p.bytes = h.peer WHERE h.size > coalesce(p.size, 0);
DELETE FROM head WHERE id IN (SELECT id FROM unproven);
`

// toVersion3 makes room for the marks of what is counted.
const toVersion3 = `
ALTER TABLE vote ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outcome ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
`

// toVersion4 numbers the evidence against equivocators.
const toVersion4 = `
ALTER TABLE equivocator RENAME TO unnumbered;
CREATE TABLE equivocator (id INTEGER PRIMARY KEY AUTOINCREMENT, peer BLOB NOT NULL UNIQUE, evidence BLOB NOT NULL);
INSERT INTO equivocator (peer, evidence) SELECT peer, evidence FROM unnumbered;
DROP TABLE unnumbered;
`

// toVersion5 has those be without a first entry who are only spoken of.
const toVersion5 = `
UPDATE peer SET since = 0 WHERE size = 0;
`

// upgrade makes the tables, and those of an older store as they are now.
func (t *tx) upgrade(have int) error {
	change := schema
	if have == 1 {
		change += toVersion2
	}
	if have == 1 || have == 2 {
		change += toVersion3
	}
	if have > 0 && have < 4 {
		change += toVersion4
	}
	if have > 0 && have < 5 {
		change += toVersion5
	}
	if _, err := t.s.conn.ExecContext(context.Background(), change+fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
		return err
	}
	if have == 1 || have == 2 {
		return t.markAll()
	}
	return nil
}

// published names the number of entries of the own log that others may have seen.
const published = "published"

// Open opens the ledger in a folder, for the node with the key. It fails when another
// process has it open, and when what it holds is damaged.
func Open(dir string, key crypto.PrivKey) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	held, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("locking the ledger in %s: %w", dir, err)
	}
	if !held {
		return nil, fmt.Errorf("the ledger in %s is in use by another process; two would each continue the log of this node", dir)
	}
	s := &Store{key: key, self: self, lock: lock, now: time.Now, stmts: make(map[string]*sql.Stmt)}
	if err := s.open(filepath.Join(dir, "ledger.db")); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the ledger in %s: %w", dir, err), s.Close())
	}
	return s, nil
}

// open opens the database and checks it.
func (s *Store) open(file string) error {
	var err error
	if err := private(file); err != nil {
		return err
	}
	if s.db, err = database(file, "synchronous(FULL)", 1); err != nil {
		return err
	}
	if s.conn, err = s.db.Conn(context.Background()); err != nil {
		return err
	}
	if err := s.intact("quick_check(1)"); err != nil {
		return err
	}
	var have int
	if err := s.conn.QueryRowContext(context.Background(), "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	if have > version {
		return fmt.Errorf("it is of version %d, and this program knows %d", have, version)
	}
	// Whom a row of another table is about, the table of peers alone says: it must be as its index.
	if have > 0 {
		if err := s.intact("integrity_check(peer)"); err != nil {
			return err
		}
	}
	if s.ro, err = database(file, "query_only(1)", readers); err != nil {
		return err
	}
	err = s.write(context.Background(), func(tx *tx) error {
		if err := tx.upgrade(have); err != nil {
			return err
		}
		if s.me, err = tx.peer(s.self); err != nil {
			return err
		}
		tx.owners = &owners{liars: make(map[peer.ID]bool), epochs: make(map[peer.ID]Epoch)}
		if err := tx.readEquivocators(); err != nil {
			return err
		}
		if err := tx.readEpochs(); err != nil {
			return err
		}
		return tx.readAnew(0)
	})
	if err != nil {
		return err
	}
	s.resumed = s.owners.Load().epochs[s.self].voiding // the process ended while it recovered
	if err := s.finish(context.Background(), s.self); err != nil {
		return err
	}
	if s.known, err = s.ro.Prepare(knownEntry); err != nil {
		return err
	}
	return s.write(context.Background(), s.checkOwn)
}

// Close closes the store. It may be called on one that was not opened whole.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.stmts {
		errs = append(errs, st.Close())
	}
	if s.known != nil {
		errs = append(errs, s.known.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	for _, db := range []*sql.DB{s.ro, s.db} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(append(errs, s.lock.Unlock())...)
}

// Self returns the peer id of this node.
func (s *Store) Self() peer.ID { return s.self }

// tx is a transaction of the writer, on its connection.
type tx struct {
	s      *Store
	owners *owners // as it will be
}

// write runs do in a transaction, which is on disk when write returns nil. Who asked may
// be gone by then: half of the work is not undone for that.
func (s *Store) write(ctx context.Context, do func(*tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	t := &tx{s, s.owners.Load()}
	if _, err := t.Exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	done := false
	head, lost, forked, other := s.head, s.lost, s.forked, s.other
	defer func() {
		if !done { // also when do panics
			_, _ = t.Exec("ROLLBACK")
			s.head, s.lost, s.forked, s.other = head, lost, forked, other
		}
	}()
	if err := do(t); err != nil {
		return err
	}
	if _, err := t.Exec("COMMIT"); err != nil {
		return err
	}
	done = true
	s.owners.Store(t.owners)
	return nil
}

// stmt returns a statement, which is prepared once: to parse it takes longer than to run it.
func (t *tx) stmt(q string) (*sql.Stmt, error) {
	if st, ok := t.s.stmts[q]; ok {
		return st, nil
	}
	st, err := t.s.conn.PrepareContext(context.Background(), q)
	if err == nil {
		t.s.stmts[q] = st
	}
	return st, err
}

// Exec is like that of sql.Conn.
func (t *tx) Exec(q string, args ...any) (sql.Result, error) {
	st, err := t.stmt(q)
	if err != nil {
		return nil, err
	}
	return st.Exec(args...)
}

// Query is like that of sql.Conn.
func (t *tx) Query(q string, args ...any) (*sql.Rows, error) {
	st, err := t.stmt(q)
	if err != nil {
		return nil, err
	}
	return st.Query(args...)
}

// QueryRow is like that of sql.Conn.
func (t *tx) QueryRow(q string, args ...any) *sql.Row {
	st, err := t.stmt(q)
	if err != nil { // the row has the error
		return t.s.conn.QueryRowContext(context.Background(), q, args...)
	}
	return st.QueryRow(args...)
}

// peer returns the row of a peer, which is made when there is none.
func (t *tx) peer(id peer.ID) (row int64, err error) {
	err = t.QueryRow("SELECT id FROM peer WHERE bytes = ?", []byte(id)).Scan(&row)
	if errors.Is(err, sql.ErrNoRows) {
		err = t.QueryRow("INSERT INTO peer (bytes, since) VALUES (?, 0) RETURNING id", []byte(id)).Scan(&row)
	}
	return row, err
}

// number returns a number that was stored; 0 for none.
func (t *tx) number(name string) (n int64, err error) {
	err = t.QueryRow("SELECT value FROM number WHERE name = ?", name).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return n, err
}

func (t *tx) setNumber(name string, n int64) error {
	_, err := t.Exec("INSERT INTO number VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, n)
	return err
}
