// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// answerFiles ends the answer of a task that succeeded: with the marker for no
// files when there is no zip, or with the other and the zip.
func answerFiles(ctx context.Context, h host.Host, s network.Stream, taskID string, zipped *zipped) error {
	if zipped == nil {
		return answer(s, "\n"+wire.MarkerNoFiles+"\n")
	}
	defer zipped.free()
	metrics.ArtifactBuilt()
	if err := answer(s, "\n"+wire.MarkerFiles+"\n"); err != nil {
		return err
	}
	return sendFiles(ctx, h, s, taskID, zipped)
}

// sendFiles sends a zip to the gateway of the task and waits until it has it.
func sendFiles(ctx context.Context, h host.Host, task network.Stream, taskID string, zipped *zipped) error {
	dialCtx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "agentfm"), mesh.DialTimeout)
	defer cancel()
	s, err := h.NewStream(dialCtx, task.Conn().RemotePeer(), wire.ArtifactProtocol)
	if err != nil {
		metrics.StreamError(metrics.Artifacts, metrics.Dial)
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	_ = s.SetDeadline(time.Now().Add(mesh.ArtifactTimeout))
	err = wire.WriteArtifactHeader(s, wire.ArtifactHeader{Size: zipped.size, TaskID: taskID})
	if err == nil {
		err = zipped.write(ctx, countSent{s})
	}
	if err == nil {
		err = s.CloseWrite()
	}
	if err == nil { // the gateway closes its side when it has stored the zip, and resets when it has not
		_, err = s.Read(make([]byte, 1))
	}
	if errors.Is(err, io.EOF) {
		return s.Close()
	}
	_ = s.Reset()
	if errors.Is(err, errChanged) {
		metrics.StreamError(metrics.Artifacts, metrics.Local)
		return err
	}
	if ctx.Err() == nil { // else it is the task that ended
		metrics.StreamError(metrics.Artifacts, mesh.StreamFailure(err))
	}
	return fmt.Errorf("the gateway did not take them: %w", err)
}

// countSent counts what is sent of a zip.
type countSent struct{ io.Writer }

// Write implements io.Writer.
func (w countSent) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	metrics.ArtifactSent(int64(n))
	return n, err
}
