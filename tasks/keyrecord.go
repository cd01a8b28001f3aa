// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Key is an Idempotency-Key: a name that a client gives to a request, so that it may send
// it again.
type Key struct {
	// Owner is whose it is, as of a [Record].
	Owner string
	// Route is what it was sent to.
	Route string
	// Name is what the client has sent.
	Name string
	// Print is a hash of the request. What has another is another request.
	Print [sha256.Size]byte
	// Task is the id of the task that the request would submit; empty when it submits none.
	Task string
	// Limit is how long the request may take. A gateway that has not answered by then is
	// taken to be gone, by others.
	Limit time.Duration
}

// subject is the place of the key in the store. It begins with the owner's: another's is
// not found.
func (k *Key) subject() string {
	sum := sha256.Sum256([]byte(k.Route + "\x00" + k.Name))
	return keySubject + ownerKey(k.Owner) + "." + hex.EncodeToString(sum[:])
}

// keyState is how far the request of a key has come.
type keyState string

// The states of a key.
const (
	keyBegun    keyState = "begun"    // somebody serves it
	keyAnswered keyState = "answered" // the answer is kept
	keyLost     keyState = "lost"     // it is not
)

// Head is what an answer has beside its body.
type Head struct {
	Status  int         `json:"status"`
	Header  http.Header `json:"header,omitempty"`
	Trailer http.Header `json:"trailer,omitempty"`
}

// Lost says why there is no answer of a request that was begun.
type Lost string

// Reasons for that.
const (
	// LostClient says that the client went away, which stops the agent.
	LostClient Lost = "client"
	// LostWorker says that the worker broke the answer off.
	LostWorker Lost = "worker"
	// LostGateway says that the gateway was stopped.
	LostGateway Lost = "gateway"
	// LostSize says that the answer is over [MaxOutput].
	LostSize Lost = "size"
	// LostStore says that the store did not take the answer, or has damaged it.
	LostStore Lost = "store"
	// LostAge says that the answer had to make room for younger ones.
	LostAge Lost = "age"
)

// LostError says that a request was begun and that its answer is not there.
type LostError struct{ Reason Lost }

// Error implements error.
func (e *LostError) Error() string { return "the answer is not kept: " + string(e.Reason) }

// keyRecord is what is kept of a key.
type keyRecord struct {
	State   keyState  `json:"state"`
	Print   string    `json:"print"`
	Created time.Time `json:"created"`
	// Holder is the process that serves it, and Until the time by which that has answered.
	Holder string    `json:"holder"`
	Until  time.Time `json:"until"`
	Serial string    `json:"serial"` // tells it from others that are the same
	// Task is the id of the task that it submits; empty for none.
	Task string `json:"task,omitempty"`

	Lost Lost  `json:"lost,omitempty"`
	Head *Head `json:"head,omitempty"`
	// Size is that of the body. A body that does not follow the record is in the stream of
	// answers, at Place.
	Size  int64  `json:"size,omitempty"`
	Place string `json:"place,omitempty"`

	body []byte
}

// maxInline is how large a body may be that is kept with its record.
const maxInline = 16 << 10

// encode returns the record as it is stored: a line of JSON, and the body.
func (r *keyRecord) encode() ([]byte, error) {
	head, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return append(append(head, '\n'), r.body...), nil
}

// errKeyDamaged says that a record cannot be read.
var errKeyDamaged = errors.New("reading the record of an idempotency key: it is damaged")

// decodeKey reads a stored record.
func decodeKey(b []byte) (*keyRecord, error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	r := new(keyRecord)
	if !ok || json.Unmarshal(head, r) != nil {
		return nil, errKeyDamaged
	}
	if len(body) > 0 {
		r.body = body
	}
	switch r.State {
	case keyLost:
		ok = true
	case keyBegun:
		ok = r.Task == "" || ValidID(r.Task)
	case keyAnswered:
		ok = r.Head != nil && r.Head.Status >= 200 && r.Head.Status <= 999 && (r.Place != "" || r.Size == int64(len(r.body)))
	default:
		ok = false
	}
	if !ok {
		return nil, fmt.Errorf("%w: state %q", errKeyDamaged, r.State)
	}
	return r, nil
}
