// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"io"
	"net/http"
	"testing"

	"go.uber.org/zap/zapcore"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestFault wants the log and clients to be told what is wrong with a server, and the log
// once of each fault.
func TestFault(t *testing.T) {
	f := newFake(t)
	r, logs := provision(t, f.URL, often)
	r.Models = []string{"first"}
	prepare(t, r, "")
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for i, c := range []struct {
		list http.HandlerFunc
		want string
	}{
		{say(401, secret), "does not let the worker in"},
		{say(403, secret), "does not let the worker in"}, // the same again
		{say(200, `{"data":[{"id":"another"}]}`), "does not have the models that are to be offered"},
		{say(200, `{"data":[]}`), "does not have the models that are to be offered"}, // the same again
		{say(500, secret), "does not answer as it should"},
		{func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "does not answer"},
	} {
		f.set(func(f *fake) { f.list = c.list })
		await.Until(t, c.want, func() bool {
			o, up := r.Offer()
			return !up && o.Fault == c.want
		})
		from := f.listed.Load()
		await.Until(t, "it is looked after", func() bool { return f.listed.Load() > from+3 })
		if told := logs.FilterLevelExact(zapcore.ErrorLevel).All(); told[len(told)-1].Message != "the server "+c.want+"; nothing is offered until it does" ||
			len(told) != []int{1, 1, 2, 2, 3, 4}[i] {
			t.Errorf("%d: %s: the log says %v", i, c.want, told)
		}
	}
	f.set(func(f *fake) { f.list = nil })
	await.Until(t, "all is offered", func() bool { return offers(r) == "first"+chats })
}
