// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// mark is the check sum of a row that is counted, and not signed: scores are made of such
// rows, and a disk can change them. It is of who the row is about, and of its numbers.
func mark(who []byte, numbers ...float64) int64 {
	b := make([]byte, 0, 128)
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(n+0)) // a 0 comes back without its sign
	}
	return int64(crc32.Checksum(append(b, who...), castagnoli))
}

// Rows whose marks are others than they must be.
var (
	errVoteDamaged    = fmt.Errorf("%w: the check sum of a vote is wrong", ErrDamaged)
	errOutcomeDamaged = fmt.Errorf("%w: the check sum of a count of outcomes is wrong", ErrDamaged)
)

// voteMark is the mark of a row of votes.
func voteMark(subject, author, entries int64, sum, weight float64) int64 {
	return mark(nil, float64(subject), float64(author), float64(entries), sum, weight)
}

// mark is that of a row of outcomes.
func (n outcome) mark(id []byte) int64 {
	// a time in nanoseconds has more digits than a float
	return mark(binary.BigEndian.AppendUint64(id[:len(id):len(id)], uint64(n.updated)), n.sum.Good, n.sum.Bad, n.recent.Good, n.recent.Bad)
}

// markAll gives the rows of an older store their marks.
func (t *tx) markAll() error {
	rows, err := t.Query("SELECT subject, author, entries, sum, weight FROM vote")
	if err != nil {
		return err
	}
	defer rows.Close()
	type vote struct {
		subject, author, entries int64
		sum, weight              float64
	}
	var votes []vote
	for rows.Next() {
		var v vote
		if err := rows.Scan(&v.subject, &v.author, &v.entries, &v.sum, &v.weight); err != nil {
			return err
		}
		votes = append(votes, v)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, v := range votes {
		if _, err := t.Exec("UPDATE vote SET mark = ? WHERE subject = ? AND author = ?", voteMark(v.subject, v.author, v.entries, v.sum, v.weight), v.subject, v.author); err != nil {
			return err
		}
	}
	all, err := readOutcomes(t.Query("SELECT * FROM outcome"))
	if err != nil {
		return err
	}
	for id, n := range all {
		if err := t.setOutcome(id, n.outcome); err != nil {
			return err
		}
	}
	return nil
}
