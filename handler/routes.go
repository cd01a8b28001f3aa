// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net/http"
	"path"
	"strings"
)

// route is what serves a path. A route with get also answers HEAD.
type route struct {
	get, post, del func(*exchange) error
	open           bool // needs no key
	page           bool // a person looks at it, in a browser
	work           bool // post starts work; see [exchange.once]
}

// exact holds the routes of one path each.
var exact = map[string]route{
	"/health":              {get: (*exchange).health, open: true},
	"/api/workers":         {get: (*exchange).workers},
	"/api/execute":         {post: (*exchange).execute, work: true},
	submitPath:             {post: (*exchange).submit, work: true},
	"/api/tasks":           {get: (*exchange).listTasks},
	"/api/relay/test":      {post: (*exchange).testRelay},
	"/v1/about":            {get: (*exchange).about},
	"/v1/events":           {get: (*exchange).events},
	"/v1/models":           {get: (*exchange).models},
	"/v1/chat/completions": {post: (*exchange).chat, work: true},
	"/v1/completions":      {post: (*exchange).completions, work: true},
	"/v1/responses":        {post: (*exchange).responses, work: true},

	"/v1/embeddings":           {post: (*exchange).modelRoute, work: true},
	"/v1/audio/speech":         {post: (*exchange).modelRoute, work: true},
	"/v1/audio/transcriptions": {post: (*exchange).modelRoute, work: true},
	"/v1/audio/translations":   {post: (*exchange).modelRoute, work: true},
	"/v1/images/generations":   {post: (*exchange).modelRoute, work: true},
	"/v1/images/edits":         {post: (*exchange).modelRoute, work: true},
	"/v1/images/variations":    {post: (*exchange).modelRoute, work: true},
	"/v1/moderations":          {post: (*exchange).modelRoute, work: true},
	"/v1/rerank":               {post: (*exchange).modelRoute, work: true},
}

// find returns the route of a path, and the parameter in it.
func find(p string) (rt route, param string, ok bool) {
	if rt, ok := exact[p]; ok {
		return rt, "", true
	}
	if id, ok := strings.CutPrefix(p, "/v1/models/"); ok && id != "" {
		return route{get: (*exchange).model}, id, true
	}
	if rest, ok := strings.CutPrefix(p, "/v1/peers/"); ok {
		rt, ok := findPeers(rest)
		return rt, rest, ok
	}
	if id, ok := strings.CutPrefix(p, pagePath); ok && id != "" && !strings.Contains(id, "/") {
		return route{get: (*exchange).peerPage, page: true}, id, true
	}
	if rest, ok := strings.CutPrefix(p, "/v1/responses/"); ok {
		id, what, below := strings.Cut(rest, "/")
		switch {
		case id == "":
		case !below:
			return route{get: (*exchange).response, del: (*exchange).response}, id, true
		case what == "input_items":
			return route{get: (*exchange).response}, id, true
		case what == "cancel":
			return route{post: (*exchange).response}, id, true
		}
	}
	if rest, ok := strings.CutPrefix(p, "/api/tasks/"); ok {
		id, what, below := strings.Cut(rest, "/")
		switch {
		case id == "":
		case !below:
			return route{get: (*exchange).getTask, del: (*exchange).cancelTask}, id, true
		case what == "events":
			return route{get: (*exchange).taskEvents}, id, true
		case what == "output":
			return route{get: (*exchange).taskOutput}, id, true
		case what == "webhook":
			return route{post: (*exchange).redeliver}, id, true
		case what == "artifacts":
			return route{get: (*exchange).artifacts}, id, true
		}
	}
	return route{}, "", false
}

// ours reports whether we answer for a path. So we do for other spellings of
// ours, which lead nowhere: a request that means to reach us does not end at
// another handler.
func ours(p string) bool {
	return p == "/health" || below(p) || below(path.Clean("/"+p))
}

// below reports whether p is one of our prefixes, or under one.
func below(p string) bool {
	return p == "/api" || p == "/v1" || strings.HasPrefix(p, "/api/") || strings.HasPrefix(p, "/v1/") || isPage(p)
}

// allow lists the methods of the route.
func (rt route) allow() string {
	switch {
	case rt.post != nil:
		return "POST, OPTIONS"
	case rt.del != nil:
		return "GET, HEAD, DELETE, OPTIONS"
	}
	return "GET, HEAD, OPTIONS"
}

// serve answers the request, or returns an error when nothing was written yet.
// What is checked first decides what a stranger learns.
func (x *exchange) serve() error {
	rt, param, ok := find(x.r.URL.Path)
	preflight := ok && x.r.Method == http.MethodOptions
	x.shareAnswer()
	x.usePassword(rt.page)
	if !rt.open {
		if err := x.admit(preflight); err != nil {
			return err
		}
	}
	if !ok {
		return errNotFound
	}
	x.param = param
	switch {
	case preflight:
		return x.preflight(rt)
	case rt.work && x.r.Method == http.MethodPost:
		return x.once(rt.post)
	case rt.post != nil && x.r.Method == http.MethodPost:
		return rt.post(x)
	case rt.get != nil && (x.r.Method == http.MethodGet || x.r.Method == http.MethodHead):
		return rt.get(x)
	case rt.del != nil && x.r.Method == http.MethodDelete:
		return rt.del(x)
	}
	x.w.Header().Set("Allow", rt.allow())
	return errMethod
}
