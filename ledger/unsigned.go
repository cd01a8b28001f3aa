// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"time"

	"go.uber.org/zap"
)

// unsignedLong is after what time of no new head that others may see the operator is told.
const unsignedLong = 10 * time.Minute

// unsigned is since when the head has waited for witnesses that others may see next.
type unsigned struct {
	shown uint64 // the size of the last
	since time.Time
}

// long reports whether that is long ago, and again after as long.
func (u *unsigned) long(l *Ledger, now time.Time) bool {
	s := l.settings()
	h, err := l.shown()
	size := uint64(0)
	if h != nil {
		size = h.Size
	}
	if err != nil || len(s.Witnesses) == 0 || size == l.Size() || size != u.shown || u.since.IsZero() {
		u.shown, u.since = size, now
		return false
	}
	if now.Sub(u.since) < unsignedLong {
		return false
	}
	u.since = now
	return true
}

// tellUnsigned tells the operator that witnesses do not sign, and why.
func (l *Ledger) tellUnsigned() {
	s := l.settings()
	fields := []zap.Field{zap.Uint64("size", l.Size()), zap.Int("quorum", s.Quorum)}
	for _, id := range s.Witnesses {
		if err := l.cosigning.failure(id); err != nil {
			fields = append(fields, zap.NamedError(id.String(), err))
		}
	}
	l.node.Log().Warn("too few witnesses sign the head of this node's log, and others are not shown the newest", fields...)
}
