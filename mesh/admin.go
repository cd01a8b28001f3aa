// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func init() {
	caddy.RegisterModule(&adminAPI{})
}

// adminPrefix is where the routes are.
const adminPrefix = "/agentfm/"

// maxAdminBody bounds the body of a request, in bytes.
const maxAdminBody = 4 << 10

// adminAPI serves the node's state to its operator, under Caddy's admin API:
//
//	GET  /agentfm/about    the node
//	GET  /agentfm/workers  the workers that are known, also those that are offline
//	GET  /agentfm/peers    the peers that are connected
//	POST /agentfm/ping     {"peer": "<peer id or multiaddress>"}
//	POST /agentfm/recover  {"force": false}: begins the one epoch of the node's log of ratings
//
// Caddy's rules for the admin API say who may ask.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.agentfm",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (a *adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminPrefix, Handler: caddy.AdminHandlerFunc(a.serve)}}
}

// adminRoutes are the routes by path.
var adminRoutes = map[string]struct {
	method string
	serve  func(*Lease, *http.Request) (any, error)
}{
	"about":   {http.MethodGet, adminAbout},
	"workers": {http.MethodGet, adminWorkers},
	"peers":   {http.MethodGet, adminPeers},
	"ping":    {http.MethodPost, adminPing},
	"recover": {http.MethodPost, adminRecover},
}

// serve serves one request.
func (a *adminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	route, ok := adminRoutes[strings.TrimPrefix(r.URL.Path, adminPrefix)]
	if !ok {
		return apiError(http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	}
	if r.Method != route.method {
		w.Header().Set("Allow", route.method)
		return apiError(http.StatusMethodNotAllowed, "method %s is not allowed; want %s", r.Method, route.method)
	}
	l, err := adminLease()
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: err}
	}
	defer l.Release()
	answer, err := route.serve(l, r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(answer)
}

// adminLease returns a lease of the app that runs now. The admin API outlives
// configurations, and the failed ones among them: which app it serves is found
// anew for each request.
func adminLease() (*Lease, error) {
	mod, err := caddy.ActiveContext().AppIfConfigured("agentfm")
	if err != nil {
		return nil, fmt.Errorf("%w: the configuration does not use it", ErrNotRunning)
	}
	return mod.(*App).Lease()
}

// apiError is an error with its status.
func apiError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// adminAbout serves GET /agentfm/about.
func adminAbout(l *Lease, _ *http.Request) (any, error) {
	about, host := l.About(), l.node.host
	online := l.Online()
	return struct {
		Peer      string   `json:"peer_id"`
		Version   string   `json:"version"`
		Caddy     string   `json:"caddy_version"`
		Uptime    int64    `json:"uptime_seconds"`
		Private   bool     `json:"private_swarm"`
		Listen    []string `json:"listen"`
		Announced []string `json:"announced"`
		Relay     string   `json:"relay_peer_id"`
		RelayAddr string   `json:"relay_multiaddr"`
		Online    int      `json:"workers_online"`
		Offline   int      `json:"workers_offline"`
		Peers     int      `json:"peers"`
	}{
		Peer: about.Peer, Version: about.Version, Caddy: caddyVersion(), Uptime: int64(about.Uptime / time.Second),
		Private: l.node.settings.SwarmKey != nil,
		Listen:  texts(host.Bound()), Announced: texts(host.Addrs()),
		Relay: about.Relay, RelayAddr: about.RelayAddr,
		Online: online, Offline: len(l.Workers(true)) - online, Peers: len(host.Network().Peers()),
	}, nil
}

// caddyVersion returns Caddy's version in short.
func caddyVersion() string {
	short, _ := caddy.Version()
	return short
}

// texts returns addresses as texts.
func texts(addrs []ma.Multiaddr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// adminWorkers serves GET /agentfm/workers: what the workers say of themselves,
// and what this node knows of them.
func adminWorkers(l *Lease, _ *http.Request) (any, error) {
	type entry struct {
		wire.Telemetry
		Online    bool      `json:"online"`
		FirstSeen time.Time `json:"first_seen"`
		LastSeen  time.Time `json:"last_seen"`
		Allowed   bool      `json:"dispatch_allowed"`
		Probation bool      `json:"on_probation"`
	}
	out := []entry{}
	for _, w := range l.Workers(true) {
		trust := l.node.directory.trusted(w.PeerID)
		out = append(out, entry{w.Telemetry, w.Online, w.FirstSeen.UTC(), w.LastSeen.UTC(), trust != Barred, trust == OnProbation})
	}
	return out, nil
}

// adminPeers serves GET /agentfm/peers.
func adminPeers(l *Lease, _ *http.Request) (any, error) { return l.Peers(), nil }

// pingAnswer is the answer of POST /agentfm/ping.
type pingAnswer struct {
	OK    bool    `json:"ok"`
	RTTMS float64 `json:"rtt_ms,omitzero"`
	Error string  `json:"error,omitzero"`
}

// adminBody reads the body of a request. It wants JSON by name: that a web page
// cannot send without asking.
func adminBody(r *http.Request, into any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return apiError(http.StatusUnsupportedMediaType, "the Content-Type is not application/json")
	}
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxAdminBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return apiError(http.StatusRequestEntityTooLarge, "the body is over %d bytes", maxAdminBody)
		}
		return apiError(http.StatusBadRequest, "reading the body: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return apiError(http.StatusBadRequest, "the body has more than one object")
	}
	return nil
}

// adminPing serves POST /agentfm/ping.
func adminPing(l *Lease, r *http.Request) (any, error) {
	var req struct {
		Peer string `json:"peer"`
	}
	if err := adminBody(r, &req); err != nil {
		return nil, err
	}
	rtt, err := l.Ping(r.Context(), req.Peer)
	switch {
	case errors.Is(err, ErrBadPeer):
		return nil, apiError(http.StatusBadRequest, "peer: %w", err)
	case err != nil:
		return pingAnswer{Error: err.Error()}, nil
	}
	return pingAnswer{OK: true, RTTMS: milliseconds(rtt)}, nil
}

// recoverer is the ledger, as its operator sees it who recovers from a log that was continued twice.
type recoverer interface {
	Recover(ctx context.Context, force bool) (entries uint64, err error)
}

// adminRecover serves POST /agentfm/recover.
func adminRecover(l *Lease, r *http.Request) (any, error) {
	var req struct {
		Force bool `json:"force"`
	}
	if err := adminBody(r, &req); err != nil {
		return nil, err
	}
	l.node.attaching.Lock()
	ledger, ok := l.node.attached["ledger"].(recoverer)
	l.node.attaching.Unlock()
	if !ok {
		return nil, apiError(http.StatusNotFound, "this node keeps no ledger")
	}
	entries, err := ledger.Recover(r.Context(), req.Force)
	if err != nil {
		return nil, caddy.APIError{HTTPStatus: http.StatusConflict, Err: err}
	}
	return struct {
		Entries uint64 `json:"entries"`
	}{entries}, nil
}

// Interface guard
var _ caddy.AdminRouter = (*adminAPI)(nil)
