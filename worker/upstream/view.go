// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// view is what is known of the server. It does not change; there is a new one.
type view struct {
	up      bool
	offer   worker.Offer
	byName  map[string]string // the server's names of models by those that are offered, as they are and folded, and by the agent's
	first   string            // the server's name of the first
	skipped []string          // models that are not offered, and why
	listed  []string          // what the server lists, sorted
	unsure  []string          // routes of which the server did not tell
	probed  time.Time         // when it was asked for all routes
}

// serverName returns the server's name of the model that a request is for; false
// when there is none of that name, or not any more.
func (v *view) serverName(model string) (string, bool) {
	if name, ok := v.byName[model]; ok {
		return name, true
	}
	name, ok := v.byName[fold(model)]
	return name, ok
}

// equal reports whether both views offer the same.
func (v *view) equal(w *view) bool {
	return v.up == w.up && v.first == w.first && maps.Equal(v.byName, w.byName) &&
		slices.Equal(v.offer.Models, w.offer.Models) && slices.Equal(v.offer.Routes, w.offer.Routes)
}

// fold makes names comparable: clients may write them in any case. It returns the same for
// those that strings.EqualFold finds equal, as gateways do.
func fold(name string) string {
	return strings.Map(func(c rune) rune {
		least := c
		for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}

// fit reports whether a name can be offered.
func fit(name string) bool {
	return wire.CheckModel(name) == nil && utf8.ValidString(name) && strings.TrimSpace(name) == name &&
		!strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) })
}

// model is a model with its two names.
type model struct{ offered, server string }

// newView makes an offer of the names that the server lists. The agent's own model, if
// it has one, is the first, which is meant by the agent's name and peer id, too.
func (r *Runtime) newView(listed []string, agent worker.Agent) (*view, error) {
	v := &view{up: true, byName: make(map[string]string), listed: slices.Sorted(slices.Values(listed))}
	all := r.renamed(v, listed)
	if len(r.Models) > 0 {
		all = r.chosen(v, all)
	}
	if own := agent.Model; own != "" {
		i := slices.IndexFunc(all, func(m model) bool { return m.offered == own })
		if i < 0 {
			i = slices.IndexFunc(all, func(m model) bool { return fold(m.offered) == fold(own) })
		}
		if i < 0 {
			return nil, fmt.Errorf("model: %q is not among what the server and the settings offer: %s (models and rename say what is offered)", own, list(offered(all)))
		}
		m := all[i]
		all = slices.Insert(slices.Delete(all, i, i+1), 0, m)
	}
	for _, m := range all {
		switch _, taken := v.byName[fold(m.offered)]; {
		case taken:
			v.skip(m.offered, "another model has that name in another case")
		case len(v.offer.Models) == worker.MaxModels:
			v.skip(m.offered, "there are too many")
		default:
			v.offer.Models = append(v.offer.Models, m.offered)
			v.byName[fold(m.offered)], v.byName[m.offered] = m.server, m.server
		}
	}
	if len(v.offer.Models) == 0 {
		return nil, fmt.Errorf("the server has none of the models that are to be offered; it has: %s", list(listed))
	}
	v.first = v.byName[v.offer.Models[0]]
	for _, name := range []string{fold(agent.Name), agent.PeerID} {
		if _, taken := v.byName[name]; !taken && name != "" {
			v.byName[name] = v.first
		}
	}
	return v, nil
}

// skip notes that a model is not offered. There is no end to what a server lists.
func (v *view) skip(name, why string) {
	if len(v.skipped) < worker.MaxModels {
		v.skipped = append(v.skipped, fmt.Sprintf("%.200q: %s", name, why))
	}
}

// renamed gives the models that the server lists their offered names. A name that
// clients use for another model does not stand for the server's own.
func (r *Runtime) renamed(v *view, listed []string) []model {
	names := make(map[string][]string) // offered, by the server's
	taken := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(r.Rename)) {
		names[r.Rename[name]] = append(names[r.Rename[name]], name)
		taken[fold(name)] = true
	}
	var all []model
	for _, name := range listed {
		switch aliases := names[name]; {
		case len(aliases) > 0:
			for _, alias := range aliases {
				all = append(all, model{alias, name})
			}
		case taken[fold(name)]:
		case !fit(name):
			v.skip(name, "not a name that can be offered")
		default:
			all = append(all, model{name, name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !slices.Contains(listed, name) {
			v.skip(name, "renamed, but the server does not have it")
		}
	}
	return all
}

// chosen returns the models that are to be offered, in the order of the settings.
func (r *Runtime) chosen(v *view, all []model) []model {
	var some []model
	for _, name := range r.Models {
		found := false
		for _, m := range all {
			if (m.offered == name || m.server == name) && !slices.Contains(some, m) {
				some, found = append(some, m), true
			}
		}
		if !found {
			v.skip(name, "to be offered, but the server does not have it")
		}
	}
	return some
}

// offered returns the offered names.
func offered(models []model) []string {
	names := make([]string, 0, len(models))
	for _, m := range models {
		names = append(names, m.offered)
	}
	return names
}

// maxListed is how many names an error lists.
const maxListed = 20

// list writes names in a sentence.
func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	var quoted []string
	for _, name := range names[:min(len(names), maxListed)] {
		quoted = append(quoted, fmt.Sprintf("%.200q", name))
	}
	if len(names) > maxListed {
		quoted = append(quoted, fmt.Sprintf("and %d more", len(names)-maxListed))
	}
	return strings.Join(quoted, ", ")
}
