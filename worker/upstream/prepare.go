// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Limits of questions to the server.
const (
	askTimeout = 10 * time.Second
	maxAnswer  = 1 << 20
)

// probeInterval is how often the server is asked for all its routes: another one may have
// come in its place since, and nothing else may show that.
const probeInterval = 5 * time.Minute

// errSlow says that a question took too long.
var errSlow = errors.New("no answer in time")

// Prepare asks the server what it has, and has it looked after until ctx ends.
func (r *Runtime) Prepare(ctx context.Context, agent worker.Agent) (worker.Image, error) {
	if err := r.key.check(); err != nil {
		return worker.Image{}, err
	}
	v, err := r.look(ctx, agent, nil, true)
	if err != nil {
		return worker.Image{}, err
	}
	// Until there is a view, nobody else uses the loggers.
	r.logger = r.logger.With(zap.String("agent", agent.Key))
	r.key.logger = r.logger
	r.view.Store(v)
	r.tell(v, nil)
	agent.Go(func() { r.watch(agent.Context, agent) })
	return worker.Image{}, nil
}

// look asks the server what it has. before is the last view of it, if there is one; all
// its routes are asked for anew when it may be another server than it was.
func (r *Runtime) look(ctx context.Context, agent worker.Agent, before *view, anew bool) (*view, error) {
	listed, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	v, err := r.newView(listed, agent)
	if err != nil {
		return nil, err
	}
	if len(r.Routes) > 0 {
		v.offer.Routes = r.Routes
		return v, nil
	}
	if !anew && before.up && slices.Equal(before.listed, v.listed) && time.Since(before.probed) < r.probeInterval {
		v.probed = before.probed
	}
	if err := r.probeAll(ctx, v, before); err != nil {
		return nil, err
	}
	return v, nil
}

// tell logs what is offered, and what of the server's is not.
func (r *Runtime) tell(v, before *view) {
	r.logger.Info("the server answers",
		zap.Strings("models", v.offer.Models), zap.Strings("routes", v.offer.Routes))
	if len(v.skipped) > 0 && (before == nil || strings.Join(before.skipped, "\n") != strings.Join(v.skipped, "\n")) {
		r.logger.Warn("models are not offered", zap.Strings("models", v.skipped))
	}
}

// list returns the names of the server's models, each once.
func (r *Runtime) list(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.askTimeout, errSlow)
	defer cancel()
	req := r.request(ctx, http.MethodGet, "/models")
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("asking for models at %s: %w", req.URL, r.reason(ctx, err))
	}
	defer resp.Body.Close()
	if err := r.statusError(resp.StatusCode); err != nil {
		return nil, fmt.Errorf("asking for models at %s: %w", req.URL, err)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("asking for models at %s: %w", req.URL, r.reason(ctx, err))
	case len(b) > maxAnswer:
		return nil, fmt.Errorf("asking for models at %s: the answer is over %d bytes", req.URL, maxAnswer)
	}
	names, err := parseModels(b)
	if err != nil {
		return nil, fmt.Errorf("asking for models at %s: %w", req.URL, err)
	}
	return names, nil
}

// reason says why the server was not reached.
func (r *Runtime) reason(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ECONNREFUSED) && r.BaseURL != "":
		return fmt.Errorf("%w (is it running? see base_url)", err)
	}
	return err
}

// statusError says what is wrong with a status that is not 200.
func (r *Runtime) statusError(status int) error {
	switch {
	case status == http.StatusOK:
		return nil
	case (status == http.StatusUnauthorized || status == http.StatusForbidden) && r.APIKey == "" && r.APIKeyFile == "":
		return fmt.Errorf("status %d: the server wants a key%s", status, r.advice("; set api_key or api_key_file"))
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fmt.Errorf("status %d: the server does not take the key of api_key or api_key_file", status)
	case redirects(status):
		return fmt.Errorf("status %d: a redirect, which is not followed%s", status, r.advice("; set base_url to where it leads"))
	case status == http.StatusNotFound:
		return fmt.Errorf("status %d: OpenAI's API is not there%s", status, r.advice("; base_url ends in /v1 for most servers"))
	}
	return fmt.Errorf("status %d", status)
}

// advice returns what to do about an error, if the settings are this module's own.
func (r *Runtime) advice(text string) string {
	if r.BaseURL == "" {
		return ""
	}
	return text
}

// redirects reports whether a status sends the client elsewhere.
func redirects(status int) bool {
	return status >= 300 && status < 400 && status != http.StatusNotModified
}

// parseModels reads a list of models. What has no name is left out.
func parseModels(b []byte) ([]string, error) {
	var answer struct {
		Data []json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, errors.New("the answer is not JSON with a list of models; is OpenAI's API there?")
	}
	var names []string
	seen := make(map[string]bool)
	for _, raw := range answer.Data {
		var m struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(raw, &m) != nil || m.ID == "" || seen[m.ID] {
			continue
		}
		seen[m.ID] = true
		names = append(names, m.ID)
	}
	if len(names) == 0 {
		return nil, errors.New("the server has no models")
	}
	return names, nil
}
