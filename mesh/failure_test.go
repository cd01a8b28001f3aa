// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func TestStreamFailure(t *testing.T) {
	for _, c := range []struct {
		err  error
		want metrics.Reason
	}{
		{fmt.Errorf("%w: task x", errUnwanted), metrics.Refused},
		{fmt.Errorf("reading: %w", os.ErrDeadlineExceeded), metrics.Deadline},
		{context.DeadlineExceeded, metrics.Deadline},
		{fmt.Errorf("%w: %w", wire.ErrBadFrame, os.ErrDeadlineExceeded), metrics.Deadline},
		{fmt.Errorf("%w: %w", wire.ErrBadFrame, network.ErrReset), metrics.Reset},
		{wire.ErrBadFrame, metrics.Malformed},
		{wire.ErrFrameTooLarge, metrics.Malformed},
		{&fs.PathError{Op: "write", Path: "x", Err: errors.New("disk is full")}, metrics.Local},
		{&os.LinkError{Op: "link", Err: fs.ErrExist}, metrics.Local},
		{io.ErrUnexpectedEOF, metrics.Reset},
	} {
		if got := StreamFailure(c.err); got != c.want {
			t.Errorf("%v: got %s, want %s", c.err, got, c.want)
		}
	}
}

// TestWorkersOnlineMetric wants the gauge to follow the directory, and to be 0
// after its end.
func TestWorkersOnlineMetric(t *testing.T) {
	reg := prometheus.NewRegistry()
	if err := metrics.Register(reg); err != nil {
		t.Fatal(err)
	}
	want := func(n float64) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "agentfm_workers_online" && f.GetMetric()[0].GetGauge().GetValue() != n {
				t.Errorf("got %v, want %v", f.GetMetric()[0].GetGauge().GetValue(), n)
			}
		}
	}
	d := newDirectory(zap.NewNop)
	for _, id := range []string{"a", "b", "a"} {
		d.update(wire.Telemetry{PeerID: id, MaxTasks: 1})
	}
	want(2)
	d.offline("a")
	want(1)
	d.close()
	want(0)
}
