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

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// cosigning is what a node knows of its witnesses, and, as one, of those whose heads it signs.
type cosigning struct {
	from   *authors      // who submits how often
	served counter       // submissions: no other requests take their places
	due    chan struct{} // holds one when there is a head that witnesses have not seen
	mu     sync.Mutex
	asked  map[peer.ID]bool  // the witnesses that are being asked
	failed map[peer.ID]error // why those have not signed that were asked last in vain
	full   time.Time         // when it was said last that no more logs are taken
}

func newCosigning() cosigning {
	return cosigning{from: newAuthors(), served: newCounter(), due: make(chan struct{}, 1), asked: make(map[peer.ID]bool), failed: make(map[peer.ID]error)}
}

// begin says that a witness is asked; false when it is being asked already.
func (c *cosigning) begin(id peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked[id] {
		return false
	}
	c.asked[id] = true
	return true
}

// end says what came of it.
func (c *cosigning) end(id peer.ID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.asked, id)
	delete(c.failed, id)
	if err != nil {
		c.failed[id] = err
	}
}

// failure returns why a witness has not signed; nil when it has, or was not asked.
func (c *cosigning) failure(id peer.ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed[id]
}

// witnessWithin bounds one request to a witness: one that does not answer keeps the signatures
// of the others waiting.
const witnessWithin = 10 * time.Second

// cosignPause is for how long no witness is asked again: what has been signed since comes under
// one head.
const cosignPause = time.Second

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

// serveWitness reads a submission, and returns what answers it: a signature or why there is none,
// or without a head the one of the log of who asks that was signed last. When too many come from one
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
	if sub.Head == nil {
		return func(w io.Writer) error {
			held, err := l.store.Cosigned(from)
			if err != nil {
				return err
			}
			return wire.WriteVerdict(w, wire.Verdict{Status: wire.Conflict, Held: held})
		}, nil
	}
	return func(w io.Writer) error { return l.judgeHead(sub, w) }, nil
}

// judgeHead signs a head as its witness, or says why not.
func (l *Ledger) judgeHead(sub *wire.Submission, w io.Writer) error {
	v, evidence, err := l.store.Cosign(l.ctx, sub)
	if err != nil {
		return err
	}
	l.countAnswer(sub.Head.Peer, v.Status)
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

// fullEvery is how often a witness says in its log that it takes no more logs.
const fullEvery = time.Hour

// countAnswer counts what this node says to a head of a log as its witness.
func (l *Ledger) countAnswer(of peer.ID, status int) {
	switch {
	case status == wire.Signed:
		metrics.Witness(metrics.WitnessSigned)
	case status == wire.Conflict:
		metrics.Witness(metrics.WitnessConflict)
	case status == wire.UnknownLog && of != l.store.Self():
		metrics.Witness(metrics.WitnessFull)
		if l.cosigning.tellFull(time.Now()) {
			l.node.Log().Warn("this witness takes no more logs of which it has no entries: it has signed heads of as many as it can, and must forget none", zap.Stringer("peer", of))
		}
	default:
		metrics.Witness(metrics.WitnessRefused)
	}
}

// tellFull reports whether it is time to say so.
func (c *cosigning) tellFull(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.full.IsZero() && now.Sub(c.full) < fullEvery {
		return false
	}
	c.full = now
	return true
}

// refusal is why a witness has not signed, by its answer.
func refusal(status int) error {
	if status == wire.UnknownLog {
		return fmt.Errorf("%w: it takes no more logs of which it has no entries", errWitness)
	}
	return fmt.Errorf("%w: status %d", errWitness, status)
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
	var w unsigned
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.cosigning.due:
		case <-tick.C:
			if w.long(l, time.Now()) {
				l.tellUnsigned()
			}
		}
		l.alarm(l.cosign())
		if !l.pause(cosignPause) {
			return
		}
	}
}

// cosign asks those witnesses for their signatures of the newest head who have not signed it,
// until enough have, or none is left. A head that may not be shown is not shown to them either.
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
	c := &cosigned{head: head.Bare()}
	if signed != nil && string(signed.Canonical()) == string(head.Canonical()) {
		c.head.Witnesses = slices.DeleteFunc(signed.Witnesses, func(w wire.Witness) bool { return !slices.Contains(s.Witnesses, w.Peer) })
	}
	var ask []peer.ID
	for _, id := range s.Witnesses {
		if !c.head.WitnessedBy(id) && l.cosigning.begin(id) {
			ask = append(ask, id)
		}
	}
	enough := len(c.head.Witnesses) >= s.Quorum
	answers := make(chan bool, len(ask))
	for _, id := range ask {
		l.running.Go(func() {
			w, err := l.signature(id, head)
			l.cosigning.end(id, err)
			if err != nil {
				l.node.Log().Debug("a witness has not signed", zap.Stringer("witness", id), zap.Error(err))
			}
			answers <- err == nil && c.add(l, w, s.Quorum)
			if l.store.Head() != head {
				l.cosigning.sign() // it was not asked for the one that came meanwhile
			}
		})
	}
	for range ask {
		if enough { // the others still add theirs
			break
		}
		enough = <-answers
	}
	return nil
}

// cosigned is a head with the signatures of witnesses that have come so far.
type cosigned struct {
	mu   sync.Mutex
	head *wire.Head
}

// add adds a signature, and reports whether there are enough of them; then others may see the
// head.
func (c *cosigned) add(l *Ledger, w wire.Witness, quorum int) (enough bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.head.Witnesses = append(c.head.Witnesses, w)
	if len(c.head.Witnesses) < quorum {
		return false
	}
	l.alarm(l.store.SetCosigned(l.ctx, c.head))
	return true
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

// askWitnesses asks those for what they have signed of the own log that have not said it yet.
func (l *Ledger) askWitnesses() {
	var asked sync.WaitGroup
	defer asked.Wait()
	for _, id := range l.settings().Witnesses {
		l.answered.Lock()
		done := l.answered.as[id]
		l.answered.Unlock()
		if done {
			continue
		}
		asked.Go(func() {
			if !l.cosigning.begin(id) {
				return
			}
			_, err := l.held(id)
			l.cosigning.end(id, err)
			if err != nil && !store.Unsigned(err) {
				l.node.Log().Debug("a witness has not said what it has signed", zap.Stringer("witness", id), zap.Error(err))
				return
			}
			l.answered.Lock()
			defer l.answered.Unlock()
			l.answered.as[id] = true
		})
	}
}

// held asks a witness for the head of the own log that it has signed last; nil for none. It may
// tell that the store lacks something: then the error is [store.ErrBehind] or [store.ErrForked].
func (l *Ledger) held(id peer.ID) (*wire.Head, error) {
	v, err := l.submit(id, 0, nil)
	switch {
	case err != nil:
		return nil, err
	case v.Status != wire.Conflict:
		return nil, fmt.Errorf("%w: status %d", errWitness, v.Status)
	case v.Held != nil && l.store.Voided(v.Held):
		return nil, fmt.Errorf("%w: it has not heard of the new epoch of this node's log", errWitness)
	case v.Held != nil:
		if err := l.store.Claim(l.ctx, v.Held); err != nil {
			return nil, fmt.Errorf("%w: %w", errWitness, err)
		}
	}
	err = l.store.MaySign()
	l.alarm(err)
	return v.Held, err
}

// signature asks one witness to sign a head, after what it has signed last. What it says of that
// counts only when this node has signed it.
func (l *Ledger) signature(id peer.ID, head *wire.Head) (w wire.Witness, err error) {
	held, err := l.held(id)
	if err != nil {
		return w, err
	}
	old := uint64(0)
	if held != nil {
		old = held.Size
	}
	if old > head.Size {
		return w, fmt.Errorf("%w: it has signed a larger one", errWitness)
	}
	v, err := l.submit(id, old, head)
	switch {
	case err != nil:
		return w, err
	case v.Status != wire.Signed:
		return w, refusal(v.Status)
	case v.Witness.Peer != id || head.VerifyWitness(v.Witness) != nil:
		return w, fmt.Errorf("%w: the signature is not its own", errWitness)
	}
	return v.Witness, nil
}

// Prove returns the proof that an entry is in its author's log, like [store.Store.Prove]. A head of
// the own log is one that may be shown; a node that knows nobody who keeps a ledger shows its
// clients any.
func (l *Ledger) Prove(ctx context.Context, of peer.ID, hash wire.Hash) (*store.Proof, error) {
	p, err := l.store.Prove(ctx, of, hash)
	if err != nil || p.Head.Peer != l.store.Self() {
		return p, err
	}
	if s := l.settings(); p.Private && !l.alone() || witnessed(p.Head, s) < s.Quorum {
		return nil, store.ErrNotFound
	}
	return p, nil
}

// submit sends a witness a head, or none, and returns the answer.
func (l *Ledger) submit(id peer.ID, old uint64, head *wire.Head) (v wire.Verdict, err error) {
	sub := new(wire.Submission)
	if head != nil {
		sub.Old, sub.Head = old, head.Bare()
		if sub.Proof, err = l.store.Consistency(old, head.Size); err != nil {
			return v, err
		}
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
