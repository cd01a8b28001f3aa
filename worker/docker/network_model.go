// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker/upstream"
)

// errModelKey says that a model server does not take the worker's key.
var errModelKey = errors.New("the model server does not take the key")

// modelHandler passes requests on to a model server.
type modelHandler struct {
	base      *url.URL
	key       string
	proxy     *httputil.ReverseProxy
	transport *http.Transport
	log       func() *zap.Logger
	lines     fewLines // in the log
}

func newModelHandler(base *url.URL, key string, logger func() *zap.Logger) *modelHandler {
	h := &modelHandler{base: base, key: key, log: logger}
	h.transport = linkTransport((&net.Dialer{Timeout: dialTimeout}).DialContext)
	h.proxy = &httputil.ReverseProxy{
		Rewrite:        h.rewrite,
		Transport:      h.transport,
		FlushInterval:  -1,
		ModifyResponse: h.check,
		ErrorHandler:   h.fail,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	return h
}

// ServeHTTP implements http.Handler.
func (h *modelHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, ok := upstream.Below(h.base, r.URL)
	// A server, or a proxy before it, answers TRACE with the header of the request: the key.
	if !ok || r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		http.Error(w, "this agent can reach its model server below /v1, and nothing else", http.StatusForbidden)
		return
	}
	r.Header.Del("Upgrade") // another protocol could go to other paths
	h.proxy.ServeHTTP(w, r)
}

func (h *modelHandler) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL, _ = upstream.Below(h.base, r.In.URL)
	r.Out.Host = "" // that of the URL
	if h.key != "" {
		r.Out.Header["Authorization"] = []string{h.key}
	}
}

// check keeps answers back that may quote the key.
func (h *modelHandler) check(resp *http.Response) error {
	if h.key != "" && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusProxyAuthRequired) {
		return errModelKey
	}
	return nil
}

func (h *modelHandler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		h.lines.write(h.log(), zap.WarnLevel, "the agent's model server does not answer", zap.String("url", h.base.Redacted()), zap.Error(err))
	}
	http.Error(w, "the model server does not answer", http.StatusBadGateway)
}

// Close implements io.Closer.
func (h *modelHandler) Close() error {
	h.transport.CloseIdleConnections()
	return nil
}
