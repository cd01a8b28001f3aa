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

	recordBytes  = 4 << 30
	queueBytes   = 4 << 30 // of prompts
	webhookBytes = 256 << 20
	outputBytes  = 8 << 30

	// Lease is how long a gateway may be silent before another takes its tasks.
	Lease = 30 * time.Second
	// lockWait is how long the lock of the folder may take: a predecessor in this
	// process may be closing.
	lockWait = 1500 * time.Millisecond
	// callTimeout bounds each call to the store.
	callTimeout = 10 * time.Second
	startWait   = time.Minute
	// flushWait is how long the end waits for a server of a cluster that does not answer.
	flushWait = time.Second
	// stopWait is how long requests may hold up the end; less than lockWait.
	stopWait = time.Second
)

// ErrInUse says that another process has the folder of the store.
var ErrInUse = errors.New("another process has it open")

// store is a server and what it holds: the records of the tasks, the queue of those to
// run, with their prompts, the queue of webhooks, and output. The server is part of the
// process, and listens nowhere; or else it is a cluster that several gateways share.
type store struct {
	lock     *flock.Flock
	server   *server.Server
	shared   bool // it is a cluster
	replicas int
	conn     *nats.Conn
	js       jetstream.JetStream

	records  shelf
	calls    shelf
	queue    jetstream.Stream
	webhooks jetstream.Stream
	output   jetstream.Stream
	keys     jetstream.Stream
	answers  jetstream.Stream

	tails map[string]*tail // of the streams, by their names; none of a cluster's

	wake  func(key string)                    // those who follow a task; nil for nobody
	fault func(when, verb, what string) error // nil outside of tests

	failing sync.Once
	failed  chan struct{} // closed when it cannot be written any more
	failure error         // once failed is closed
}

// Names in the store. In a cluster, there may be those of others beside them.
const (
	bucket        = "agentfm_tasks"
	recordName    = "KV_" + bucket
	queueName     = "AGENTFM_QUEUE"
	queueSubject  = "agentfm.queue."
	hookName      = "AGENTFM_WEBHOOKS"
	hookSubject   = "agentfm.webhook."
	outputName    = "AGENTFM_OUTPUT"
	outputSubject = "agentfm.output."
)

// openStore opens the store of a place, or makes one.
func openStore(ctx context.Context, at place, log *zap.Logger) (_ *store, err error) {
	s := &store{failed: make(chan struct{}), replicas: 1}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if at.cluster != nil {
		s.shared, s.replicas = true, at.cluster.Replicas
		err = s.connect(at.cluster, log)
	} else {
		err = s.openFolder(at.dir, log)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the task store in %s: %w", at, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	if err = s.layOut(ctx); err == nil && ownSync && at.cluster == nil {
		err = s.followTails(ctx, at.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the task store in %s: %w", at, err)
	}
	return s, nil
}

// step does a step that decides what is known after a crash. In tests, it can fail, before
// it is done and after.
func step[T any](s *store, verb, what string, do func() (T, error)) (v T, err error) {
	if s.fault == nil {
		return do()
	}
	if err := s.fault("before", verb, what); err != nil {
		return v, err
	}
	if v, err = do(); err == nil {
		err = s.fault("after", verb, what)
	}
	return v, err
}

// openFolder starts the server on a folder.
func (s *store) openFolder(dir string, log *zap.Logger) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = s.acquire(dir)
	}
	if err == nil {
		err = removeConsumers(dir)
	}
	if err == nil {
		err = s.serve(dir, log)
	}
	return err
}

// removeConsumers removes the server's files of who took messages off the queues: they had
// leases that are gone with the process that gave them. After a power cut these files may be
// empty, and then the server (nats-server 2.12) neither knows the consumer nor makes another
// of its name.
func removeConsumers(dir string) error {
	for _, name := range []string{queueName, hookName} {
		if err := os.RemoveAll(filepath.Join(streamDir(dir, name), "obs")); err != nil {
			return err
		}
	}
	return nil
}

// streamDir is where the server keeps a stream, in the folder of the store.
func streamDir(dir, name string) string {
	return filepath.Join(dir, "jetstream", "$G", "streams", name)
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
		return fmt.Errorf("locking it: %w; give each process a store of its own", ErrInUse)
	}
	return fmt.Errorf("locking it: %w", err)
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
		SyncAlways: !ownSync,
		MaxPayload: maxPayload,

		JetStreamMaxMemory: 16 << 20, // nothing is kept in memory alone
		JetStreamMaxStore:  callBytes + recordBytes + queueBytes + webhookBytes + outputBytes + keyBytes + answerBytes,
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
	s.conn, err = nats.Connect("", nats.InProcessServer(s.server), nats.MaxReconnects(-1), nats.Timeout(callTimeout), errorsTo(log))
	if err != nil {
		return err
	}
	s.js, err = jetstream.New(s.conn, jetstream.WithDefaultTimeout(callTimeout))
	return err
}

// errorsTo has the errors of a connection logged, which are nobody's answer. One is that a
// queue is read too slowly: what did not fit comes again when its lease is over.
func errorsTo(log *zap.Logger) nats.Option {
	return nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		log.Warn("the connection to the task store", zap.Error(err))
	})
}

// layOut makes what the store holds, as far as it is not there.
func (s *store) layOut(ctx context.Context) error {
	alone := s.replicas == 0
	if alone {
		s.replicas = DefaultReplicas
	}
	err := s.layOutRecords(ctx)
	if apiErr, ok := errors.AsType[*jetstream.APIError](err); ok && alone && apiErr.ErrorCode == errNoReplicas {
		s.replicas = 1 // it is no cluster, but one server
		err = s.layOutRecords(ctx)
	}
	if err != nil {
		return err
	}
	if s.queue, err = s.workQueue(ctx, queueName, queueSubject, queueBytes); err != nil {
		return err
	}
	if s.webhooks, err = s.workQueue(ctx, hookName, hookSubject, webhookBytes); err != nil {
		return err
	}
	s.output, err = s.stream(ctx, jetstream.StreamConfig{
		Name: outputName, Subjects: []string{outputSubject + ">"},
		MaxBytes: outputBytes, MaxAge: Keep + QueueLimit, Discard: jetstream.DiscardOld, Compression: jetstream.S2Compression,
	})
	if err != nil {
		return err
	}
	if err := s.layOutCalls(ctx); err != nil {
		return err
	}
	return s.layOutKeys(ctx)
}

// errNoReplicas is how JetStream says that there is no cluster for replicas.
const errNoReplicas jetstream.ErrorCode = 10074

// stream makes a stream, or changes it. All others of its readings go to the one server
// that leads it: one that lags behind must not say that what was acknowledged is not there.
func (s *store) stream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	c.Storage, c.Replicas, c.AllowDirect = jetstream.FileStorage, s.replicas, !s.shared
	if !s.shared { // nothing is sent twice: a start need not read what came of late
		c.Duplicates = 100 * time.Millisecond
	}
	return patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.CreateOrUpdateStream(ctx, c) })
}

// layOutRecords makes the bucket of the records.
func (s *store) layOutRecords(ctx context.Context) error {
	var err error
	s.records = shelf{stream: recordName, index: newIndex(false)}
	s.records.KeyValue, err = s.bucket(ctx, bucket, jetstream.StreamConfig{MaxBytes: recordBytes, MaxMsgSize: maxRecord, SubjectDeleteMarkerTTL: time.Minute})
	return err
}

// bucket makes a bucket of keys and values. Of each key, the value before the newest stays
// until that is on disk and yet another follows.
func (s *store) bucket(ctx context.Context, name string, c jetstream.StreamConfig) (jetstream.KeyValue, error) {
	c.Name, c.Subjects = "KV_"+name, []string{"$KV." + name + ".>"}
	c.MaxMsgsPerSubject, c.Discard = 2, jetstream.DiscardNew
	c.AllowRollup, c.DenyDelete, c.AllowMsgTTL = true, true, true
	if _, err := s.stream(ctx, c); err != nil {
		return nil, err
	}
	return patiently(ctx, s, func(ctx context.Context) (jetstream.KeyValue, error) { return s.js.KeyValue(ctx, name) })
}

// workQueue makes a queue whose messages are there until they are acknowledged. It has
// no limit of age: a message without an end would be a task without one.
func (s *store) workQueue(ctx context.Context, name, subject string, size int64) (jetstream.Stream, error) {
	return s.stream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{subject + ">"}, Retention: jetstream.WorkQueuePolicy,
		MaxBytes: size, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, DiscardNewPerSubject: true,
	})
}

// consume begins to take messages of some subjects off a queue, without their bodies, at
// most limit at one time; -1 for any number.
func (s *store) consume(ctx context.Context, q jetstream.Stream, name, subjects string, limit int, lease time.Duration) (jetstream.MessagesContext, error) {
	c, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Consumer, error) {
		return q.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
			Durable: name, FilterSubject: subjects, AckPolicy: jetstream.AckExplicitPolicy, AckWait: lease, MaxDeliver: -1,
			MaxAckPending: limit, HeadersOnly: true,
		})
	})
	if err != nil {
		return nil, err
	}
	// Under load, a pull can be lost between the client and the server (nats.go 1.52); the
	// missing heartbeat tells, and another is made.
	return c.Messages(jetstream.PullMaxMessages(128), jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(500*time.Millisecond))
}

// probe returns an error when the store cannot be written.
func (s *store) probe(ctx context.Context) error {
	const subject = outputSubject + "probe"
	message, err := s.publish(ctx, &nats.Msg{Subject: subject, Data: make([]byte, chunkSize)})
	if err == nil {
		err = s.sync(outputName, message)
	}
	if err != nil {
		return err
	}
	_, err = patiently(ctx, s, func(ctx context.Context) (any, error) {
		return nil, s.output.Purge(ctx, jetstream.WithPurgeSubject(subject))
	})
	return err
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
		if s.shared { // what was given back is to be known
			_ = s.conn.FlushTimeout(flushWait)
		}
		s.conn.Close()
	}
	if s.server != nil {
		s.server.Shutdown()
		s.server.WaitForShutdown()
	}
	for _, t := range s.tails {
		t.close()
	}
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
