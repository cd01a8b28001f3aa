// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/limit"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Limits on what gossip brings. What is above is not lost: it comes when peers are asked
// for what they have.
const (
	authorRate  = 5 // entries a second
	authorBurst = 100
	maxAuthors  = 16384
	newcomers   = 50 // authors a second that were not heard of lately
	// gossipBuffer is how many messages may wait, gossipBatch how many are stored at once.
	gossipBuffer = 1024
	gossipBatch  = 64
)

// gossip is the part of the ledger in its topics.
type gossip struct {
	ps            *pubsub.PubSub
	feedback      *pubsub.Topic
	equivocation  *pubsub.Topic
	inconsistency *pubsub.Topic // what AgentFM 1.3 does not know, as are the next
	heads         *pubsub.Topic
	epochs        *pubsub.Topic
	subscriptions []*pubsub.Subscription
	out           chan *wire.Entry
	authors       *authors // of entries
	accused       *authors // of the heads that alerts show
	owners        *authors // of heads that are news
	repeated      *authors // of heads that are not
	declared      *authors // of epochs
}

// join joins the topics.
func (g *gossip) join(l *Ledger) error {
	g.ps, g.out = l.node.PubSub, make(chan *wire.Entry, gossipBuffer)
	g.authors, g.accused, g.owners, g.repeated, g.declared = newAuthors(), newAuthors(), newAuthors(), newAuthors(), newAuthors()
	for _, t := range []struct {
		name     string
		topic    **pubsub.Topic
		validate pubsub.ValidatorEx
		run      func(*pubsub.Subscription)
	}{
		{wire.FeedbackTopic, &g.feedback, l.validateEntry, l.takeEntries},
		{wire.EquivocationTopic, &g.equivocation, l.validateAlert, l.takeAlerts},
		{wire.InconsistencyTopic, &g.inconsistency, l.validateAlert, l.takeAlerts},
		{wire.HeadsTopic, &g.heads, l.validateHead, l.takeHeads},
		{wire.EpochsTopic, &g.epochs, l.validateEpoch, l.takeEpochs},
	} {
		if err := g.ps.RegisterTopicValidator(t.name, t.validate); err != nil {
			return err
		}
		var opts []pubsub.TopicOpt
		if t.name == wire.HeadsTopic { // many see the same
			opts = append(opts, pubsub.WithTopicMessageIdFn(func(m *pb.Message) string {
				sum := sha256.Sum256(m.GetData())
				return string(sum[:])
			}))
		}
		topic, err := g.ps.Join(t.name, opts...)
		if err != nil {
			return err
		}
		*t.topic = topic
		sub, err := topic.Subscribe(pubsub.WithBufferSize(gossipBuffer))
		if err != nil {
			return err
		}
		g.subscriptions = append(g.subscriptions, sub)
		l.running.Go(func() { t.run(sub) })
	}
	l.running.Go(func() { g.send(l) })
	return nil
}

// leave leaves the topics. The node's context has ended, or the ledger was not opened whole.
func (g *gossip) leave() {
	for _, s := range g.subscriptions {
		s.Cancel()
	}
	for _, t := range []*pubsub.Topic{g.feedback, g.equivocation, g.inconsistency, g.heads, g.epochs} {
		if t != nil {
			_ = g.ps.UnregisterTopicValidator(t.String())
			_ = t.Close()
		}
	}
}

// publish sends an entry of this node. It does not wait: what does not go out comes to
// peers when they ask.
func (g *gossip) publish(e *wire.Entry) {
	select {
	case g.out <- e:
	default:
	}
}

func (g *gossip) send(l *Ledger) {
	for {
		select {
		case <-l.ctx.Done():
			return
		case e := <-g.out:
			if err := g.feedback.Publish(l.ctx, e.Marshal()); err != nil && l.ctx.Err() == nil {
				l.node.Log().Debug("publishing an entry", zap.Error(err))
			}
		}
	}
}

// judge is the end of a validator. A peer is penalised only for messages of its own: AgentFM
// 1.3 nodes relay everything.
func judge(err error, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	switch {
	case err == nil:
		return pubsub.ValidationAccept
	case errors.Is(err, errLater) || from != m.GetFrom():
		return pubsub.ValidationIgnore
	}
	return pubsub.ValidationReject
}

// errLater says that a message is not relayed now.
var errLater = errors.New("too many entries")

// validateEntry is the validator of entries. What it does not accept is not relayed. One that
// is stored is no news, nor is one that would be refused whatever comes. Neither these nor one whose
// signature is wrong spend anything of what its author may send.
func (l *Ledger) validateEntry(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	e, err := wire.ParseEntry(m.GetData())
	if err == nil && from != l.store.Self() {
		if l.store.Refuses(e) {
			return pubsub.ValidationIgnore
		}
		if known, bad := l.store.Knows(e); bad == nil && known {
			return pubsub.ValidationIgnore
		}
	}
	if err == nil {
		err = e.Verify()
	}
	if err == nil && from != l.store.Self() && !l.gossip.authors.admit(e.Rater) {
		err = errLater
	}
	m.ValidatorData = e
	return judge(err, from, m)
}

// validateAlert is the validator of alerts. One against a known equivocator is no news, nor is one
// that an epoch has cleared.
func (l *Ledger) validateAlert(ctx context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	a, err := wire.ParseAlert(m.GetData())
	if err == nil && (from != l.store.Self() && l.store.Equivocators()[a.Peer] || l.store.Cleared(a)) {
		return pubsub.ValidationIgnore
	}
	if err == nil && (a.A.Size == a.B.Size) != (m.GetTopic() == wire.EquivocationTopic) {
		err = errors.New("an alert of the other topic")
	}
	if err == nil {
		err = a.Verify()
	}
	if err == nil && from != l.store.Self() && (l.store.MayAccuse(ctx, a.Peer) != nil || !l.gossip.accused.admit(a.Peer)) {
		err = errLater
	}
	m.ValidatorData = a
	return judge(err, from, m)
}

// takeEntries stores the entries that gossip brings, as many at once as have come.
func (l *Ledger) takeEntries(sub *pubsub.Subscription) {
	next := make(chan *wire.Entry, gossipBuffer)
	l.running.Go(func() {
		defer close(next)
		for {
			m, err := sub.Next(l.ctx)
			if err != nil {
				return
			}
			e, ok := m.ValidatorData.(*wire.Entry)
			if !ok || m.GetFrom() == l.store.Self() && e.Rater == l.store.Self() {
				continue
			}
			select {
			case next <- e:
			case <-l.ctx.Done():
				return
			}
		}
	})
	for e := range next {
		batch := []*wire.Entry{e}
		for more := true; more && len(batch) < gossipBatch; {
			select {
			case e, ok := <-next:
				if more = ok; ok {
					batch = append(batch, e)
				}
			default:
				more = false
			}
		}
		if err := l.take(batch, true); err != nil {
			l.alarm(err)
		}
	}
}

// take stores entries; with news, subscribers of events are told. With [store.ErrVoiding], some are to be
// offered again.
func (l *Ledger) take(batch []*wire.Entry, news bool) error {
	outcomes, reasons, err := l.store.Accept(l.ctx, batch)
	if err != nil {
		return err
	}
	l.news()
	for i, e := range batch {
		if errors.Is(reasons[i], store.ErrVoiding) {
			err = reasons[i]
		}
		if outcomes[i] == store.Stored && e.Prev == (wire.Hash{}) {
			l.logs.Add(1)
		}
		switch {
		case outcomes[i] == store.Stored && news:
			l.node.Entry(e.Subject, e.Kind.String())
		case reasons[i] != nil:
			l.node.Log().Debug("an entry was refused", zap.Stringer("author", e.Rater), zap.Error(reasons[i]))
		}
	}
	return err
}

// takeAlerts stores who has equivocated.
func (l *Ledger) takeAlerts(sub *pubsub.Subscription) {
	for {
		m, err := sub.Next(l.ctx)
		if err != nil {
			return
		}
		if a, ok := m.ValidatorData.(*wire.Alert); ok {
			l.accuse(a)
		}
	}
}

// accuse takes in an alert.
func (l *Ledger) accuse(a *wire.Alert) {
	news, err := l.store.Equivocation(l.ctx, a)
	if err != nil && !errors.Is(err, store.ErrQuota) {
		l.alarm(err)
	}
	if news {
		l.news()
		l.node.Log().Warn("a peer has signed two logs", zap.Stringer("peer", a.Peer), zap.Uint64s("sizes", []uint64{a.A.Size, a.B.Size}), zap.Stringer("witness", a.Witness))
	}
}

// equivocated tells the mesh of two heads of one peer that contradict each other, once.
func (l *Ledger) equivocated(evidence *wire.Alert) {
	if l.store.Equivocators()[evidence.Peer] || l.store.MayAccuse(l.ctx, evidence.Peer) != nil || !l.gossip.accused.admit(evidence.Peer) {
		return
	}
	alert := *evidence
	alert.Witness, alert.Time = l.store.Self(), time.Now().UnixNano()
	if err := alert.Sign(l.node.Key); err != nil {
		l.alarm(err)
		return
	}
	l.accuse(&alert)
	l.spread(&alert)
}

// spread sends an alert to the mesh.
func (l *Ledger) spread(a *wire.Alert) {
	topic := l.gossip.equivocation
	if a.A.Size != a.B.Size {
		topic = l.gossip.inconsistency
	}
	if err := topic.Publish(l.ctx, a.Marshal()); err != nil {
		l.node.Log().Debug("publishing an alert", zap.Error(err))
	}
}

// authors remembers how many more entries of whom are welcome. Identities are free: how many
// it remembers is bounded, and so is how fast newcomers come.
type authors struct{ table *limit.Table[peer.ID] }

func newAuthors() *authors {
	return &authors{limit.New[peer.ID](authorRate, authorBurst, maxAuthors).Newcomers(newcomers, maxAuthors/16)}
}

// admit reports whether an entry of an author is within its rate.
func (a *authors) admit(id peer.ID) bool { return a.table.Take(id, time.Now()) }
