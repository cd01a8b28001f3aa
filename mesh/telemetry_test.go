// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// message returns a pubsub message of telemetry that author sent.
func message(author peer.ID, seqno uint64, data []byte) *pubsub.Message {
	return &pubsub.Message{Message: &pb.Message{
		From: []byte(author), Seqno: binary.BigEndian.AppendUint64(nil, seqno), Data: data,
	}}
}

func telemetryOf(id peer.ID, change func(*wire.Telemetry)) []byte {
	t := wire.Telemetry{PeerID: id.String(), CPUCores: 1, Status: wire.StatusAvailable, MaxTasks: 1}
	if change != nil {
		change(&t)
	}
	b, _ := json.Marshal(t)
	return b
}

func testPeer(t testing.TB) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestValidate(t *testing.T) {
	author, relay := testPeer(t), testPeer(t)
	good := telemetryOf(author, nil)
	for name, c := range map[string]struct {
		data     []byte
		direct   pubsub.ValidationResult
		relaying pubsub.ValidationResult
	}{
		"good":        {good, pubsub.ValidationAccept, pubsub.ValidationAccept},
		"other peer":  {telemetryOf(relay, nil), pubsub.ValidationReject, pubsub.ValidationIgnore},
		"not JSON":    {[]byte("hi"), pubsub.ValidationReject, pubsub.ValidationIgnore},
		"1 MiB":       {[]byte(strings.Repeat(" ", 1<<20)), pubsub.ValidationReject, pubsub.ValidationIgnore},
		"-1000 tasks": {telemetryOf(author, func(t *wire.Telemetry) { t.CurrentTasks = -1000 }), pubsub.ValidationReject, pubsub.ValidationIgnore},
	} {
		if got := newSenders().validate(context.Background(), author, message(author, 1, c.data)); got != c.direct {
			t.Errorf("%s, from its author: got %v, want %v", name, got, c.direct)
		}
		if got := newSenders().validate(context.Background(), relay, message(author, 1, c.data)); got != c.relaying {
			t.Errorf("%s, from a relay: got %v, want %v", name, got, c.relaying)
		}
	}
	short := message(author, 1, good)
	short.Seqno = []byte{1}
	if got := newSenders().validate(context.Background(), author, short); got != pubsub.ValidationReject {
		t.Errorf("without a sequence number: got %v", got)
	}
}

func TestSendersReplayAndRate(t *testing.T) {
	s := newSenders()
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	id := testPeer(t)
	if !s.admit(id, id, 10) || s.admit(id, id, 10) || s.admit(id, id, 9) || !s.admit(id, id, 11) {
		t.Error("a message is admitted once, and never after a newer one")
	}
	admitted := 0
	for i := range uint64(1000) {
		if s.admit(id, id, 100+i) {
			admitted++
		}
	}
	if admitted != senderBurst-2 {
		t.Errorf("a burst of 1000: %d admitted, want %v", admitted, senderBurst-2)
	}
	now = now.Add(2 * time.Second)
	if !s.admit(id, id, math.MaxUint32) {
		t.Error("not admitted after a pause")
	}
	now = now.Add(workerStale + time.Second)
	if s.admit(testPeer(t), id, 5) || !s.admit(id, id, 5) {
		t.Error("after silence, an earlier clock is believed of the sender itself, and of nobody else")
	}
}

// TestSendersRateIsOne wants a sender who never pauses to get its rate, and no more.
func TestSendersRateIsOne(t *testing.T) {
	s := newSenders()
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	id := testPeer(t)
	admitted := 0
	for i := range uint64(10_000) { // 1,000 a second for ten seconds
		now = now.Add(time.Millisecond)
		if s.admit(id, id, 1+i) {
			admitted++
		}
	}
	if want := senderBurst + 10*senderRate; admitted > want+1 || admitted < want-1 {
		t.Errorf("%d admitted, want %v", admitted, want)
	}
}

// TestSendersIntroduced wants one forwarder not to fill the table.
func TestSendersIntroduced(t *testing.T) {
	s := newSenders()
	forwarder, honest := testPeer(t), testPeer(t)
	for i := range 2 * maxSenders {
		s.admit(forwarder, peer.ID(strconv.Itoa(i)), 1)
	}
	if len(s.byID) > newcomerBurst+1000 || !s.admit(honest, honest, 1) {
		t.Errorf("%d senders by one forwarder, or no room for another", len(s.byID))
	}
}

// TestSendersBounded wants free identities not to fill the memory, nor to keep
// others out for good.
func TestSendersBounded(t *testing.T) {
	s := newSenders()
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	for i := range 2 * maxSenders {
		s.admit(peer.ID(strconv.Itoa(i)), peer.ID(strconv.Itoa(i)), 1)
	}
	if len(s.byID) != maxSenders {
		t.Errorf("%d senders are remembered, want %d", len(s.byID), maxSenders)
	}
	newcomer := peer.ID("newcomer")
	if s.admit(newcomer, newcomer, 1) {
		t.Error("admitted beyond the bound")
	}
	now = now.Add(senderExpiry + time.Second)
	if !s.admit(newcomer, newcomer, 2) {
		t.Error("not admitted after the others fell silent")
	}
}

// TestTelemetryNotRelayed sends lies to a node to which a third is connected.
// The third hears the truth, and none of the lies.
func TestTelemetryNotRelayed(t *testing.T) {
	a := newTestApp(t, nil)
	liar := newPeer(t, a)
	third := newPeer(t, a)
	sub, err := third.topic.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	node := a.node.Load()
	await.Until(t, "the third subscribes", func() bool {
		for _, p := range liar.topic.ListPeers() {
			if p == node.host.ID() {
				return len(third.topic.ListPeers()) > 0
			}
		}
		return false
	})
	await.Until(t, "the mesh stands", func() bool { // a message gets through
		liar.publish(t)
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		m, err := sub.Next(ctx)
		return err == nil && m.GetFrom() == liar.ID()
	})
	for _, lie := range [][]byte{
		telemetryOf(third.ID(), nil),
		telemetryOf(liar.ID(), func(t *wire.Telemetry) { t.CurrentTasks = -1 }),
		[]byte("not JSON"),
	} {
		liar.publishRaw(t, lie)
	}
	truthful := newPeer(t, a)
	await.Until(t, "the truth gets through", func() bool {
		truthful.publish(t)
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		m, err := sub.Next(ctx)
		if err != nil {
			return false
		}
		if _, err := wire.ParseTelemetry(m.GetData()); err != nil {
			t.Fatalf("relayed: %q", m.GetData())
		}
		return m.GetFrom() == truthful.ID()
	})
	for _, w := range lease(t, a).Workers(true) {
		if w.PeerID == third.PeerID {
			t.Error("a worker appeared by another's word")
		}
	}
}

func TestDirectory(t *testing.T) {
	d := newDirectory(zap.NewNop)
	now := time.Unix(1000, 0)
	d.now = func() time.Time { return now }
	say := func(id string) { d.update(wire.Telemetry{PeerID: id, Model: "m", MaxTasks: 1, CPUCores: 1}) }
	ids := func(all bool) (s string) {
		for _, w := range d.list(all) {
			s += w.PeerID
		}
		return s
	}
	say("a")
	now = now.Add(time.Second)
	say("b")
	if got := ids(false); got != "ba" {
		t.Errorf("newest first: got %s", got)
	}
	now = now.Add(workerStale)
	d.expire()
	if got := ids(false); got != "b" || d.online() != 1 {
		t.Errorf("after silence: got %s", got)
	}
	if got := ids(true); got != "ba" {
		t.Errorf("online first: got %s", got)
	}
	d.offline("b")
	d.offline("nobody")
	if d.online() != 0 {
		t.Error("b is online after its connection ended")
	}
	say("a")
	if got := ids(true); got != "ab" {
		t.Errorf("back again: got %s", got)
	}
	now = now.Add(workerForget + time.Hour)
	d.expire()
	d.expire()
	if got := ids(true); got != "" {
		t.Errorf("after a day: got %s", got)
	}
}

// TestDirectoryBounded wants the offline to make room, and the online to stay.
func TestDirectoryBounded(t *testing.T) {
	d := newDirectory(zap.NewNop)
	for i := range maxWorkers {
		d.update(wire.Telemetry{PeerID: strconv.Itoa(i), MaxTasks: 1})
	}
	d.update(wire.Telemetry{PeerID: "late", MaxTasks: 1})
	if d.online() != maxWorkers || d.workers["late"] != nil {
		t.Errorf("%d workers", d.online())
	}
	d.offline("7")
	d.update(wire.Telemetry{PeerID: "late", MaxTasks: 1})
	if d.workers["late"] == nil || d.workers["7"] != nil {
		t.Error("the offline worker did not make room")
	}
}

// TestPrivateSwarm wants a node without the key to get nowhere.
func TestPrivateSwarm(t *testing.T) {
	a := newTestApp(t, make([]byte, 32))
	newWorker(t, a, say("ok"+noFiles))
	if out, _, err := ask(t, a, call("m")); out != "ok" || err != nil {
		t.Errorf("with the key: %q, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	node := a.node.Load().host
	for name, psk := range map[string][]byte{"no key": nil, "other key": append(make([]byte, 31), 1)} {
		h, err := NewHost(ctx, RoleWorker, newKey(t), []ma.Multiaddr{loopbackAddr}, Settings{SwarmKey: psk})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Connect(ctx, peer.AddrInfo{ID: node.ID(), Addrs: node.Addrs()}); err == nil {
			t.Errorf("%s: connected", name)
		}
		_ = h.Close()
	}
}
