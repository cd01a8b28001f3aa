// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// roleFlag has this program be one of the processes of the suite.
const roleFlag = "-role"

// serveRole is a process of the suite: the mock, or a proxy of Go's library.
func serveRole(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "mock":
		return http.ListenAndServe(args[1], http.HandlerFunc(mock))
	case len(args) == 3 && args[0] == "mock": // one that takes its time
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		return http.ListenAndServe(args[1], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				time.Sleep(d)
			}
			mock(w, r)
		}))
	case len(args) == 3 && args[0] == "proxy":
		to, err := url.Parse(args[2])
		if err != nil {
			return err
		}
		return http.ListenAndServe(args[1], &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(to)
				// From the client's body the transport may read once more when the server has
				// closed it, and then breaks off the answer.
				body, _ := io.ReadAll(r.In.Body)
				r.Out.Body = io.NopCloser(bytes.NewReader(body))
			},
			FlushInterval: -1,
			Transport:     &http.Transport{MaxIdleConnsPerHost: 256},
		})
	}
	return errors.New("unknown role")
}

const (
	model  = "bench-model"
	chunks = 200 // of a streamed answer, beside the last
)

var chatText = strings.Repeat("All work and no play. ", 50)

// chatAnswer is the mock's answer to a chat, of 1.3 KB.
var chatAnswer = []byte(`{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"` + model +
	`","choices":[{"index":0,"message":{"role":"assistant","content":"` + chatText +
	`"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":250,"total_tokens":259}}`)

// events are the mock's streamed answer.
var events = func() [][]byte {
	var list [][]byte
	for i := range chunks {
		list = append(list, fmt.Appendf(nil, `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":%q,`+
			`"choices":[{"index":0,"delta":{"content":"word %03d "},"finish_reason":null}]}`+"\n\n", model, i))
	}
	return append(list, []byte("data: [DONE]\n\n"))
}()

// chatRequest is a request for an answer that is whole.
var chatRequest = []byte(`{"model":"` + model + `","messages":[{"role":"user","content":"Say something, please."}]}`)

// streamRequest is a request for a streamed answer. Its seed tells the mock the time
// between two chunks, in microseconds.
func streamRequest(pace time.Duration) []byte {
	return fmt.Appendf(nil, `{"model":%q,"stream":true,"seed":%d,"messages":[{"role":"user","content":"Say something, please."}]}`,
		model, pace.Microseconds())
}

// mock is a server with as much of OpenAI's API as the suite needs.
func mock(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/models" {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"`+model+`","object":"model"}]}`)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/v1/chat/completions" || !bytes.Contains(body, []byte(model)) {
		http.Error(w, "not what the suite asks for", http.StatusBadRequest)
		return
	}
	_, seed, streamed := bytes.Cut(body, []byte(`"seed":`))
	if !streamed {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(chatAnswer)))
		_, _ = w.Write(chatAnswer)
		return
	}
	digits, _, _ := bytes.Cut(seed, []byte(","))
	us, _ := strconv.Atoi(string(digits))
	mockStream(w, time.Duration(us)*time.Microsecond)
}

// mockStream writes the chunks, each at its time after the first.
func mockStream(w http.ResponseWriter, pace time.Duration) {
	w.Header().Set("Content-Type", "text/event-stream")
	begun := time.Now()
	for i, ev := range events {
		if i < chunks { // the last comes with the one before
			time.Sleep(time.Until(begun.Add(time.Duration(i) * pace)))
		}
		if _, err := w.Write(ev); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}
