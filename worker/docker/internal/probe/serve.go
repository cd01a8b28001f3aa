// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// serve is a model server on a port. It has the model of AGENTFM_MODEL, and does what
// the one message of a chat says. PROBE_DELAY is how long it takes to start.
func serve(port int) {
	delay, _ := time.ParseDuration(os.Getenv("PROBE_DELAY"))
	fmt.Println("loading the model")
	time.Sleep(delay)
	fmt.Println("serving")
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	http.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"object":"list","data":[{"id":%q,"object":"model"}]}`, os.Getenv("AGENTFM_MODEL"))
	})
	http.HandleFunc("POST /release", func(http.ResponseWriter, *http.Request) { release() })
	http.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			Model    string
			Stream   bool
			Messages []struct{ Content string }
		}
		if json.NewDecoder(r.Body).Decode(&req) != nil || len(req.Messages) == 0 {
			http.Error(w, `{"error":{"message":"messages: required"}}`, http.StatusBadRequest)
			return
		}
		pieces := []string{"you said: ", req.Messages[0].Content}
		if to, ok := strings.CutPrefix(req.Messages[0].Content, "get "); ok {
			answer, err := attempt{Do: "get", To: to}.make()
			pieces = []string{fmt.Sprint(answer, err)}
		}
		switch req.Messages[0].Content {
		case "inspect":
			report, _ := json.Marshal(inspect())
			pieces = []string{string(report)}
		case "exit":
			os.Exit(3)
		case "slow": // 6 seconds
			pieces = slices.Concat(slices.Repeat([]string{". "}, 60), []string{"slow"})
		}
		if !req.Stream {
			text, _ := json.Marshal(strings.Join(pieces, ""))
			fmt.Fprintf(w, `{"id":"x","object":"chat.completion","model":%q,"choices":[{"index":0,"finish_reason":"stop",`+
				`"message":{"role":"assistant","content":%s}}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}`, req.Model, text)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for i, piece := range pieces {
			switch {
			case i > 0 && req.Messages[0].Content == "wait":
				<-released
			case req.Messages[0].Content == "slow":
				time.Sleep(100 * time.Millisecond)
			}
			text, _ := json.Marshal(piece)
			fmt.Fprintf(w, `data: {"id":"x","object":"chat.completion.chunk","model":%q,"choices":[{"index":0,"delta":{"content":%s}}]}`+"\n\n", req.Model, text)
			_ = http.NewResponseController(w).Flush()
		}
		fmt.Fprint(w, `data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
	})
	fmt.Println(http.ListenAndServe(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil))
	os.Exit(1)
}
