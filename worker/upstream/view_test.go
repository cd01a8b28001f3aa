// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestView(t *testing.T) {
	peer := "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprint("m", i))
	}
	for name, c := range map[string]struct {
		r       *Runtime
		listed  []string
		own     string
		want    string // the models, or the text of the error
		names   map[string]string
		skipped int
		fails   bool
	}{
		"all": {listed: []string{"b", "a"}, want: "b a",
			names: map[string]string{"b": "b", "A": "a", "Ann's": "b", "ann'S": "b", "an": "", "": "", peer: "b", strings.ToLower(peer): ""}},
		"own first":           {listed: []string{"b", "a"}, own: "a", want: "a b", names: map[string]string{"Ann's": "a", "x": ""}},
		"own in another case": {listed: []string{"b", "Llama"}, own: "llama", want: "Llama b", names: map[string]string{"llama": "Llama", "LLAMA": "Llama"}},
		"as gateways fold":    {listed: []string{"b", "Kſ"}, want: "b Kſ", names: map[string]string{"ks": "Kſ", "\u212as": "Kſ"}},
		"the agent's":         {listed: []string{"b", "ANN's"}, want: "b ANN's", names: map[string]string{"Ann's": "ANN's"}},
		"own is not there":    {listed: []string{"b", "a"}, own: "c", want: `"c" is not among what the server and the settings offer: "b", "a"`, fails: true},
		"own is not chosen":   {r: &Runtime{Models: []string{"a"}}, listed: []string{"b", "a"}, own: "b", want: `offer: "a"`, fails: true},
		"own beyond the limit": {listed: many, own: "m99", want: "m99 " + strings.Join(many[:63], " "),
			skipped: 36, names: map[string]string{"m62": "m62", "m63": ""}},
		"chosen": {r: &Runtime{Models: []string{"c", "a", "x"}}, listed: []string{"a", "b", "c"}, want: "c a", skipped: 1},
		"none":   {r: &Runtime{Models: []string{"x"}}, listed: []string{"a"}, want: `it has: "a"`, fails: true},
		"renamed": {r: &Runtime{Rename: map[string]string{"small": "llama3.2:1b", "tiny": "llama3.2:1b"}}, listed: []string{"big", "llama3.2:1b"},
			want: "big small tiny", names: map[string]string{"SMALL": "llama3.2:1b", "tiny": "llama3.2:1b", "llama3.2:1b": ""}},
		"renamed and chosen": {r: &Runtime{Models: []string{"small", "b"}, Rename: map[string]string{"small": "a", "x": "b"}}, listed: []string{"a", "b"},
			want: "small x", names: map[string]string{"x": "b"}},
		"a name for another": {r: &Runtime{Rename: map[string]string{"A": "b"}}, listed: []string{"a", "b"}, want: "A", names: map[string]string{"a": "b"}},
		"renamed, not there": {r: &Runtime{Rename: map[string]string{"x": "y"}}, listed: []string{"a"}, want: "a", skipped: 1},
		"not fit": {listed: []string{peer, "a\x00", "a\u2028", " a", strings.Repeat("x", 129), "\xff", "ok", strings.Repeat("é", 128)},
			want: "ok " + strings.Repeat("é", 128), skipped: 6},
		"renamed, so fit": {r: &Runtime{Rename: map[string]string{"x": "a\tb"}}, listed: []string{"a\tb"}, want: "x", names: map[string]string{"x": "a\tb"}},
		"twice":           {listed: []string{"A", "a"}, want: "A", names: map[string]string{"a": "A"}, skipped: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if c.r == nil {
				c.r = new(Runtime)
			}
			v, err := c.r.newView(c.listed, worker.Agent{Name: "Ann's", PeerID: peer, Model: c.own})
			if c.fails {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want …%s…", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(v.offer.Models, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			for asked, want := range c.names {
				if got, ok := v.serverName(asked); got != want || ok != (want != "") {
					t.Errorf("%q is %q, %t, want %q", asked, got, ok, want)
				}
			}
			if len(v.skipped) != c.skipped || len(v.offer.Models) > worker.MaxModels {
				t.Errorf("skipped %q", v.skipped)
			}
		})
	}
}
