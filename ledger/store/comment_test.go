// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

func TestCommentsOfOthers(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	text := []byte("hello")
	c := a.say(t, &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID(text)})
	if err := s.PutComment(ctx, c.TextCID, text); !errors.Is(err, ErrNotFound) {
		t.Errorf("a text that no entry names: %v", err)
	}
	s.accept(t, Stored, nil, c)
	want, err := s.Wanted(ctx, 10)
	if err != nil || len(want) != 1 || string(want[0].CID) != string(c.TextCID) || want[0].Author != a.id {
		t.Fatalf("%v, %v", want, err)
	}
	if err := s.PutComment(ctx, c.TextCID, []byte("other")); !errors.Is(err, wire.ErrBad) {
		t.Error(err)
	}
	if err := s.PutComment(ctx, c.TextCID, text); err != nil {
		t.Fatal(err)
	}
	if want, err := s.Wanted(ctx, 10); err != nil || len(want) != 0 {
		t.Errorf("%v, %v", want, err)
	}
}

func TestCursor(t *testing.T) {
	s, id := newStore(t), newAuthor(t).id
	before := Cursor{}
	for _, want := range []Cursor{{}, {7, wire.Hash{1}}, {9, wire.Hash{2}}, {3, wire.Hash{3}}} {
		if want.Row > 0 {
			if err := s.SetCursor(ctx, id, before, want); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Cursor(ctx, id); got != want || err != nil {
			t.Errorf("%v, %v", got, err)
		}
		before = want
	}
	if err := s.SetCursor(ctx, newAuthor(t).id, before, before); !errors.Is(err, ErrCursor) {
		t.Errorf("one that is not there was moved: %v", err)
	}
}

// contents is all that a store answers with.
func contents(s *Store, subject peer.ID) (string, error) {
	own, err1 := s.Log(ctx, wire.Range{Count: 1000})
	in, err2 := s.Inbox(ctx, wire.Range{Count: 1000})
	about, err3 := s.About(ctx, subject, 500, 0)
	var votes []Vote
	err4 := s.Votes(ctx, func(v Vote) { votes = append(votes, v) })
	s.now = func() time.Time { return voteBase } // tallies age
	tallies, err5 := s.Tallies(ctx)
	s.now = time.Now
	return fmt.Sprint(s.Head(), len(about), own, in, s.Equivocators(), votes, tallies), errors.Join(err1, err2, err3, err4, err5)
}
