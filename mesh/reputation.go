// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// Reputation is how the ledger is kept of what this gateway and others say of workers, and
// what follows from it.
type Reputation struct {
	// Off keeps no ledger: every worker may be sent tasks, and nobody is rated.
	// Default: false.
	Off bool `json:"off,omitempty"`

	// The folder in which the ledger is kept. One process can have it open; it cannot
	// change in a reload. May hold placeholders. Default: agentfm/ledger/<peer id> in
	// Caddy's data folder.
	Store string `json:"store,omitempty"`

	// The score from -1 to 1 below which a worker is sent no tasks. Default: -0.5.
	Floor *float64 `json:"floor,omitempty"`

	// A file of peers whose word counts, one a line: a peer id and how far it is trusted,
	// from 0 to 1. Lines that begin with `#` are comments. May hold placeholders.
	// Default: none.
	Seeds string `json:"seeds,omitempty"`

	// Send tasks also when the ledger cannot be opened or read. Default: false: then the
	// configuration is refused, or no worker is sent tasks.
	FailOpen bool `json:"fail_open,omitempty"`

	// Send tasks to workers of which little is known as to all others: for a mesh whose
	// workers are all trusted. Default: false: they are on probation, and get a small share
	// of the tasks, and those for which no other worker has room.
	TrustNewcomers bool `json:"trust_newcomers,omitempty"`
	// Witness makes this node sign the heads of others' logs, each only if it continues the
	// one before; also when no site uses the ledger. Default: false.
	Witness bool `json:"witness,omitempty"`

	// The peer ids of witnesses that this node asks to sign the heads of its own log.
	// Default: none.
	Witnesses []string `json:"witnesses,omitempty"`

	// How many of the witnesses must have signed a head of this node's log before it is shown
	// to others. Default: more than half of them.
	Quorum int `json:"quorum,omitempty"`
}

// DefaultFloor is the score below which a worker is sent no tasks.
const DefaultFloor = -0.5

// ReputationSettings are a Reputation with its defaults, placeholders and files resolved.
type ReputationSettings struct {
	// Off says that there is none.
	Off bool
	// Store is the folder; empty for the default.
	Store string
	// Floor is the score below which a worker is sent no tasks.
	Floor float64
	// Seeds are the peers whose word counts, and how far.
	Seeds map[peer.ID]float64
	// FailOpen says that tasks are sent also when the ledger cannot be read.
	FailOpen bool
	// TrustNewcomers says that workers of which little is known get tasks as all others do.
	TrustNewcomers bool
	// Witness says that this node is one.
	Witness bool
	// Witnesses are those that are asked.
	Witnesses []peer.ID
	// Quorum is how many of them must have signed a head.
	Quorum int
}

// resolve replaces placeholders, reads the seeds and fills what is left open. The receiver
// may be nil.
func (r *Reputation) resolve() (ReputationSettings, error) {
	out := ReputationSettings{Floor: DefaultFloor}
	if r == nil {
		return out, nil
	}
	out.Off, out.FailOpen, out.TrustNewcomers, out.Witness = r.Off, r.FailOpen, r.TrustNewcomers, r.Witness
	if r.Off && (r.Store != "" || r.Floor != nil || r.Seeds != "" || r.FailOpen || r.TrustNewcomers || r.Witness || r.Witnesses != nil || r.Quorum != 0) {
		return out, fmt.Errorf("off: no other option makes sense beside it")
	}
	if r.Floor != nil {
		if out.Floor = *r.Floor; !(out.Floor >= -1 && out.Floor <= 1) {
			return out, fmt.Errorf("floor: want a number between -1 and 1")
		}
	}
	repl := caddy.NewReplacer()
	var err error
	if r.Store != "" {
		if out.Store, err = repl.ReplaceOrErr(r.Store, true, true); err == nil {
			out.Store, err = filepath.Abs(out.Store)
		}
		if err != nil {
			return out, fmt.Errorf("store: %w", err)
		}
	}
	if r.Seeds != "" {
		file, err := repl.ReplaceOrErr(r.Seeds, true, true)
		if err != nil {
			return out, fmt.Errorf("seeds: %w", err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return out, fmt.Errorf("seeds: %w", err)
		}
		if out.Seeds, err = parseSeeds(b); err != nil {
			return out, fmt.Errorf("seeds: %s: %w", file, err)
		}
	}
	out.Witnesses, out.Quorum, err = r.witnesses()
	return out, err
}

// maxWitnesses is how many signatures of witnesses a head may have.
const maxWitnesses = 32

// witnesses returns those that are asked, and how many of them must have signed.
func (r *Reputation) witnesses() ([]peer.ID, int, error) {
	var ids []peer.ID
	repl := caddy.NewReplacer()
	for _, w := range r.Witnesses {
		w, err := repl.ReplaceOrErr(w, true, true)
		if err != nil {
			return nil, 0, fmt.Errorf("witnesses: %w", err)
		}
		id, err := peer.Decode(w)
		if err != nil {
			return nil, 0, fmt.Errorf("witnesses: %q is not a peer id", w)
		}
		if key, err := id.ExtractPublicKey(); err != nil || key.Type() != crypto.Ed25519 {
			return nil, 0, fmt.Errorf("witnesses: %s is not that of an Ed25519 key, and cannot sign", id)
		}
		if slices.Contains(ids, id) {
			return nil, 0, fmt.Errorf("witnesses: %s is there twice", id)
		}
		ids = append(ids, id)
	}
	quorum := r.Quorum
	if quorum == 0 && len(ids) > 0 {
		quorum = len(ids)/2 + 1
	}
	switch {
	case len(ids) > maxWitnesses:
		return nil, 0, fmt.Errorf("witnesses: a head has the signatures of %d at most", maxWitnesses)
	case quorum < 0 || quorum > len(ids):
		return nil, 0, fmt.Errorf("quorum: want a number up to that of the witnesses, which is %d", len(ids))
	}
	return ids, quorum, nil
}

// parseSeeds reads a file of seeds.
func parseSeeds(b []byte) (map[peer.ID]float64, error) {
	seeds := make(map[peer.ID]float64)
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.Fields(lines.Text())
		if len(line) == 0 || strings.HasPrefix(line[0], "#") {
			continue
		}
		if len(line) != 2 {
			return nil, fmt.Errorf("line %d: want a peer id and a number between 0 and 1", n)
		}
		id, err := peer.Decode(line[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %q is not a peer id", n, line[0])
		}
		trust, err := strconv.ParseFloat(line[1], 64)
		if err != nil || !(trust >= 0 && trust <= 1) {
			return nil, fmt.Errorf("line %d: %q is not a number between 0 and 1", n, line[1])
		}
		if _, ok := seeds[id]; ok {
			return nil, fmt.Errorf("line %d: %s is there already", n, id)
		}
		seeds[id] = trust
	}
	return seeds, lines.Err()
}

// ReputationSettings returns the resolved settings, after Provision.
func (a *App) ReputationSettings() ReputationSettings { return a.reputation }

// unmarshalReputation reads the reputation option: a block, or off.
func (a *App) unmarshalReputation(d *caddyfile.Dispenser) error {
	a.Reputation = new(Reputation)
	if args := d.RemainingArgs(); len(args) > 0 {
		if len(args) != 1 || args[0] != off {
			return d.ArgErr()
		}
		a.Reputation.Off = true
		return nil
	}
	return option.Set{
		"store":           option.String(&a.Reputation.Store),
		"floor":           option.Score(&a.Reputation.Floor),
		"seeds":           option.String(&a.Reputation.Seeds),
		"fail_open":       option.Flag(&a.Reputation.FailOpen),
		"trust_newcomers": option.Flag(&a.Reputation.TrustNewcomers),
		"witness":         option.Flag(&a.Reputation.Witness),
		"witnesses":       option.Strings(&a.Reputation.Witnesses),
		"quorum":          option.PositiveInt(&a.Reputation.Quorum),
	}.Block(d)
}
