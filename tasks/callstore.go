// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// layOutCalls makes what calls are kept in.
func (s *store) layOutCalls(ctx context.Context) error {
	_, err := s.stream(ctx, jetstream.StreamConfig{
		Name: callName, Subjects: []string{callSubject + ">"}, MaxBytes: callBytes, MaxMsgSize: maxRecord, MaxAge: Keep,
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardOld, DenyDelete: true, AllowRollup: true, AllowMsgTTL: true,
	})
	if err == nil {
		s.calls = shelf{stream: callName, index: newIndex(true)}
		s.calls.KeyValue, err = patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValue, error) { return s.js.KeyValue(ctx, callBucket) })
	}
	return err
}

// getCall returns the record of a call and its revision.
func (s *store) getCall(ctx context.Context, key string) (*Record, uint64, error) {
	entry, err := patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValueEntry, error) { return s.calls.Get(ctx, key) })
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, 0, ErrNotFound
	case err != nil:
		return nil, 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	r, err := decode(entry.Value())
	return r, entry.Revision(), err
}

// putCall writes the record of a call.
func (s *store) putCall(ctx context.Context, r *Record, opts ...jetstream.PublishOpt) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	message, err := s.publish(ctx, &nats.Msg{Subject: callSubject + r.key(), Data: b}, opts...)
	if err != nil {
		s.calls.index.failed()
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	s.calls.index.note(r, message)
	s.changed(r.key())
	return nil
}
