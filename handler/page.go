// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"regexp"
	"strings"
	"unicode"

	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
)

// pagePath is where the pages are that a person looks at.
const pagePath = "/ui/peer/"

// isPage reports whether the answer to a request of this path is a page.
func isPage(path string) bool { return strings.HasPrefix(path, pagePath) }

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
)

// pageTemplate makes a page of a [peerPage]. What strangers have named and written is
// escaped by the template, where it stands.
var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"clean": clean, "score": scoreText, "standing": standingText,
}).Parse(pageHTML))

// pagePolicy lets a browser do nothing with a page but show it, in its own style.
var pagePolicy = func() string {
	sum := sha256.Sum256([]byte(pageCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// Bounds of a page.
const (
	pageLines = 50
	pageText  = 2000 // characters of one text
)

// peerPage is what a page shows: a peer, or a problem.
type peerPage struct {
	Title   string
	Style   template.CSS
	Problem string

	Peer   peerAnswer
	Ledger bool
	Lines  []pageLine

	Offset                   int
	Newer, Older             bool
	NewerOffset, OlderOffset int
}

// pageLine is an entry of a peer's log, and the text of a comment.
type pageLine struct {
	logLine
	Text, Lang string
}

// peerPage serves GET /ui/peer/{id}.
func (x *exchange) peerPage() error {
	offset, err := x.number("offset", 0, 0, maxOffset)
	if err != nil {
		return err
	}
	s, err := x.subject()
	if err != nil {
		return err
	}
	p := peerPage{Title: "Reputation of " + s.id.String(), Offset: offset}
	if p.Peer, err = x.describe(s); err != nil {
		return err
	}
	if l, err := x.h.ledger.Ledger(); err == nil {
		p.Ledger = true
		if err := p.fill(x, l, s); err != nil {
			return ledgerProblem(err)
		}
	}
	return x.answerPage(http.StatusOK, p)
}

// fill reads what is said of the peer.
func (p *peerPage) fill(x *exchange, l *ledger.Ledger, s *subject) error {
	lines, err := l.Store().About(x.r.Context(), s.id, pageLines+1, p.Offset)
	if err != nil {
		return err
	}
	p.Newer, p.NewerOffset = p.Offset > 0, max(p.Offset-pageLines, 0)
	if p.Older = len(lines) > pageLines && p.Offset+pageLines <= maxOffset; p.Older {
		p.OlderOffset = p.Offset + pageLines
	}
	for _, line := range lines[:min(len(lines), pageLines)] {
		out := pageLine{logLine: newLogLine(l, line)}
		if len(line.TextCID) > 0 {
			text, err := l.Store().Comment(x.r.Context(), line.TextCID)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			out.Text = clean(string(text))
		}
		if languageTag.MatchString(line.Language) {
			out.Lang = line.Language
		}
		p.Lines = append(p.Lines, out)
	}
	return nil
}

// languageTag is what the language of a text looks like (BCP 47).
var languageTag = regexp.MustCompile(`^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}$`)

// answerPage sends a page.
func (x *exchange) answerPage(status int, p peerPage) error {
	p.Style = template.CSS(pageCSS)
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return err
	}
	h := x.w.Header()
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	x.answerAs("text/html; charset=utf-8", status, b.Bytes())
	return nil
}

// failPage answers with a problem as a page. A browser asks for the key when it has none.
func (x *exchange) failPage(p *problem) {
	if p.status == http.StatusUnauthorized {
		x.w.Header().Set("WWW-Authenticate", `Basic realm="AgentFM: the password is an API key", charset="UTF-8"`)
	}
	_ = x.answerPage(p.status, peerPage{Title: http.StatusText(p.status), Problem: p.message})
}

// usePassword makes the password that a browser sends for a page the key of the request: it
// has no other way to send one. Pages are read alone, so that no other page gains by it. A
// password that another site has the browser send is none: it would spend the guesses of
// who looks at that site.
func (x *exchange) usePassword(page bool) {
	_, key, ok := x.r.BasicAuth()
	switch {
	case !ok || x.user() != "":
	case foreign(x.r.Header):
		x.r.Header.Del("Authorization")
	case page:
		x.r.Header.Set("Authorization", "Bearer "+key)
	}
}

// foreign reports whether a browser sends a request because of a page of another site, and
// nobody has followed a link there.
func foreign(h http.Header) bool {
	switch h.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site": // which is another host, too
		return h.Get("Sec-Fetch-User") != "?1"
	}
	return false
}

// clean is a text of a stranger, of bounded length, without what is no character: marks that
// turn the direction of a line, for example.
func clean(v any) string {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case *string:
		s = *v
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > pageText {
			b.WriteRune('…')
			break
		}
		if r != '\n' && !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		b.WriteRune(r)
	}
	return b.String()
}

// scoreText is a score as it is shown.
func scoreText(v any) string {
	switch v := v.(type) {
	case *float64:
		return fmt.Sprintf("%+.2f", *v)
	default:
		return fmt.Sprintf("%+.2f", v)
	}
}

// standingText says whether a peer gets tasks, and why.
func standingText(p peerAnswer) string {
	switch {
	case p.Equivocator:
		return "This peer has signed two different logs. It gets no tasks, for good."
	case p.Refused == ledger.ReasonFloor:
		return "This gateway sends it no tasks: its score is below the floor."
	case p.Refused != "":
		return "This gateway sends it no tasks: the ledger cannot be read."
	case p.Probation:
		return "On probation: this gateway knows little good of it, and sends it few tasks."
	}
	return "This gateway sends it tasks as it does others."
}
