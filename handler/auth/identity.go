// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Identity is who sends a request, and what they may do. The nil identity may do
// nothing.
type Identity struct {
	// ID names the client: the name of its key, else `key-` and the first 8 hex
	// digits of the key's SHA-256; or the user that Caddy authenticated. Empty for
	// anonymous clients.
	ID string

	models    map[string]bool // lower case; nil for all
	read, run bool
}

// Unrestricted returns an identity that may do everything.
func Unrestricted(id string) *Identity { return &Identity{ID: id, read: true, run: true} }

// Restricted reports whether there are workers that the client may not use.
func (i *Identity) Restricted() bool { return i == nil || i.models != nil }

// MayUse reports whether the client may see and use what goes by any of these
// names: of a worker its peer id, its agent's name and its model engine. Case
// does not matter, nor does space around a name.
func (i *Identity) MayUse(names ...string) bool {
	if i == nil {
		return false
	}
	if i.models == nil {
		return true
	}
	for _, name := range names {
		if i.has(name) {
			return true
		}
	}
	return false
}

// has reports whether a name is among the models. It is asked of each of many
// workers, under a lock, and so makes no copy of an ordinary name.
func (i *Identity) has(name string) bool {
	name = strings.TrimSpace(name)
	var buf [64]byte
	lower := buf[:0]
	for _, c := range []byte(name) {
		if c >= utf8.RuneSelf || len(lower) == len(buf) {
			return i.models[foldModel(name)]
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower = append(lower, c)
	}
	return i.models[string(lower)]
}

// MayRead reports whether the client may list models and workers, and fetch what
// tasks left.
func (i *Identity) MayRead() bool { return i != nil && i.read }

// MayRun reports whether the client may run tasks.
func (i *Identity) MayRun() bool { return i != nil && i.run }

// Models returns what a [Restricted] client may use, sorted; see [Identity.MayUse].
func (i *Identity) Models() []string {
	if i == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(i.models))
}

// Limited returns an identity that may use these models alone, as [Identity.Models]
// returned them.
func Limited(models []string) *Identity {
	i := &Identity{models: make(map[string]bool, len(models))}
	for _, m := range models {
		i.models[m] = true
	}
	return i
}

// metadata returns the rights as Caddy's placeholders `{http.auth.user.scope}`
// and `{http.auth.user.models}`, which is empty for all models.
func (i *Identity) metadata() map[string]string {
	scopes := make([]string, 0, 2)
	if i.read {
		scopes = append(scopes, scopeRead)
	}
	if i.run {
		scopes = append(scopes, scopeRun)
	}
	return map[string]string{
		"scope":  strings.Join(scopes, ","),
		"models": strings.Join(slices.Sorted(maps.Keys(i.models)), ","),
	}
}

// foldModel returns a name of a model as it is compared.
func foldModel(name string) string { return strings.ToLower(strings.TrimSpace(name)) }

// identityVar is the request variable with the *Identity that the provider
// established. Configurations and clients cannot make a value of that type.
const identityVar = "agentfm.identity"

// refusalVar is the request variable with the *Error for which the provider
// refused the client.
const refusalVar = "agentfm.refusal"

// Refusal returns why the provider refused the client of a request, which Caddy
// keeps to itself; nil when it did not.
func Refusal(r *http.Request) *Error {
	err, _ := caddyhttp.GetVar(r.Context(), refusalVar).(*Error)
	return err
}

// Established returns the identity of a user that Caddy authenticated, as in
// `{http.auth.user.id}`. A user of the provider "agentfm" has the rights of its
// key; any other has all rights.
func Established(r *http.Request, user string) *Identity {
	if id, ok := caddyhttp.GetVar(r.Context(), identityVar).(*Identity); ok && id.ID == user {
		return id
	}
	return Unrestricted(user)
}
