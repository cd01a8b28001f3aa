// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"sync"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
)

// Bounds on what the DHT keeps for strangers.
const (
	maxRecords     = 32768
	maxRecordBytes = 16 << 20
)

// errRecordsFull refuses a record.
var errRecordsFull = errors.New("no room for more records of the DHT")

// records is the memory in which the DHT keeps the records of other nodes. The
// library's own has no bound, and any node may store in it.
type records struct {
	datastore.Batching

	mu    sync.Mutex
	sizes map[datastore.Key]int
	bytes int
}

func newRecords() *records {
	return &records{
		Batching: dssync.MutexWrap(datastore.NewMapDatastore()),
		sizes:    make(map[datastore.Key]int),
	}
}

// Put implements datastore.Write. A full store refuses new records and larger
// ones; those that it has expire.
func (r *records) Put(ctx context.Context, k datastore.Key, v []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	size := len(v) + len(k.String())
	old, known := r.sizes[k]
	if !known && len(r.sizes) >= maxRecords || r.bytes+size-old > maxRecordBytes {
		return errRecordsFull
	}
	if err := r.Batching.Put(ctx, k, v); err != nil {
		return err
	}
	r.sizes[k] = size
	r.bytes += size - old
	return nil
}

// Delete implements datastore.Write.
func (r *records) Delete(ctx context.Context, k datastore.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.Batching.Delete(ctx, k); err != nil {
		return err
	}
	r.bytes -= r.sizes[k]
	delete(r.sizes, k)
	return nil
}

// Batch implements datastore.Batching, through Put and Delete.
func (r *records) Batch(context.Context) (datastore.Batch, error) {
	return datastore.NewBasicBatch(r), nil
}

// Interface guard
var _ datastore.Batching = (*records)(nil)
