// SPDX-License-Identifier: Apache-2.0

// Package tree keeps the Merkle tree of a log (RFC 6962) in a store of its nodes: to
// append a leaf, to give a root or to prove something takes a number of nodes that grows
// with the logarithm of the size. The arithmetic is transparency-dev/merkle's.
package tree

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// hasher makes the nodes.
var hasher = rfc6962.DefaultHasher

var factory = compact.RangeFactory{Hash: hasher.HashChildren}

// Node is a node of a tree whose leaves are all there, by which it never changes: it
// covers the 2^Level leaves from Index * 2^Level on.
type Node struct {
	Level uint
	Index uint64
	Hash  wire.Hash
}

// Nodes gives the hash of a node. It has every node of a full subtree, from the leaves up.
type Nodes func(level uint, index uint64) (wire.Hash, error)

// hashes returns those of the nodes.
func (get Nodes) hashes(ids []compact.NodeID) ([][]byte, error) {
	out := make([][]byte, len(ids))
	for i, id := range ids {
		h, err := get(id.Level, id.Index)
		if err != nil {
			return nil, fmt.Errorf("node %d/%d of the tree: %w", id.Level, id.Index, err)
		}
		out[i] = h[:]
	}
	return out, nil
}

// upTo returns the tree's first size leaves as a range.
func (get Nodes) upTo(size uint64) (*compact.Range, error) {
	hashes, err := get.hashes(compact.RangeNodes(0, size, nil))
	if err != nil {
		return nil, err
	}
	return factory.NewRange(0, size, hashes)
}

// Append returns the nodes that a leaf adds to a tree of a size, and the new root.
func (get Nodes) Append(size uint64, leaf wire.Hash) (added []Node, root wire.Hash, err error) {
	r, err := get.upTo(size)
	if err != nil {
		return nil, root, err
	}
	visit := func(id compact.NodeID, h []byte) { added = append(added, Node{id.Level, id.Index, wire.Hash(h)}) }
	if err := r.Append(leaf[:], visit); err != nil {
		return nil, root, err
	}
	root, err = rootOf(r)
	return added, root, err
}

// Root returns the root of the tree's first size leaves.
func (get Nodes) Root(size uint64) (wire.Hash, error) {
	r, err := get.upTo(size)
	if err != nil {
		return wire.Hash{}, err
	}
	return rootOf(r)
}

func rootOf(r *compact.Range) (wire.Hash, error) {
	root, err := r.GetRootHash(nil)
	if err != nil {
		return wire.Hash{}, err
	}
	if root == nil { // of no leaves
		root = hasher.EmptyRoot()
	}
	return wire.Hash(root), nil
}

// Inclusion returns the proof that the leaf of an index is in the tree of a size.
func (get Nodes) Inclusion(index, size uint64) ([]wire.Hash, error) {
	nodes, err := proof.Inclusion(index, size)
	if err != nil {
		return nil, err
	}
	return get.prove(nodes)
}

// Consistency returns the proof that the tree of the smaller size is the beginning of that
// of the larger.
func (get Nodes) Consistency(smaller, larger uint64) ([]wire.Hash, error) {
	nodes, err := proof.Consistency(smaller, larger)
	if err != nil {
		return nil, err
	}
	return get.prove(nodes)
}

func (get Nodes) prove(nodes proof.Nodes) ([]wire.Hash, error) {
	hashes, err := get.hashes(nodes.IDs)
	if err != nil {
		return nil, err
	}
	if hashes, err = nodes.Rehash(hashes, hasher.HashChildren); err != nil {
		return nil, err
	}
	out := make([]wire.Hash, len(hashes))
	for i, h := range hashes {
		out[i] = wire.Hash(h)
	}
	return out, nil
}

// VerifyInclusion checks that a leaf is in the tree of a size and a root.
func VerifyInclusion(index, size uint64, leaf wire.Hash, path []wire.Hash, root wire.Hash) error {
	hashes := make([][]byte, len(path))
	for i := range path {
		hashes[i] = path[i][:]
	}
	return proof.VerifyInclusion(hasher, index, size, leaf[:], hashes, root[:])
}

// ErrOtherLog says that the larger tree has another beginning than the smaller.
var ErrOtherLog = errors.New("the trees are of two logs")

// VerifyContinues is like [wire.VerifyConsistency]. When the proof is one that the tree of the larger
// size begins with another tree of the smaller size, it returns the root of that, and
// [ErrOtherLog].
func VerifyContinues(smaller, larger uint64, path []wire.Hash, from, to wire.Hash) (earlier wire.Hash, err error) {
	err = wire.VerifyConsistency(smaller, larger, path, from, to)
	mismatch, ok := errors.AsType[proof.RootMismatchError](err)
	if !ok || len(mismatch.CalculatedRoot) != len(earlier) {
		return from, err
	}
	earlier = wire.Hash(mismatch.CalculatedRoot)
	if earlier != from && wire.VerifyConsistency(smaller, larger, path, earlier, to) == nil {
		return earlier, fmt.Errorf("%w: %w", ErrOtherLog, err)
	}
	return from, err
}
