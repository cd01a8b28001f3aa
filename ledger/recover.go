// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
)

// ErrUnasked says that not all have answered who may know of an epoch of the own log.
var ErrUnasked = errors.New("this node's log may have been recovered before, and not all have answered who may know")

// Recover begins the epoch of the own log, which was continued twice: see [store.Store.Recover]. It
// asks all peers before whether the log has had its epoch: with a second it would be lost. The
// error is [ErrUnasked] when a bootstrap node or a witness has not answered, or nobody has; force
// does without. It returns how many entries were signed anew.
func (l *Ledger) Recover(ctx context.Context, force bool) (entries uint64, err error) {
	if err := l.store.MayRecover(); err != nil {
		return 0, err
	}
	if err := l.askAnew(ctx); err != nil && !force {
		return 0, err
	}
	was := l.confirmed.Swap(false) // no head of the new log is shown before its entries are
	e, err := l.store.Recover(ctx)
	if e == nil {
		if was {
			l.confirmed.Store(true)
		}
		return 0, err
	}
	entries = l.Size()
	l.node.Log().Warn("this node has begun a new epoch of its log", zap.Uint64("entries", entries))
	l.news()
	l.announce(e)
	l.publishAll() // when the rest is to be done later, the next round does it
	return entries, err
}

// askAnew asks all peers, and the bootstrap nodes and witnesses that are none, for all epochs and
// heads that they have.
func (l *Ledger) askAnew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	witnesses := l.settings().Witnesses
	named := slices.Clone(witnesses)
	for _, b := range l.node.Bootstrap() {
		named = append(named, b.ID)
	}
	slices.Sort(named)
	named = slices.Compact(named)
	var (
		mu     sync.Mutex
		some   bool
		silent []string
		wait   sync.WaitGroup
		turns  = make(chan struct{}, len(named)+maxKicked) // strangers take none of the named ones
	)
	ask := func(id peer.ID) {
		turns <- struct{}{}
		wait.Go(func() {
			defer func() { <-turns }()
			knows, err := l.askOneAnew(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			some = some || knows && err == nil
			if !knows && slices.Contains(witnesses, id) || err != nil && slices.Contains(named, id) {
				silent = append(silent, id.String())
			}
		})
	}
	for _, id := range named {
		if id != l.store.Self() {
			ask(id)
		}
	}
	for _, id := range l.node.Host.Network().Peers() {
		if !slices.Contains(named, id) {
			ask(id)
		}
	}
	wait.Wait()
	switch {
	case len(silent) > 0:
		slices.Sort(silent)
		return fmt.Errorf("%w: %s; try again when they are there, or with --force when they never will be", ErrUnasked, strings.Join(silent, ", "))
	case !some:
		return fmt.Errorf("%w: there is no peer; try again when there is, or with --force when there never will be", ErrUnasked)
	}
	return nil
}

// askOneAnew does that with one, and reports whether it may know: one without a ledger does not. A
// witness without one is about to end.
func (l *Ledger) askOneAnew(ctx context.Context, id peer.ID) (knows bool, err error) {
	if err := l.node.Host.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
		return false, err
	}
	if !l.speaks(id) {
		return false, nil
	}
	c := l.headsSeen(id)
	c.notices = notices{}
	l.sawHeads(id, c)
	return true, errors.Join(l.askNotices(ctx, id), l.readHeads(ctx, id, 0))
}
