// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestWitnessSettings(t *testing.T) {
	var ids []string
	for range 33 { // one more than a head has room for
		ids = append(ids, idOf(t).String())
	}
	t.Setenv("WITNESS", ids[0])
	for name, c := range map[string]struct {
		r      Reputation
		quorum int
		want   string // in the error; empty for none
	}{
		"none":                {Reputation{}, 0, ""},
		"more than half of 3": {Reputation{Witnesses: ids[:3]}, 2, ""},
		"more than half of 4": {Reputation{Witnesses: ids[:4]}, 3, ""},
		"as told":             {Reputation{Witnesses: ids[:3], Quorum: 3}, 3, ""},
		"a placeholder":       {Reputation{Witnesses: []string{"{env.WITNESS}"}}, 1, ""},
		"too many":            {Reputation{Witnesses: ids}, 0, "32 at most"},
		"twice":               {Reputation{Witnesses: []string{ids[0], ids[0]}}, 0, "twice"},
		"no key to sign by":   {Reputation{Witnesses: []string{"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"}}, 0, "Ed25519"},
		"no peer id":          {Reputation{Witnesses: []string{"x"}}, 0, "not a peer id"},
		"quorum above":        {Reputation{Witnesses: ids[:2], Quorum: 3}, 0, "which is 2"},
		"quorum of nobody":    {Reputation{Quorum: 1}, 0, "which is 0"},
		"off":                 {Reputation{Off: true, Witness: true}, 0, "off"},
	} {
		got, err := c.r.resolve()
		if c.want == "" && (err != nil || got.Quorum != c.quorum || len(got.Witnesses) != len(c.r.Witnesses)) ||
			c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// idOf returns a peer id.
func idOf(t *testing.T) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
