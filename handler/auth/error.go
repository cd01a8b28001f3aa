// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"net/http"
	"strconv"
)

// realm is the protection space that challenges name.
const realm = `Bearer realm="agentfm"`

// Error says why a request is refused, and how to answer it.
type Error struct {
	// Status is the status of the answer: 401, 403 or 429.
	Status int
	// Code is the code of the error in the API's envelope.
	Code string
	// Message is for the client. It tells nothing about keys.
	Message string
	// Challenge is the header WWW-Authenticate; empty for none.
	Challenge string
	// RetryAfter is in seconds; 0 for none.
	RetryAfter int
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// setHeaders sets the headers of the answer that belong to the error.
func (e *Error) setHeaders(h http.Header) {
	if e.Challenge != "" {
		h.Set("WWW-Authenticate", e.Challenge)
	}
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
}

// ErrScope refuses what the scope of a key does not cover.
var ErrScope = &Error{Status: http.StatusForbidden, Code: "insufficient_scope",
	Message: "this API key may not do this", Challenge: realm + `, error="insufficient_scope"`}

// Errors of [Checker.Check]. One does not tell an unknown key from an expired one.
var (
	errMissing = &Error{Status: http.StatusUnauthorized, Code: "unauthorized",
		Message: "want one header Authorization: Bearer KEY", Challenge: realm}
	errMalformed = &Error{Status: http.StatusUnauthorized, Code: "unauthorized",
		Message: "want one header Authorization: Bearer KEY", Challenge: realm}
	errInvalid = &Error{Status: http.StatusUnauthorized, Code: "invalid_api_key",
		Message: "the API key is not valid", Challenge: realm + `, error="invalid_token"`}
	errRateLimited = &Error{Status: http.StatusTooManyRequests, Code: "rate_limited",
		Message: "too many failed logins from this address; try again in a minute", RetryAfter: int(window.Seconds())}
)
