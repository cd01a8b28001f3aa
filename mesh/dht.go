// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"context"
	"slices"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
)

// newDHT returns the DHT of a host.
func newDHT(h host.Host, mode dht.ModeOpt, bootstrap []peer.AddrInfo) (*dht.IpfsDHT, error) {
	return dht.New(h, dht.Mode(mode), dht.BootstrapPeers(bootstrap...), dht.Datastore(newRecords()),
		dht.OnRequestHook(func(_ context.Context, s network.Stream, req *dhtpb.Message) {
			dropPrivate(req, s.Conn().RemoteMultiaddr())
		}),
		dht.WithCustomMessageSender(func(h host.Host, protocols []protocol.ID) dhtpb.MessageSenderWithDisconnect {
			return &dhtSender{h, protocols}
		}))
}

// dropPrivate takes from a message of a peer on the public internet what is not there: on
// a stranger's word, a node does not dial its own machine or network. Names go too, since
// they may stand for any address.
func dropPrivate(m *dhtpb.Message, from ma.Multiaddr) {
	if ip, ok := addrIP(from); !ok || !ipclass.Public(ip) {
		return
	}
	for _, p := range slices.Concat(m.GetCloserPeers(), m.GetProviderPeers()) {
		p.Addrs = slices.DeleteFunc(p.GetAddrs(), func(b []byte) bool {
			a, err := ma.NewMultiaddrBytes(b)
			if err != nil {
				return true
			}
			ip, ok := addrIP(a)
			return !ok || !ipclass.Public(ip)
		})
	}
}

// dhtTimeout bounds one message of the DHT and the answer to it.
const dhtTimeout = 10 * time.Second

// dhtSender sends the DHT's messages, each on a stream of its own. The library's own
// sender cannot be asked who has answered.
type dhtSender struct {
	host      host.Host
	protocols []protocol.ID
}

// SendRequest implements dhtpb.MessageSender.
func (d *dhtSender) SendRequest(ctx context.Context, p peer.ID, req *dhtpb.Message) (*dhtpb.Message, error) {
	answer := new(dhtpb.Message)
	err := d.send(ctx, p, req, func(s network.Stream) error {
		start := time.Now()
		err := protodelim.UnmarshalOptions{MaxSize: network.MessageSizeMax}.UnmarshalFrom(bufio.NewReader(s), answer)
		if err == nil {
			d.host.Peerstore().RecordLatency(p, time.Since(start))
			dropPrivate(answer, s.Conn().RemoteMultiaddr())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// SendMessage implements dhtpb.MessageSender.
func (d *dhtSender) SendMessage(ctx context.Context, p peer.ID, m *dhtpb.Message) error {
	return d.send(ctx, p, m, func(network.Stream) error { return nil })
}

// OnDisconnect implements dhtpb.MessageSenderWithDisconnect: nothing is kept.
func (*dhtSender) OnDisconnect(context.Context, peer.ID) {}

// send sends a message on a stream, from which it then has receive read.
func (d *dhtSender) send(ctx context.Context, p peer.ID, m *dhtpb.Message, receive func(network.Stream) error) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	s, err := d.host.NewStream(ctx, p, d.protocols...)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	_ = s.SetDeadline(time.Now().Add(dhtTimeout))
	if _, err = s.Write(protowire.AppendBytes(nil, b)); err == nil {
		err = receive(s)
	}
	if err != nil {
		_ = s.Reset()
		return err
	}
	return s.Close()
}
