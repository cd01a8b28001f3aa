// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// errUnwanted says that a stream is none that this side waits for.
var errUnwanted = errors.New("not wanted")

// StreamFailure returns the reason, for the metrics, of an error of a stream that
// was open. What is nothing else is [metrics.Reset].
func StreamFailure(err error) metrics.Reason {
	is := func(target error) bool { return errors.Is(err, target) }
	_, local := errors.AsType[*fs.PathError](err)
	_, link := errors.AsType[*os.LinkError](err)
	switch {
	case is(errUnwanted):
		return metrics.Refused
	case is(os.ErrDeadlineExceeded), is(context.DeadlineExceeded):
		return metrics.Deadline
	case is(network.ErrReset): // also where half a frame came before it
		return metrics.Reset
	case is(wire.ErrBadFrame), is(wire.ErrFrameTooLarge):
		return metrics.Malformed
	case local, link:
		return metrics.Local
	}
	return metrics.Reset
}
