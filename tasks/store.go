// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Limits of the store.
const (
	// Keep is how long a task that has ended is kept, with its output.
	Keep = 7 * 24 * time.Hour

	maxRecord  = 256 << 10
	maxPayload = 8 << 20 // a prompt, which has 1 MiB at most, and what stands around it

	recordBytes  = 1 << 30
	queueBytes   = 512 << 20 // of prompts, which are in memory as well while their tasks wait
	webhookBytes = 256 << 20
	outputBytes  = 8 << 30

	// lease is how long a message of a queue may be silent before it is delivered again.
	lease = 30 * time.Second
	// lockWait is how long the lock of the folder may take: a predecessor in this
	// process may be closing.
	lockWait = 1500 * time.Millisecond
	// callTimeout bounds each call to the store.
	callTimeout = 10 * time.Second
	startWait   = time.Minute
	// stopWait is how long requests may hold up the end; less than lockWait.
	stopWait = time.Second
)

// ErrInUse says that another process has the folder of the store.
var ErrInUse = errors.New("another process has it open")

// store is the embedded server, and what it holds: the records of the tasks, the queue
// of those to run, with their prompts, the queue of webhooks, and output. Every write is
// on disk before it is acknowledged.
type store struct {
	lock    *flock.Flock
	witness *witness
	server  *server.Server
	conn    *nats.Conn
	js      jetstream.JetStream

	records  jetstream.KeyValue
	queue    jetstream.Stream
	webhooks jetstream.Stream
	output   jetstream.Stream
	keys     jetstream.Stream
	answers  jetstream.Stream

	failing sync.Once
	failed  chan struct{} // closed when it cannot be written any more
	failure error         // once failed is closed
}

// Names in the store.
const (
	bucket        = "tasks"
	queueName     = "QUEUE"
	queueSubject  = "queue."
	hookName      = "WEBHOOKS"
	hookSubject   = "webhook."
	outputSubject = "output."
)

// openStore opens the store in a folder, or makes one.
func openStore(dir string, log *zap.Logger) (_ *store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the task store: %w", err)
	}
	s := &store{failed: make(chan struct{})}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.acquire(dir); err != nil {
		return nil, err
	}
	if s.witness, err = newWitness(dir); err != nil {
		return nil, fmt.Errorf("opening the task store: %w", err)
	}
	if err := s.serve(dir, log); err != nil {
		return nil, fmt.Errorf("opening the task store in %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	if err := s.layOut(ctx); err != nil {
		return nil, fmt.Errorf("opening the task store in %s: %w", dir, err)
	}
	return s, nil
}

// acquire takes the lock of the folder: two servers on one folder would destroy it.
func (s *store) acquire(dir string) error {
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	ok, err := lock.TryLockContext(ctx, 20*time.Millisecond)
	switch {
	case ok:
		s.lock = lock
		return nil
	case err == nil, errors.Is(err, context.DeadlineExceeded):
		err = ErrInUse
	}
	return fmt.Errorf("locking the task store in %s: %w; give each process a store of its own", dir, err)
}

// serve starts the server, which listens nowhere, and connects to it.
func (s *store) serve(dir string, log *zap.Logger) error {
	var err error
	s.server, err = server.NewServer(&server.Options{
		ServerName: "agentfm-tasks",
		DontListen: true,
		NoSigs:     true,
		JetStream:  true,
		StoreDir:   dir,
		SyncAlways: true,
		MaxPayload: maxPayload,

		JetStreamMaxMemory: 16 << 20, // nothing is kept in memory alone
		JetStreamMaxStore:  recordBytes + queueBytes + webhookBytes + outputBytes + keyBytes + answerBytes,
	})
	if err != nil {
		return err
	}
	sampled := zap.WrapCore(func(c zapcore.Core) zapcore.Core { // it can say one thing a thousand times
		return zapcore.NewSamplerWithOptions(c, time.Minute, 3, 0)
	})
	s.server.SetLoggerV2(serverLog{log.WithOptions(sampled).Sugar()}, false, false, false)
	s.server.Start()
	if !s.server.ReadyForConnections(startWait) {
		return fmt.Errorf("the server was not ready within %s", startWait)
	}
	if !s.server.JetStreamEnabled() {
		return errors.New("the folder cannot be used: see the log")
	}
	s.conn, err = nats.Connect("", nats.InProcessServer(s.server), nats.MaxReconnects(-1), nats.Timeout(callTimeout))
	if err != nil {
		return err
	}
	s.js, err = jetstream.New(s.conn, jetstream.WithDefaultTimeout(callTimeout))
	return err
}

// layOut makes what the store holds, as far as it is not there.
func (s *store) layOut(ctx context.Context) error {
	var err error
	s.records, err = s.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, History: 1, Storage: jetstream.FileStorage, MaxBytes: recordBytes, MaxValueSize: maxRecord,
		LimitMarkerTTL: time.Minute,
	})
	if err != nil {
		return err
	}
	if s.queue, err = s.workQueue(ctx, queueName, queueSubject, queueBytes); err != nil {
		return err
	}
	if s.webhooks, err = s.workQueue(ctx, hookName, hookSubject, webhookBytes); err != nil {
		return err
	}
	s.output, err = s.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: "OUTPUT", Subjects: []string{outputSubject + ">"}, Storage: jetstream.FileStorage,
		MaxBytes: outputBytes, MaxAge: Keep + QueueLimit, Discard: jetstream.DiscardOld, AllowDirect: true,
		Compression: jetstream.S2Compression,
	})
	if err != nil {
		return err
	}
	return s.layOutKeys(ctx)
}

// workQueue makes a queue whose messages are there until they are acknowledged. It has
// no limit of age: a message without an end would be a task without one.
func (s *store) workQueue(ctx context.Context, name, subject string, size int64) (jetstream.Stream, error) {
	return s.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{subject + ">"}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage, MaxBytes: size, Discard: jetstream.DiscardNew,
		MaxMsgsPerSubject: 1, DiscardNewPerSubject: true, AllowDirect: true,
	})
}

// consume begins to take messages off a queue, without their bodies, at most limit at one
// time; -1 for any number. The consumer is made anew: who had a lease on a message is gone with the process that gave it.
func (s *store) consume(ctx context.Context, q jetstream.Stream, limit int) (jetstream.MessagesContext, error) {
	const name = "gateway"
	if err := q.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, err
	}
	c, err := q.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: name, AckPolicy: jetstream.AckExplicitPolicy, AckWait: lease, MaxDeliver: -1, MaxAckPending: limit,
		HeadersOnly: true,
	})
	if err != nil {
		return nil, err
	}
	// Under load, a pull can be lost between the client and the server (nats.go 1.52); the
	// missing heartbeat tells, and another is made.
	return c.Messages(jetstream.PullMaxMessages(16), jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(500*time.Millisecond))
}

// probe returns an error when the store cannot be written.
func (s *store) probe(ctx context.Context) error {
	const subject = outputSubject + "probe"
	if _, err := s.js.Publish(ctx, subject, make([]byte, chunkSize)); err != nil {
		return err
	}
	if err := s.output.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
		return err
	}
	return s.witness.sync()
}

// failedTo makes an [ErrStore] of the error of a write, and notes that the store has
// failed when it is the store's: not when it is full by its own limits, nor when the
// caller has no more time.
func (s *store) failedTo(ctx context.Context, err error) error {
	full := strings.Contains(err.Error(), "maximum ") // "maximum bytes exceeded"
	if !full && !errors.Is(ctx.Err(), context.Canceled) {
		s.failing.Do(func() {
			s.failure = err
			close(s.failed)
		})
	}
	return fmt.Errorf("%w: %w", ErrStore, err)
}

// close closes the store. It tolerates one that is half open.
func (s *store) close() {
	if s.conn != nil {
		s.conn.Close()
	}
	if s.server != nil {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	}
	s.witness.close()
	if s.lock != nil {
		_ = s.lock.Unlock()
	}
}

// serverLog passes what the server says on: failures as they are, the rest for those who
// look for it.
type serverLog struct{ *zap.SugaredLogger }

// Noticef implements server.Logger.
func (l serverLog) Noticef(format string, v ...any) { l.Debugf(format, v...) }

// Tracef implements server.Logger.
func (l serverLog) Tracef(format string, v ...any) { l.Debugf(format, v...) }

// Fatalf implements server.Logger. It does not end the process, which has more to do.
func (l serverLog) Fatalf(format string, v ...any) { l.Errorf(format, v...) }

// Interface guard
var _ server.Logger = serverLog{}
