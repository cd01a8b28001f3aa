// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestPrepareFails(t *testing.T) {
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	models := `{"data":[{"id":"a"},{"id":"b"}]}`
	for name, c := range map[string]struct {
		list  http.HandlerFunc
		key   string
		model string
		want  string
	}{
		"no key":       {say(401, secret), "", "", "set api_key or api_key_file"},
		"wrong key":    {say(401, secret), secret, "", "does not take the key"},
		"redirect":     {say(302, ""), "", "", "a redirect"},
		"not there":    {say(404, ""), "", "", "base_url ends in /v1"},
		"broken":       {say(500, ""), "", "", "status 500"},
		"HTML":         {say(200, "<html>"), "", "", "not JSON"},
		"an array":     {say(200, "[]"), "", "", "not JSON"},
		"null":         {say(200, "null"), "", "", "no models"},
		"none":         {say(200, `{"data":null}`), "", "", "no models"},
		"garbage":      {say(200, `{"data":[1,null,{"id":5},{"id":""},"x"]}`), "", "", "no models"},
		"cut":          {say(200, `{"data":[{"id":"a"`), "", "", "not JSON"},
		"large":        {say(200, strings.Repeat(" ", maxAnswer+1)), "", "", "is over"},
		"model":        {say(200, models), "", "c", `"c" is not among what the server and the settings offer: "a", "b"`},
		"no names fit": {say(200, `{"data":[{"id":"a\u0007"}]}`), "", "", "none of the models"},
		"dies":         {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", "", "asking for models"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.list = c.list
			r, _ := provision(t, f.URL, func(r *Runtime) { r.APIKey = c.key })
			defer r.transport.CloseIdleConnections()
			_, err := r.Prepare(t.Context(), worker.Agent{Model: c.model})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "sk-") {
				t.Errorf("got %v, want …%s…", err, c.want)
			}
			if _, up := r.Offer(); up {
				t.Error("there is an offer")
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		f := newFake(t)
		f.Close()
		r, _ := provision(t, f.URL, nil)
		if _, err := r.Prepare(t.Context(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), "is it running?") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the agent goes away", func(t *testing.T) {
		f := newFake(t)
		ctx, cancel := context.WithCancel(context.Background())
		f.list = func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		}
		r, _ := provision(t, f.URL, nil)
		if _, err := r.Prepare(ctx, worker.Agent{}); err == nil {
			t.Error("it is ready")
		}
	})
}

// TestOpensNothing wants no connection before Prepare.
func TestOpensNothing(t *testing.T) {
	f := newFake(t)
	provision(t, f.URL, nil)
	if n := f.listed.Load() + f.probed.Load(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
}

// offers returns what is offered, or "nothing".
func offers(r *Runtime) string {
	o, up := r.Offer()
	if !up {
		return "nothing"
	}
	return strings.Join(o.Models, " ") + " " + strings.Join(o.Routes, " ")
}

const chats = " /v1/chat/completions"

// TestWatch wants an agent to be told once of each change, and the log, too.
func TestWatch(t *testing.T) {
	f := newFake(t)
	r, logs := provision(t, f.URL, often)
	c := prepare(t, r, "second")
	if got := offers(r); got != "second first"+chats {
		t.Fatalf("offers %s", got)
	}
	polls := func(n int64) {
		t.Helper()
		from := f.listed.Load()
		await.Until(t, "the server is looked after", func() bool { return f.listed.Load() >= from+n })
	}
	step := func(name string, changes int64, want string, change func(*fake)) {
		t.Helper()
		f.set(change)
		await.Until(t, name+": "+want, func() bool { return offers(r) == want && c.Load() == changes })
		polls(5)
		if offers(r) != want || c.Load() != changes {
			t.Errorf("%s: told %d times, offers %s", name, c.Load(), offers(r))
		}
	}
	polls(5)
	if c.Load() != 0 || logs.Len() != 1 {
		t.Errorf("nothing has changed, told %d times, log %v", c.Load(), logs.All())
	}
	step("another model", 1, "second third first"+chats, func(f *fake) { f.models = []string{"third", "second", "first"} })
	probed := f.probed.Load()
	step("broken", 2, "nothing", func(f *fake) {
		f.list = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusInternalServerError) }
	})
	if f.probed.Load() != probed {
		t.Error("routes were asked for without need")
	}
	step("back, with a route", 3, "second third first"+chats+" /v1/embeddings", func(f *fake) {
		f.list, f.routes["/v1/embeddings"] = nil, func(http.ResponseWriter, *http.Request) {}
	})
	step("its own model is gone", 4, "nothing", func(f *fake) { f.models = []string{"first"} })
	step("and back", 5, "second"+chats+" /v1/embeddings", func(f *fake) { f.models = []string{"second"} })
	if n := logs.FilterMessageSnippet("the server").Len(); n != 6 {
		t.Errorf("the log tells %d times: %v", n, logs.All())
	}
}

// TestOneFailure wants one lost answer to be no reason to offer nothing.
func TestOneFailure(t *testing.T) {
	f := newFake(t)
	r, _ := provision(t, f.URL, often)
	c := prepare(t, r, "")
	f.set(func(f *fake) {
		f.list = func(w http.ResponseWriter, _ *http.Request) {
			if f.listed.Load()%2 == 0 {
				w.WriteHeader(http.StatusInternalServerError)
			}
			_, _ = io.WriteString(w, `{"data":[{"id":"first"},{"id":"second"}]}`)
		}
	})
	from := f.listed.Load()
	await.Until(t, "the server is looked after", func() bool { return f.listed.Load() > from+10 })
	if c.Load() != 0 || offers(r) != "first second"+chats {
		t.Errorf("told %d times, offers %s", c.Load(), offers(r))
	}
}

// TestOneAtATime wants a server that answers nothing else while it generates to be
// there all the same, and one that answers nothing without work not to be.
func TestOneAtATime(t *testing.T) {
	f := newFake(t)
	release, came := make(chan struct{}), make(chan struct{})
	f.on("/v1/chat/completions", func(http.ResponseWriter, *http.Request) {
		close(came)
		<-release
	})
	r, _ := provision(t, f.URL, often)
	r.askTimeout = 200 * time.Millisecond
	c := prepare(t, r, "")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"first"}`)))
	}()
	<-came
	f.set(func(f *fake) { f.list = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } })
	from := f.listed.Load()
	await.Until(t, "the server is looked after", func() bool { return f.listed.Load() > from+4 })
	if c.Load() != 0 {
		t.Errorf("told %d times, offers %s", c.Load(), offers(r))
	}
	close(release)
	<-ended
	await.Until(t, "nothing is offered", func() bool { return offers(r) == "nothing" && c.Load() == 1 })
}

// TestRefused wants nothing to be offered as soon as a request finds nobody there,
// and all again when the server is back at its address.
func TestRefused(t *testing.T) {
	f := newFake(t)
	address := f.Listener.Addr().String()
	r, _ := provision(t, f.URL, nil) // looks after it in 10 seconds
	c := prepare(t, r, "")
	f.Close()
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"first"}`)))
	if w.Code != 502 {
		t.Errorf("got %d", w.Code)
	}
	await.Until(t, "nothing is offered", func() bool { return offers(r) == "nothing" && c.Load() == 1 })
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip("somebody else has the port: ", err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	s.Start()
	defer s.Close()
	r.doubt <- struct{}{} // as the tick of the interval
	await.Until(t, "all is offered", func() bool { return offers(r) == "first second"+chats && c.Load() == 2 })
}

func TestRoutes(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   presence
	}{
		"bad request":            {400, `{"error":{"message":"messages: required"}}`, present},
		"unprocessable":          {422, `{"detail":[]}`, present},
		"unsupported media type": {415, "", present},
		"broken by it":           {500, `{"error":"x"}`, present},
		"broken":                 {500, "Internal Server Error", unsure},
		"an answer":              {200, `{"id":"x"}`, present},
		"gin":                    {404, "404 page not found", absent},
		"FastAPI":                {404, `{"detail":"Not Found"}`, absent},
		"llama.cpp":              {404, `{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}`, absent},
		"a page about a model":   {404, `<html>model`, absent},
		"null":                   {404, `null`, absent},
		"no model":               {404, `{"error":{"message":"model '' not found","type":"not_found_error"}}`, present},
		"no model, text":         {404, `{"error":"model is required"}`, present},
		"no model, vLLM":         {404, `{"object":"error","message":"The model does not exist.","code":404}`, present},
		"not with this model":    {400, `{"object":"error","message":"The model does not support Embeddings API"}`, absent},
		"method":                 {405, `{"detail":"Method Not Allowed"}`, absent},
		"not implemented":        {501, "", absent},
		"not allowed":            {403, "", absent},
		"redirect":               {307, "", absent},
		"LM Studio":              {200, `{"error":"Unexpected endpoint or method. (POST /v1/x)"}`, absent},
		"loading":                {503, `{"error":{"message":"Loading model"}}`, unsure},
		"busy":                   {429, "", unsure},
	} {
		if got := judge(c.status, []byte(c.body)); got != c.want {
			t.Errorf("%s: got %d", name, got)
		}
	}
}

// TestLoading wants an agent not to be ready while its server loads a model, and
// the rest of the routes once they are there.
func TestLoading(t *testing.T) {
	f := newFake(t)
	load := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	answers := map[string]http.HandlerFunc{"/v1/chat/completions": load, "/v1/embeddings": load}
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		answer := answers[r.URL.Path]
		f.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		f.ServeHTTP(w, r)
	})
	r, _ := provision(t, f.URL, often)
	if _, err := r.Prepare(t.Context(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), "still loading") {
		t.Fatalf("got %v", err)
	}
	f.set(func(*fake) { delete(answers, "/v1/chat/completions") })
	c := prepare(t, r, "")
	if got := offers(r); got != "first second"+chats {
		t.Errorf("offers %s", got)
	}
	f.on("/v1/embeddings", load)
	f.set(func(*fake) { delete(answers, "/v1/embeddings") })
	await.Until(t, "the other route is offered", func() bool { return offers(r) == "first second"+chats+" /v1/embeddings" && c.Load() == 1 })
}

// TestRoutesAgain wants the routes of a server to be those that it has now, whatever shows
// that it may be another one; and while it does not tell, those that it had.
func TestRoutesAgain(t *testing.T) {
	models := "first second"
	for name, c := range map[string]struct {
		settings func(*Runtime)
		then     func(*fake, *Runtime) // when it has been replaced
		models   string
	}{
		"after one failed look": {often, func(f *fake, _ *Runtime) {
			once := f.listed.Load() + 1
			f.set(func(f *fake) {
				f.list = func(w http.ResponseWriter, _ *http.Request) {
					if f.listed.Load() <= once {
						w.WriteHeader(http.StatusBadGateway)
					}
					_, _ = io.WriteString(w, `{"data":[{"id":"first"},{"id":"second"}]}`)
				}
			})
		}, models},
		"after Look":         {nil, func(_ *fake, r *Runtime) { r.Look() }, models},
		"with another model": {often, func(f *fake, _ *Runtime) { f.set(func(f *fake) { f.models = []string{"third"} }) }, "third"},
		"after some time":    {func(r *Runtime) { often(r); r.probeInterval = 50 * time.Millisecond }, nil, models},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			r, _ := provision(t, f.URL, nil)
			if c.settings != nil {
				c.settings(r)
			}
			prepare(t, r, "")
			f.set(func(f *fake) { f.routes["/v1/embeddings"] = f.routes["/v1/chat/completions"] })
			if c.then != nil {
				c.then(f, r)
			}
			await.Until(t, "the new route", func() bool { return offers(r) == c.models+chats+" /v1/embeddings" })
		})
	}
	t.Run("unsure", func(t *testing.T) {
		f := newFake(t)
		var status atomic.Int64
		f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if code := int(status.Load()); code != 0 && req.URL.Path == "/v1/chat/completions" {
				f.probed.Add(1)
				w.WriteHeader(code)
				return
			}
			f.ServeHTTP(w, req)
		})
		f.on("/v1/embeddings", func(http.ResponseWriter, *http.Request) {})
		r, _ := provision(t, f.URL, often)
		r.probeInterval = time.Millisecond
		c := prepare(t, r, "")
		for _, code := range []int64{http.StatusServiceUnavailable, http.StatusInternalServerError} {
			status.Store(code)
			from := f.probed.Load()
			await.Until(t, "it is asked", func() bool { return f.probed.Load() > from+10 })
			if c.Load() != 0 {
				t.Fatalf("status %d: offers %s", code, offers(r))
			}
		}
		status.Store(http.StatusNotFound)
		await.Until(t, "the route is gone", func() bool { return offers(r) == models+" /v1/embeddings" })
	})
}

func TestRoutesOfSettings(t *testing.T) {
	f := newFake(t)
	r, _ := ready(t, f, func(r *Runtime) { r.Routes = []string{"/v1/x"} })
	if offers(r) != "first second /v1/x" || f.probed.Load() != 0 {
		t.Errorf("offers %s, asked %d times", offers(r), f.probed.Load())
	}
	f.set(func(f *fake) { f.routes = nil })
	none, _ := provision(t, f.URL, func(r *Runtime) { r.HealthInterval = caddy.Duration(1) })
	defer none.transport.CloseIdleConnections()
	if _, err := none.Prepare(t.Context(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), "no route") {
		t.Errorf("got %v", err)
	}
}
