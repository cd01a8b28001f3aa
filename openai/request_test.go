// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"slices"
	"strings"
	"testing"
)

func TestDecodeChat(t *testing.T) {
	req, err := DecodeChat([]byte(`{
		"model": " llama3.2\n",
		"messages": [
			{"role": "system", "content": "Be brief."},
			{"role": "user", "name": "ann", "content": [
				{"type": "text", "text": "line 1\nline 2"},
				{"type": "text", "text": "second part", "cache_control": {}}
			]},
			{"role": "assistant", "content": null, "tool_calls": []},
			{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
			{"role": "developer", "content": "d"},
			{"role": "function", "name": "f", "content": "r"},
			{"role": "function", "name": "f", "content": null},
			{"role": "assistant"},
			{"role": "tool", "content": "", "tool_call_id": "x"},
			{"role": "user", "content": "[AGENTFM: NO_FILES]\u0000"}
		],
		"stream": true,
		"stream_options": {"include_usage": true, "include_obfuscation": false},
		"temperature": 0.5, "n": 3, "tools": [{"type": "function"}], "tool_choice": "none", "anything": null,
		"max_tokens": 7, "max_completion_tokens": 5, "stop": "END"
	}`))
	if err != nil {
		t.Fatal(err)
	}
	if req.Model != "llama3.2" || !req.Stream || !req.StreamOptions.IncludeUsage || req.N != 3 {
		t.Errorf("got %+v", req)
	}
	want := "system: Be brief.\n\nuser: line 1\nline 2\nsecond part\n\nassistant: \n\n" +
		"assistant: No.\n\ndeveloper: d\n\nfunction: r\n\nfunction: \n\nassistant: \n\ntool: \n\n" +
		"user: [AGENTFM: NO_FILES]\x00\n\nassistant:"
	if got := req.Prompt(); got != want {
		t.Errorf("got prompt %q\nwant       %q", got, want)
	}
}

func TestDecodeChatNulls(t *testing.T) {
	req, err := DecodeChat([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"stream":null,"stream_options":null}`))
	if err != nil || req.Stream || req.StreamOptions.IncludeUsage {
		t.Errorf("got %+v, %v", req, err)
	}
}

func TestDecodeChatRefuses(t *testing.T) {
	message := func(m string) string { return `{"model":"m","messages":[{"role":"user","content":"x"},` + m + `]}` }
	for _, r := range []struct{ name, body, code, param string }{
		{"no model", `{"messages":[{"role":"user","content":"x"}]}`, CodeModelRequired, "model"},
		{"model null", `{"model":null,"messages":[{"role":"user","content":"x"}]}`, CodeModelRequired, "model"},
		{"model of space", `{"model":" \u2003","messages":[{"role":"user","content":"x"}]}`, CodeModelRequired, "model"},
		{"model in other case", `{"Model":"m","messages":[{"role":"user","content":"x"}]}`, CodeModelRequired, "model"},
		{"model a number", `{"model":7}`, CodeInvalidRequest, "model"},
		{"no messages", `{"model":"m"}`, CodePromptRequired, "messages"},
		{"messages null", `{"model":"m","messages":null}`, CodePromptRequired, "messages"},
		{"messages empty", `{"model":"m","messages":[]}`, CodePromptRequired, "messages"},
		{"messages an object", `{"model":"m","messages":{}}`, CodeInvalidRequest, "messages"},
		{"messages a string", `{"model":"m","messages":"hi"}`, CodeInvalidRequest, "messages"},
		{"message a string", message(`"hi"`), CodeInvalidRequest, "messages[1]"},
		{"message null", message(`null`), CodeInvalidRequest, "messages[1].role"},
		{"no role", message(`{"content":"x"}`), CodeInvalidRequest, "messages[1].role"},
		{"role a number", message(`{"role":1,"content":"x"}`), CodeInvalidRequest, "messages[1].role"},
		{"role of two lines", message(`{"role":"user\nsystem","content":"x"}`), CodeInvalidRequest, "messages[1].role"},
		{"no content", message(`{"role":"user"}`), CodeInvalidRequest, "messages[1].content"},
		{"content null", message(`{"role":"user","content":null}`), CodeInvalidRequest, "messages[1].content"},
		{"content a number", message(`{"role":"user","content":3}`), CodeInvalidRequest, "messages[1].content"},
		{"content an object", message(`{"role":"user","content":{"type":"text"}}`), CodeInvalidRequest, "messages[1].content"},
		{"no parts", message(`{"role":"user","content":[]}`), CodeInvalidRequest, "messages[1].content"},
		{"part a string", message(`{"role":"user","content":["x"]}`), CodeInvalidRequest, "messages[1].content[0]"},
		{"part without type", message(`{"role":"user","content":[{"text":"x"}]}`), CodeInvalidRequest, "messages[1].content[0].type"},
		{"part without text", message(`{"role":"user","content":[{"type":"text"}]}`), CodeInvalidRequest, "messages[1].content[0].text"},
		{"text a number", message(`{"role":"user","content":[{"type":"text","text":1}]}`), CodeInvalidRequest, "messages[1].content[0].text"},
		{"refusal without refusal", message(`{"role":"assistant","content":[{"type":"refusal","text":"x"}]}`), CodeInvalidRequest, "messages[1].content[0].refusal"},
		{"file", message(`{"role":"user","content":[{"type":"file","file":{}}]}`), CodeUnsupportedPromptType, "messages[1].content[0].type"},
		{"image", message(`{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"u"}}]}`), CodeUnsupportedPromptType, "messages[1].content[1].type"},
		{"audio", message(`{"role":"user","content":[{"type":"input_audio"}]}`), CodeUnsupportedPromptType, "messages[1].content[0].type"},
		{"stream a string", `{"model":"m","stream":"true"}`, CodeInvalidRequest, "stream"},
		{"stream_options an array", `{"model":"m","stream_options":[]}`, CodeInvalidRequest, "stream_options"},
		{"include_usage a number", `{"model":"m","stream_options":{"include_usage":1}}`, CodeInvalidRequest, "stream_options.include_usage"},
	} {
		t.Run(r.name, func(t *testing.T) {
			_, err := DecodeChat([]byte(r.body))
			mustFail(t, err, r.code, r.param, "")
		})
	}
}

func TestDecodeCompletion(t *testing.T) {
	for _, r := range []struct{ prompt, want, code string }{
		{`"hi"`, "hi", ""},
		{`["hi"]`, "hi", ""},
		{`[ "\ud83d\ude00" ]`, "😀", ""},
		{`null`, "", CodePromptRequired},
		{`""`, "", CodePromptRequired},
		{`[]`, "", CodePromptRequired},
		{`[""]`, "", CodePromptRequired},
		{`["a","b"]`, "", CodeUnsupportedPromptType},
		{`[1,2,3]`, "", CodeUnsupportedPromptType},
		{`[[1,2]]`, "", CodeUnsupportedPromptType},
		{`[null]`, "", CodeUnsupportedPromptType},
		{`7`, "", CodeUnsupportedPromptType},
		{`true`, "", CodeUnsupportedPromptType},
		{`{"text":"x"}`, "", CodeUnsupportedPromptType},
	} {
		req, err := DecodeCompletion([]byte(`{"model":"m","prompt":` + r.prompt + `,"suffix":"","echo":false,"max_tokens":5}`))
		if r.code != "" {
			t.Run(r.prompt, func(t *testing.T) { mustFail(t, err, r.code, "prompt", "prompt") })
			continue
		}
		if err != nil || string(req.Prompt) != r.want {
			t.Errorf("%s: got %q, %v", r.prompt, req.Prompt, err)
		}
	}
	_, err := DecodeCompletion([]byte(`{"model":"m"}`))
	mustFail(t, err, CodePromptRequired, "prompt", "")
	_, err = DecodeCompletion([]byte(`{"prompt":"x"}`))
	mustFail(t, err, CodeModelRequired, "model", "")
	_, err = DecodeCompletion([]byte(`{"model":"m","prompt":["\ud800"]}`))
	mustFail(t, err, CodeInvalidRequest, "", "/prompt/0")
}

func FuzzDecodeChat(f *testing.F) {
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]}]}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"n":3,"stop":["a","b"],"max_tokens":5,"temperature":1.5,"seed":1}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{}],"tool_choice":{},"response_format":{"type":"text"},"modalities":["text"]}`))
	f.Add([]byte(`{"model":"m","messages":[{"role":"assistant","content":null},{"role":"user","content":[{"type":"image_url"}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeChat(body)
		if err != nil {
			checkFuzzError(t, err)
			return
		}
		prompt := req.Prompt()
		if req.Model == "" || !strings.HasSuffix(prompt, "\n\nassistant:") {
			t.Errorf("model %q, prompt %q", req.Model, prompt)
		}
		if !strings.HasPrefix(prompt, req.Affinity()) || req.Affinity() == "" {
			t.Errorf("prompt %q, affinity %q", prompt, req.Affinity())
		}
		checkFuzzOptions(t, req.N, req.Limits)
		for _, m := range req.Messages {
			if !strings.Contains(prompt, m.Role+": "+m.Content.Text+"\n\n") {
				t.Errorf("message %+v is not in %q", m, prompt)
			}
		}
	})
}

func FuzzDecodeCompletion(f *testing.F) {
	f.Add([]byte(`{"model":"m","prompt":"x"}`))
	f.Add([]byte(`{"model":"m","prompt":["x"],"stream":true,"stream_options":{"include_usage":true}}`))
	f.Add([]byte(`{"model":"m","prompt":[1,"x"]}`))
	f.Add([]byte(`{"model":"m","prompt":"x","n":2,"best_of":2,"stop":"a","max_tokens":5,"suffix":"","echo":false,"logprobs":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeCompletion(body)
		if err != nil {
			checkFuzzError(t, err)
			return
		}
		if req.Model == "" || req.Prompt == "" {
			t.Errorf("got %+v", req)
		}
		checkFuzzOptions(t, req.N, req.Limits)
	})
}

// checkFuzzOptions asserts what holds for the options of every request.
func checkFuzzOptions(t *testing.T, n int, l Limits) {
	t.Helper()
	if n < 1 || n > MaxChoices || l.MaxTokens < 0 || len(l.Stop) > maxStops || slices.Contains(l.Stop, "") {
		t.Errorf("%d choices, limits %+v", n, l)
	}
}

// checkFuzzError asserts what holds for every error of a request.
func checkFuzzError(t *testing.T, err error) {
	t.Helper()
	e, ok := err.(*Error)
	if !ok || e.Code == "" || e.Message == "" || e.Type != TypeInvalidRequest {
		t.Fatalf("got %#v", err)
	}
	var v struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := Decode(e.Envelope(), &v); err != nil || v.Error.Message == "" {
		t.Errorf("envelope %s: %v", e.Envelope(), err)
	}
}
