// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/limit"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// ErrTooOften says that a client has had this node sign as much as it may for now.
var ErrTooOften = errors.New("this client has rated too often")

// Limits on what clients have this node sign: an hour's worth at once, and then one a minute.
const (
	clientRate  = 1.0 / 60
	clientBurst = 60
	maxClients  = 4096
)

// newClients remembers how much more clients may have this node sign.
func newClients() *limit.Table[string] {
	return limit.New[string](clientRate, clientBurst, maxClients)
}

// Opinion is what a client has this node say of a peer.
type Opinion struct {
	// Client is who; its quota counts.
	Client string
	// Subject is of whom.
	Subject peer.ID
	// Score is the rating; nil for none. Context is why.
	Score   *float64
	Context string
	// Text is the comment, in a language; empty for none.
	Text, Language string
	// Attached is the hash of the rating that the comment belongs to, when Score is nil;
	// may be empty.
	Attached []byte
}

// Say signs what a client says of a peer, and adds it to the log: first the rating, then the
// comment, which belongs to it. It returns the entry of the comment, or else that of the
// rating, which is also there where the comment has failed. Nothing is signed, and no quota
// spent, when one of them is not as it should be, or nobody waits. The error is [ErrTooOften],
// a [wire.ErrBad], that of the context or of the store.
func (l *Ledger) Say(ctx context.Context, o Opinion) (*wire.Entry, error) {
	rating, comment, err := l.entries(o)
	if err != nil {
		return nil, err
	}
	if !l.clients.Take(o.Client, time.Now()) {
		return nil, ErrTooOften
	}
	said := rating
	if rating != nil {
		if err := l.Append(ctx, rating, nil); err != nil {
			return nil, err
		}
		if comment != nil {
			h := rating.Hash()
			comment.AttachedRating = h[:]
		}
		ctx = context.WithoutCancel(ctx) // half of an opinion is another one
	}
	if comment != nil {
		if err := l.Append(ctx, comment, []byte(o.Text)); err != nil {
			return said, err
		}
		said = comment
	}
	return said, nil
}

// entries makes the entries of an opinion, and checks them; nil for what it does not have.
func (l *Ledger) entries(o Opinion) (rating, comment *wire.Entry, err error) {
	if o.Score != nil {
		rating = &wire.Entry{Kind: wire.Rating, Subject: o.Subject, Dimension: wire.Honesty, Score: *o.Score, Context: o.Context}
	}
	if o.Text != "" {
		cid := wire.CID([]byte(o.Text))
		if err := wire.CheckComment([]byte(o.Text), cid); err != nil {
			return nil, nil, err
		}
		comment = &wire.Entry{Kind: wire.Comment, Subject: o.Subject, TextCID: cid, Language: o.Language, AttachedRating: o.Attached}
	}
	for _, e := range []*wire.Entry{rating, comment} {
		if e == nil {
			continue
		}
		e.Rater, e.Time = l.store.Self(), time.Now().UnixNano() // the store sets them anew
		if err := e.Check(); err != nil {
			return nil, nil, err
		}
	}
	return rating, comment, nil
}

// Self returns the peer id of this node.
func (l *Ledger) Self() peer.ID { return l.store.Self() }

// Size returns the number of entries of the own log.
func (l *Ledger) Size() uint64 {
	if h := l.store.Head(); h != nil {
		return h.Size
	}
	return 0
}
