// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// apiPrefix is what the paths of OpenAI's API begin with.
const apiPrefix = "/v1"

// Limits of the questions for routes.
const (
	probeTimeout    = 5 * time.Second  // of one
	probeAllTimeout = 30 * time.Second // of all
	maxProbed       = 16 << 10
)

// presence is whether the server has a route.
type presence int

const (
	absent presence = iota
	present
	unsure // it is busy, or still loading, or something is broken
)

// probeAll asks the server for each of [wire.Routes], one after the other: a request
// without content is an error there, and starts no work. When it was asked for them
// lately, it asks only for those of which it did not tell; what it does not tell of
// stays as it was.
func (r *Runtime) probeAll(ctx context.Context, v, before *view) error {
	ctx, cancel := context.WithTimeout(ctx, probeAllTimeout)
	defer cancel()
	all := v.probed.IsZero()
	if all {
		v.probed = time.Now()
	}
	for _, route := range wire.Routes {
		has := before != nil && before.up && slices.Contains(before.offer.Routes, route)
		if all || slices.Contains(before.unsure, route) {
			switch r.probe(ctx, route) {
			case present:
				has = true
			case absent:
				has = false
			case unsure:
				v.unsure = append(v.unsure, route)
			}
		}
		if has {
			v.offer.Routes = append(v.offer.Routes, route)
		}
	}
	switch {
	case len(v.offer.Routes) > 0:
		return nil
	case len(v.unsure) > 0:
		return errors.New("the server does not tell yet which routes it has: it is busy, or still loading a model; set routes if it stays so")
	}
	return fmt.Errorf("the server has no route of OpenAI's API below %s; set routes if it does", r.base)
}

// probe asks whether the server has a route.
func (r *Runtime) probe(ctx context.Context, route string) presence {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req := r.request(ctx, http.MethodPost, strings.TrimPrefix(route, apiPrefix))
	req.Header["Content-Type"] = []string{"application/json"}
	setBody(req, []byte("{}"))
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return unsure
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxProbed)) // what there is of it
	return judge(resp.StatusCode, b)
}

// judge tells from an answer to a request without content whether there is a route.
func judge(status int, body []byte) presence {
	text := strings.ToLower(errorText(body))
	switch status {
	case http.StatusNotFound: // of the route, or of the model that was not named
		if !strings.Contains(text, "model") {
			return absent
		}
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return absent
	case http.StatusUnauthorized, http.StatusForbidden: // not with this key
		return absent
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return unsure
	case http.StatusInternalServerError: // some say in OpenAI's form that they miss something
		if text == "" {
			return unsure
		}
	}
	switch {
	case redirects(status):
		return absent
	case status < 300 && text != "": // LM Studio: 200, "Unexpected endpoint"
		return absent
	case strings.Contains(text, "does not support"): // vLLM: not with this model
		return absent
	}
	return present
}

// errorText returns what a JSON answer says of an error; empty when it is not one.
func errorText(b []byte) string {
	var answer struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
	}
	if json.Unmarshal(b, &answer) != nil {
		return ""
	}
	if null := bytes.Equal(answer.Error, []byte("null")); len(answer.Error) > 0 && !null {
		return string(answer.Error)
	}
	return answer.Message
}

// setBody gives a request its body. It can be sent again, on a new connection, when
// the server closed the one it was sent on at that moment, as it does with those
// that were idle.
func setBody(req *http.Request, body []byte) {
	req.Body = http.NoBody
	if len(body) > 0 {
		req.ContentLength = int64(len(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		req.Body, _ = req.GetBody()
	}
	if _, ok := req.Header["Idempotency-Key"]; !ok {
		req.Header["Idempotency-Key"] = nil // for the transport alone: not sent
	}
}
