// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/Agent-FM/caddy-agentfm/openai"
)

// Limits of what is read of an answer, in bytes. The first is a variable for tests.
var maxAnswer int64 = 64 << 20

const maxError = 64 << 10

// errorWait is how long what an error says may take to come. A variable for tests.
var errorWait = 10 * time.Second

// Limits of the time before a request is sent again.
const (
	maxBackoff    = 8 * time.Second
	maxRetryAfter = 60 * time.Second
)

// request is one call of the gateway.
type request struct {
	method, path string
	query        url.Values
	body         any // sent as JSON
	header       http.Header
	accept       string
	// again says that it may be sent more than once.
	again bool
	// work says that an agent works meanwhile, or much is sent: there is no limit to its time.
	work bool
}

// CallOption is an option of one call that starts work.
type CallOption func(*request)

// IdempotencyKey names a call, so that the gateway starts its work once however often it is
// sent; then it is sent again where that may help. Choose a new one for each call, such as
// a UUID, and the same for one that your program repeats. Use it only with a gateway that
// knows the header Idempotency-Key: another would start the work each time.
func IdempotencyKey(key string) CallOption {
	return func(r *request) {
		r.set("Idempotency-Key", key)
		r.again = key != ""
	}
}

// PinWorker lets the worker of this peer id serve the call, and no other.
func PinWorker(peerID string) CallOption {
	return func(r *request) { r.set("X-AgentFM-Worker", peerID) }
}

// ExcludeWorkers lets none of these workers serve the call.
func ExcludeWorkers(peerIDs ...string) CallOption {
	return func(r *request) {
		r.set("X-AgentFM-Exclude", strings.Join(peerIDs, ", "))
	}
}

// set sets a header, when the value is not empty.
func (r *request) set(name, value string) {
	if value == "" {
		return
	}
	if r.header == nil {
		r.header = http.Header{}
	}
	r.header.Set(name, value)
}

// with applies options.
func (r request) with(opts []CallOption) request {
	for _, opt := range opts {
		opt(&r)
	}
	return r
}

// doing says in errors what was being done.
func (r *request) doing() string { return r.method + " " + r.path }

// get asks for JSON and reads it into v.
func (c *Client) get(ctx context.Context, path string, query url.Values, v any) error {
	_, err := c.call(ctx, request{method: http.MethodGet, path: path, query: query, again: true}, v)
	return err
}

// call sends a request and reads the JSON of its answer into v, unless that is nil. It
// returns the headers of the answer.
func (c *Client) call(ctx context.Context, r request, v any) (header http.Header, err error) {
	err = c.retry(ctx, r, func(ctx context.Context, resp *http.Response) error {
		defer resp.Body.Close()
		header = resp.Header
		body, err := readAll(ctx, resp, maxAnswer, r.doing())
		if err != nil || v == nil {
			return err
		}
		return decode(body, v, r.doing())
	})
	return header, err
}

// decode reads JSON into v.
func decode(body []byte, v any, doing string) error {
	if trimmed := bytes.TrimSpace(body); bytes.HasPrefix(trimmed, []byte("<")) {
		return protocolError(nil, "%s: the answer is a page of a proxy or another server, and no JSON", doing)
	}
	if err := json.Unmarshal(body, v, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)); err != nil {
		return protocolError(err, "%s: the answer cannot be read", doing)
	}
	return nil
}

// readAll reads a whole answer of at most limit bytes.
func readAll(ctx context.Context, resp *http.Response, limit int64, doing string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, withID(transportError(ctx, err, doing), resp)
	}
	if int64(len(body)) > limit {
		return nil, withID(protocolError(nil, "%s: the answer is over %d bytes", doing, limit), resp)
	}
	return body, nil
}

// withID gives an error the request id of the answer that it is of.
func withID(e *Error, resp *http.Response) *Error {
	e.RequestID = cmp.Or(e.RequestID, resp.Header.Get("X-Request-Id"))
	return e
}

// open sends a request and returns its answer, of which the caller reads and closes the
// body. The answer's context is ctx.
func (c *Client) open(ctx context.Context, r request) (resp *http.Response, err error) {
	r.work = true
	err = c.retry(ctx, r, func(_ context.Context, got *http.Response) error {
		resp = got
		return nil
	})
	return resp, err
}

// retry sends a request, again where it may be, until read takes an answer, whose status
// is one of success. read closes the body.
func (c *Client) retry(ctx context.Context, r request, read func(context.Context, *http.Response) error) error {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body, jsontext.AllowInvalidUTF8(true)); err != nil {
			return invalid("", "%s: the request cannot be sent as JSON: %v", r.doing(), err)
		}
	}
	for n := 0; ; n++ {
		err := c.attempt(ctx, r, body, read)
		if err == nil {
			return nil
		}
		e := transportError(ctx, err, r.doing())
		if n >= c.retries || !r.again || !e.temporary() {
			return e
		}
		if !pause(ctx, c.wait(n, e.RetryAfter)) {
			return transportError(ctx, ctx.Err(), r.doing())
		}
	}
}

// temporary reports whether the same request may have another answer soon.
func (e *Error) temporary() bool {
	if e.final {
		return false
	}
	if e.Code == CodeIdempotencyKeyInUse { // the answer is on its way to an earlier one
		return true
	}
	switch e.Status {
	case 0, http.StatusOK:
		return e.Kind == ErrConnection
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// broken reports whether a connection broke that may hold the next time.
func (e *Error) broken() bool { return e.Kind == ErrConnection && !e.final }

// wait is how long to wait before the n-th retry, from 0, when the gateway asks for
// retryAfter.
func (c *config) wait(n int, retryAfter time.Duration) time.Duration {
	d := min(c.backoff<<min(n, 10), maxBackoff)
	d = d/2 + rand.N(d/2+1) // so that not all clients come back at once
	return max(d, min(retryAfter, maxRetryAfter))
}

// pause waits. It reports false when the context ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt sends a request once.
func (c *Client) attempt(ctx context.Context, r request, body []byte, read func(context.Context, *http.Response) error) error {
	if !r.work && c.timeout > 0 {
		limit := &Error{Kind: ErrConnection, Message: r.doing() + ": no answer within " + c.timeout.String()}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, limit)
		defer cancel()
	}
	req, err := c.newRequest(ctx, r, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return transportError(ctx, err, r.doing())
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return answerError(resp)
	}
	if id := resp.Header.Get(headerTask); id != "" && !validTaskID(id) {
		resp.Body.Close()
		return withID(protocolError(nil, "%s: what the answer calls the task is not the id of one: %q", r.doing(), openai.Clip(id, maxText)), resp)
	}
	return read(ctx, resp)
}

// newRequest returns a request as it is sent.
func (c *Client) newRequest(ctx context.Context, r request, body []byte) (*http.Request, error) {
	target := c.baseURL + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(body))
	if err != nil {
		return nil, invalid("", "%s: %v", r.doing(), err)
	}
	maps.Copy(req.Header, r.header)
	req.Header.Set("User-Agent", c.userAgent)
	req.Header.Set("Accept", cmp.Or(r.accept, "application/json"))
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Body = http.NoBody
	}
	return req, nil
}

// answerError makes an error of an answer that is not one of success.
func answerError(resp *http.Response) *Error {
	late := time.AfterFunc(errorWait, func() { resp.Body.Close() })
	defer late.Stop()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // as much as there is, for the message
	e := errorOf(body)
	if e == nil {
		e = &Error{Message: openai.Clip(string(bytes.TrimSpace(body)), maxText)}
	}
	e.Status = resp.StatusCode
	e.Kind = kindOf(e.Status, e.Code)
	e.RetryAfter = retryAfter(resp.Header)
	e.final = resp.Header.Get("X-Should-Retry") == "false"
	switch {
	case e.Code != "":
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		e.Message = "the answer is a redirect, which is not followed, to " + openai.Clip(resp.Header.Get("Location"), maxText) +
			"; is the base URL that of the gateway?"
	case isHTML(resp):
		e.Message = "the answer is a page of a proxy or another server, " + resp.Status
		if e.Kind == ErrNotFound {
			e.Kind = ErrProtocol
		}
	case e.Message == "":
		e.Message = "the gateway answered " + resp.Status
	}
	return withID(e, resp)
}

// isHTML reports whether an answer is a page, which no gateway answers a call with.
func isHTML(resp *http.Response) bool {
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return mediaType == "text/html" || mediaType == "application/xhtml+xml"
}

// errorOf reads the error of a gateway, from an answer or an event; nil when it is none.
func errorOf(body []byte) *Error {
	var envelope struct {
		Error *struct {
			Message string         `json:"message"`
			Code    jsontext.Value `json:"code"` // a model server's may be a number
			Param   jsontext.Value `json:"param"`
			Cause   string         `json:"cause"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &envelope, jsontext.AllowInvalidUTF8(true)) != nil || envelope.Error == nil {
		return nil
	}
	got := envelope.Error
	e := &Error{
		Message: openai.Clip(got.Message, maxText), Code: Code(text(got.Code)),
		Param: text(got.Param), Cause: openai.Clip(got.Cause, maxText),
	}
	if e.Message == "" {
		e.Message = "the gateway does not say what is wrong"
	}
	e.Kind = kindOf(0, e.Code)
	return e
}

// text returns a string of JSON; a number as it stands, and nothing of all else.
func text(v jsontext.Value) string {
	switch v.Kind() {
	case '"':
		var s string
		_ = json.Unmarshal(v, &s, jsontext.AllowInvalidUTF8(true)) // it is one
		return openai.Clip(s, maxText)
	case '0':
		return openai.Clip(string(v), maxText)
	}
	return ""
}

// retryAfter reads the header of that name.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// Served says who served a call.
type Served struct {
	WorkerID string // the peer id
	Agent    string // its name
	TaskID   string
	// Attempts is how many workers were tried.
	Attempts int
	// RequestID is that of the answer: the gateway's log has it.
	RequestID string
}

// headerTask has the id of the task of an answer.
const headerTask = "X-AgentFM-Task"

// servedBy reads who served from the headers of an answer.
func servedBy(h http.Header) Served {
	attempts, _ := strconv.Atoi(h.Get("X-AgentFM-Attempts")) // none of AgentFM's own gateway
	agent := h.Get("X-AgentFM-Agent")
	if plain, err := url.PathUnescape(agent); err == nil { // what is not ASCII is escaped
		agent = plain
	}
	return Served{
		WorkerID: h.Get("X-AgentFM-Peer"), Agent: agent, TaskID: h.Get(headerTask),
		Attempts: attempts, RequestID: h.Get("X-Request-Id"),
	}
}
