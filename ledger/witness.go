// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// cosigning is what a node knows of its witnesses, and, as one, of those whose heads it signs.
type cosigning struct {
	from   *authors      // who submits how often
	served counter       // submissions: no other requests take their places
	due    chan struct{} // holds one when there is a head that witnesses have not seen
	mu     sync.Mutex
	sizes  map[peer.ID]uint64 // what each witness has signed last, as far as is known
}

func newCosigning() cosigning {
	return cosigning{from: newAuthors(), served: newCounter(), due: make(chan struct{}, 1), sizes: make(map[peer.ID]uint64)}
}

// witnessWithin bounds one request to a witness: one that does not answer keeps the signatures
// of the others waiting.
const witnessWithin = 10 * time.Second

// errWitness says that a witness has not signed.
var errWitness = errors.New("the witness has not signed")

// witnessing serves the witness's protocol, or serves it no more, as the settings say.
func (l *Ledger) witnessing() {
	if !l.settings().Witness || l.ctx.Err() != nil {
		l.node.Host.RemoveStreamHandler(wire.WitnessProtocol)
		return
	}
	l.node.Host.SetStreamHandler(wire.WitnessProtocol, func(s network.Stream) {
		from := s.Conn().RemotePeer()
		l.answer(s, &l.cosigning.served, func(r io.Reader) (reply, error) { return l.serveWitness(from, r) })
	})
}

// serveWitness reads a submission, and returns what answers it. When too many come from one
// peer, whosever heads they are, it does not answer.
func (l *Ledger) serveWitness(from peer.ID, r io.Reader) (reply, error) {
	sub, err := wire.ReadSubmission(r)
	if errors.Is(err, wire.ErrBad) {
		return func(w io.Writer) error { return wire.WriteVerdict(w, wire.Verdict{Status: wire.Malformed}) }, nil
	}
	if err != nil {
		return nil, err
	}
	if !l.cosigning.from.admit(from) {
		return nil, errLater
	}
	return func(w io.Writer) error { return l.judgeHead(sub, w) }, nil
}

// judgeHead signs a head as its witness, or says why not.
func (l *Ledger) judgeHead(sub *wire.Submission, w io.Writer) error {
	v, evidence, err := l.store.Cosign(l.ctx, sub)
	if err != nil {
		return err
	}
	switch {
	case evidence != nil:
		l.equivocated(evidence)
	case v.Status == wire.Signed, v.Status == wire.Conflict, v.Status == wire.BadProof:
		// It may contradict what is stored of that log, and others may lack it.
		h := sub.Head.Bare()
		if v.Status == wire.Signed {
			h.Witnesses = []wire.Witness{v.Witness}
		}
		l.tell(h)
		if _, err := l.observe(h); err != nil && !errors.Is(err, store.ErrFork) {
			return err
		}
	}
	return wire.WriteVerdict(w, v)
}

// sign has witnesses asked, soon.
func (c *cosigning) sign() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// seekSignatures asks witnesses for their signatures, until the ledger is closed: when there is
// a new head, and again every minute those that have not signed it.
func (l *Ledger) seekSignatures() {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.cosigning.due:
		case <-tick.C:
		}
		l.alarm(l.cosign())
	}
}

// cosign asks those witnesses for their signatures of the newest head who have not signed it. A
// head that may not be shown is not shown to them either.
func (l *Ledger) cosign() error {
	s := l.settings()
	head := l.store.Head()
	if head == nil || len(s.Witnesses) == 0 || !l.confirmed.Load() || l.store.MaySign() != nil {
		return nil
	}
	signed, err := l.store.Cosigned(l.store.Self())
	if err != nil {
		return err
	}
	if signed == nil || string(signed.Canonical()) != string(head.Canonical()) {
		signed = head.Bare()
	}
	var mu sync.Mutex
	var asked sync.WaitGroup
	fresh := *signed
	fresh.Witnesses = slices.Clone(signed.Witnesses)
	for _, id := range s.Witnesses {
		if signed.WitnessedBy(id) || id == head.Peer {
			continue
		}
		asked.Go(func() {
			w, err := l.signature(id, head)
			if err != nil {
				l.node.Log().Debug("a witness has not signed", zap.Stringer("witness", id), zap.Error(err))
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fresh.Witnesses = append(fresh.Witnesses, w)
		})
	}
	asked.Wait()
	if len(fresh.Witnesses) == len(signed.Witnesses) || witnessed(&fresh, s) < s.Quorum {
		return nil
	}
	return l.store.SetCosigned(l.ctx, &fresh)
}

// witnessed returns how many of the settings' witnesses have signed a head.
func witnessed(h *wire.Head, s Settings) (n int) {
	for _, id := range s.Witnesses {
		if h.WitnessedBy(id) {
			n++
		}
	}
	return n
}

// shown returns the head of the own log that others may see; nil for none: the newest, or where
// there are witnesses, the newest that enough of them have signed.
func (l *Ledger) shown() (*wire.Head, error) {
	s := l.settings()
	if len(s.Witnesses) == 0 {
		return l.store.Head(), nil
	}
	h, err := l.store.Cosigned(l.store.Self())
	if err != nil || h == nil || witnessed(h, s) < s.Quorum {
		return nil, err
	}
	return h, nil
}

// signature asks one witness to sign a head. What it says of an older one counts only when this
// node has signed that.
func (l *Ledger) signature(id peer.ID, head *wire.Head) (wire.Witness, error) {
	l.cosigning.mu.Lock()
	old := l.cosigning.sizes[id]
	l.cosigning.mu.Unlock()
	for range 3 {
		v, err := l.submit(id, old, head)
		if err != nil {
			return wire.Witness{}, err
		}
		switch v.Status {
		case wire.Signed:
			if v.Witness.Peer != id || head.VerifyWitness(v.Witness) != nil {
				return wire.Witness{}, fmt.Errorf("%w: the signature is not its own", errWitness)
			}
			old = head.Size
		case wire.Conflict:
			if old, err = l.conflict(v.Held, head); err != nil {
				return wire.Witness{}, err
			}
		default:
			return wire.Witness{}, fmt.Errorf("%w: status %d", errWitness, v.Status)
		}
		l.cosigning.mu.Lock()
		l.cosigning.sizes[id] = old
		l.cosigning.mu.Unlock()
		if v.Status == wire.Signed {
			return v.Witness, nil
		}
	}
	return wire.Witness{}, fmt.Errorf("%w: it says something else each time", errWitness)
}

// conflict takes in the head of the own log that a witness has signed last; nil for none. It may
// tell that the store lacks something.
func (l *Ledger) conflict(held, head *wire.Head) (old uint64, err error) {
	if held == nil {
		return 0, nil
	}
	if err := l.store.Claim(l.ctx, held); err != nil {
		return 0, fmt.Errorf("%w: %w", errWitness, err)
	}
	if err := l.store.MaySign(); err != nil {
		l.alarm(err)
		return 0, err
	}
	if held.Size > head.Size {
		return 0, fmt.Errorf("%w: it has signed a larger one", errWitness)
	}
	return held.Size, nil
}

// submit sends a witness a head, and returns the answer.
func (l *Ledger) submit(id peer.ID, old uint64, head *wire.Head) (v wire.Verdict, err error) {
	sub := &wire.Submission{Old: old, Head: head.Bare()}
	if sub.Proof, err = l.store.Consistency(old, head.Size); err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(l.ctx, witnessWithin)
	defer cancel()
	err = l.exchange(ctx, id, wire.WitnessProtocol,
		func(w io.Writer) error { return wire.WriteSubmission(w, sub) },
		func(r io.Reader) (err error) {
			v, err = wire.ReadVerdict(r)
			return err
		})
	return v, err
}
