// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
)

// intact has the database look for damage.
func (s *Store) intact(pragma string) error {
	var found string
	if err := s.conn.QueryRowContext(context.Background(), "PRAGMA "+pragma).Scan(&found); err != nil || found != "ok" {
		return fmt.Errorf("%w: %s %w", ErrDamaged, found, err)
	}
	return nil
}

// private makes a file that nobody else can read.
func private(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// database opens a pool of connections to a file.
func database(file, pragma string, conns int) (*sql.DB, error) {
	// What the log of writes has is copied into the file at 32 MiB: pages that many entries change are copied once.
	q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", pragma, "cache_size(-16384)", "wal_autocheckpoint(8192)", "journal_size_limit(67108864)"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}
