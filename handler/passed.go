// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"mime"
	"strconv"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// passedHeaders are the headers of a worker's answer that its client gets, beside
// those that begin with one of passedPrefixes. A worker is a stranger, and the
// client takes this site's word for the rest.
var (
	passedHeaders  = []string{"Content-Encoding", "Content-Disposition", "Content-Language", "X-Should-Retry"}
	passedPrefixes = []string{"X-Ratelimit-", "Openai-Model", "Openai-Version"}
)

// passHeaders takes the headers of a worker's answer.
func (x *exchange) passHeaders(resp *mesh.Response) {
	h := x.w.Header()
	h.Set("Content-Type", passedType(resp.Header.Get("Content-Type")))
	for name, values := range resp.Header {
		for _, prefix := range passedPrefixes {
			if strings.HasPrefix(name, prefix) && len(values) > 0 {
				h.Set(name, values[0])
			}
		}
	}
	for _, name := range passedHeaders {
		if v := resp.Header.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 32); err == nil {
		h.Set("Retry-After", strconv.FormatUint(min(s, maxRetryAfter), 10))
	}
}

// mediaTypeOf reads a content type. Those of almost every answer are themselves.
func mediaTypeOf(value string) (string, error) {
	if value == "application/json" || value == "text/event-stream" {
		return value, nil
	}
	mediaType, _, err := mime.ParseMediaType(value)
	return mediaType, err
}

// passedType returns the type of a worker's answer, or one that no browser shows
// as a page of this site.
func passedType(value string) string {
	mediaType, err := mediaTypeOf(value)
	kind, _, _ := strings.Cut(mediaType, "/")
	switch {
	case err != nil:
	case mediaType == "application/json", mediaType == "text/event-stream", mediaType == "text/plain", mediaType == "text/vtt",
		kind == "audio", kind == "video", kind == "image" && mediaType != "image/svg+xml":
		return value
	}
	return "application/octet-stream"
}
