// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"reflect"
	"strings"
	"testing"
)

// chatWith and completionWith return a request with one more field.
func chatWith(field string) []byte {
	return []byte(`{"model":"m","messages":[{"role":"user","content":"x"}],` + field + `}`)
}

func completionWith(field string) []byte { return []byte(`{"model":"m","prompt":"x",` + field + `}`) }

// sharedOptions are fields of both kinds of request. Those with a code are refused.
var sharedOptions = []struct{ field, code, param string }{
	{`"temperature":0`, "", ""},
	{`"temperature":2`, "", ""},
	{`"temperature":null`, "", ""},
	{`"temperature":2.01`, CodeInvalidRequest, "temperature"},
	{`"temperature":-0.1`, CodeInvalidRequest, "temperature"},
	{`"temperature":"1"`, CodeInvalidRequest, "temperature"},
	{`"top_p":1`, "", ""},
	{`"top_p":1.5`, CodeInvalidRequest, "top_p"},
	{`"top_p":-1`, CodeInvalidRequest, "top_p"},
	{`"presence_penalty":-2`, "", ""},
	{`"presence_penalty":2.5`, CodeInvalidRequest, "presence_penalty"},
	{`"frequency_penalty":2`, "", ""},
	{`"frequency_penalty":-2.5`, CodeInvalidRequest, "frequency_penalty"},
	{`"logit_bias":{"50256":-100}`, "", ""},
	{`"logit_bias":null`, "", ""},
	{`"logit_bias":[1]`, CodeInvalidRequest, "logit_bias"},
	{`"seed":-9223372036854775808`, "", ""},
	{`"seed":null`, "", ""},
	{`"seed":1.5`, CodeInvalidRequest, "seed"},
	{`"seed":9223372036854775808`, CodeInvalidRequest, "seed"},
	{`"n":1`, "", ""},
	{`"n":16`, "", ""},
	{`"n":null`, "", ""},
	{`"n":0`, CodeInvalidRequest, "n"},
	{`"n":17`, CodeInvalidRequest, "n"},
	{`"n":-1`, CodeInvalidRequest, "n"},
	{`"n":true`, CodeInvalidRequest, "n"},
	{`"max_tokens":1`, "", ""},
	{`"max_tokens":null`, "", ""},
	{`"max_tokens":0`, CodeInvalidRequest, "max_tokens"},
	{`"max_tokens":1.5`, CodeInvalidRequest, "max_tokens"},
	{`"max_tokens":"5"`, CodeInvalidRequest, "max_tokens"},
	{`"stop":null`, "", ""},
	{`"stop":[]`, "", ""},
	{`"stop":["1","2","3","4"]`, "", ""},
	{`"stop":["1","2","3","4","5"]`, CodeInvalidRequest, "stop"},
	{`"stop":""`, CodeInvalidRequest, "stop"},
	{`"stop":["x",""]`, CodeInvalidRequest, "stop"},
	{`"stop":["x",null]`, CodeInvalidRequest, "stop"},
	{`"stop":"` + strings.Repeat("x", maxStop) + `"`, "", ""},
	{`"stop":"` + strings.Repeat("x", maxStop+1) + `"`, CodeInvalidRequest, "stop"},
	{`"stop":7`, CodeInvalidRequest, "stop"},
	{`"stop":[7]`, CodeInvalidRequest, "stop[0]"},
	{`"stop":{}`, CodeInvalidRequest, "stop"},
	{`"stream_options":{"include_usage":true}`, "", ""}, // without stream
	{`"user":"u","metadata":{"a":"b"},"store":true,"service_tier":"auto","unknown":[{}]`, "", ""},
}

func TestOptionsOfBoth(t *testing.T) {
	for _, r := range sharedOptions {
		_, chat := DecodeChat(chatWith(r.field))
		_, text := DecodeCompletion(completionWith(r.field))
		for _, err := range []error{chat, text} {
			if r.code == "" && err != nil {
				t.Errorf("%.60s: %v", r.field, err)
			}
			if r.code != "" {
				mustFail(t, err, r.code, r.param, "")
			}
		}
	}
}

func TestChatOptions(t *testing.T) {
	for _, r := range []struct{ field, code, param string }{
		{`"max_completion_tokens":1`, "", ""},
		{`"max_completion_tokens":0`, CodeInvalidRequest, "max_completion_tokens"},
		{`"max_completion_tokens":[]`, CodeInvalidRequest, "max_completion_tokens"},
		{`"logprobs":false`, "", ""},
		{`"logprobs":null`, "", ""},
		{`"logprobs":true`, CodeUnsupportedParameter, "logprobs"},
		{`"logprobs":1`, CodeInvalidRequest, "logprobs"},
		{`"top_logprobs":0`, "", ""},
		{`"top_logprobs":1`, CodeUnsupportedParameter, "top_logprobs"},
		{`"top_logprobs":21`, CodeInvalidRequest, "top_logprobs"},
		{`"top_logprobs":-1`, CodeInvalidRequest, "top_logprobs"},
		{`"tools":[]`, "", ""},
		{`"tools":null,"tool_choice":null`, "", ""},
		{`"tools":[{"type":"function"}]`, CodeUnsupportedParameter, "tools"},
		{`"tools":[{}],"tool_choice":"auto"`, CodeUnsupportedParameter, "tools"},
		{`"tools":[{}],"tool_choice":"none"`, "", ""},
		{`"tools":{}`, CodeInvalidRequest, "tools"},
		{`"tool_choice":"auto"`, "", ""},
		{`"tool_choice":"none"`, "", ""},
		{`"tool_choice":"required"`, CodeUnsupportedParameter, "tool_choice"},
		{`"tool_choice":{"type":"function","function":{"name":"f"}}`, CodeUnsupportedParameter, "tool_choice"},
		{`"tool_choice":"any"`, CodeInvalidRequest, "tool_choice"},
		{`"tool_choice":1`, CodeInvalidRequest, "tool_choice"},
		{`"functions":[]`, "", ""},
		{`"functions":[{"name":"f"}]`, CodeUnsupportedParameter, "functions"},
		{`"functions":[{"name":"f"}],"function_call":"none"`, "", ""},
		{`"function_call":"auto"`, "", ""},
		{`"function_call":{"name":"f"}`, CodeUnsupportedParameter, "function_call"},
		{`"response_format":null`, "", ""},
		{`"response_format":{"type":"text"}`, "", ""},
		{`"response_format":{"type":"json_object"}`, CodeUnsupportedParameter, "response_format"},
		{`"response_format":{"type":"json_schema","json_schema":{"name":"x"}}`, CodeUnsupportedParameter, "response_format"},
		{`"response_format":{}`, CodeInvalidRequest, "response_format.type"},
		{`"response_format":"text"`, CodeInvalidRequest, "response_format"},
		{`"modalities":null`, "", ""},
		{`"modalities":["text"]`, "", ""},
		{`"modalities":["text","audio"]`, CodeUnsupportedParameter, "modalities"},
		{`"modalities":"text"`, CodeInvalidRequest, "modalities"},
		{`"audio":null,"web_search_options":null`, "", ""},
		{`"audio":{"voice":"v"}`, CodeUnsupportedParameter, "audio"},
		{`"web_search_options":{}`, CodeUnsupportedParameter, "web_search_options"},
		{`"prediction":{"type":"content","content":"x"},"reasoning_effort":"low","verbosity":"low","parallel_tool_calls":true`, "", ""},
		{`"prompt_cache_key":"k","prompt_cache_retention":"24h","safety_identifier":"s"`, "", ""},
		{`"suffix":"s","echo":true,"best_of":3`, "", ""}, // not fields of a chat
	} {
		_, err := DecodeChat(chatWith(r.field))
		if r.code == "" && err != nil {
			t.Errorf("%s: %v", r.field, err)
		}
		if r.code != "" {
			mustFail(t, err, r.code, r.param, strings.SplitN(r.param, ".", 2)[0])
		}
	}
}

// Clients look for these words.
func TestRefusalWords(t *testing.T) {
	for field, want := range map[string]string{
		`"response_format":{"type":"json_schema"}`: "'response_format' of type 'json_schema' is not supported with this model",
		`"logprobs":true`:                          "Unsupported parameter: 'logprobs' is not supported with this model",
		`"n":128`:                                  "n: want 1 to 16 choices, not 128; each is a task of its own",
		`"n":1.5`:                                  "/n: want an integer",
	} {
		if _, err := DecodeChat(chatWith(field)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestCompletionOptions(t *testing.T) {
	for _, r := range []struct{ field, code, param string }{
		{`"suffix":null,"echo":null,"best_of":null,"logprobs":null`, "", ""},
		{`"suffix":"","echo":false,"best_of":1`, "", ""},
		{`"suffix":"s"`, CodeUnsupportedParameter, "suffix"},
		{`"suffix":1`, CodeInvalidRequest, "suffix"},
		{`"echo":true`, CodeUnsupportedParameter, "echo"},
		{`"echo":1`, CodeInvalidRequest, "echo"},
		{`"best_of":2`, CodeUnsupportedParameter, "best_of"},
		{`"best_of":2,"n":2`, "", ""},
		{`"best_of":1,"n":2`, CodeInvalidRequest, "best_of"},
		{`"best_of":0`, CodeInvalidRequest, "best_of"},
		{`"best_of":21`, CodeInvalidRequest, "best_of"},
		{`"logprobs":0`, CodeUnsupportedParameter, "logprobs"},
		{`"logprobs":6`, CodeInvalidRequest, "logprobs"},
		{`"logprobs":false`, CodeInvalidRequest, "logprobs"},
		{`"tools":[{}],"max_completion_tokens":0,"response_format":7`, "", ""}, // not fields of a completion
	} {
		_, err := DecodeCompletion(completionWith(r.field))
		if r.code == "" && err != nil {
			t.Errorf("%s: %v", r.field, err)
		}
		if r.code != "" {
			mustFail(t, err, r.code, r.param, r.param)
		}
	}
}

func TestLimitsOfRequests(t *testing.T) {
	for _, r := range []struct {
		field string
		n     int
		want  Limits
	}{
		{`"n":null`, 1, Limits{}},
		{`"n":3,"max_tokens":7,"stop":"END"`, 3, Limits{MaxTokens: 7, Stop: []string{"END"}}},
		{`"max_tokens":null,"stop":["a","b"]`, 1, Limits{Stop: []string{"a", "b"}}},
	} {
		chat, err := DecodeChat(chatWith(r.field))
		if err != nil || chat.N != r.n || !reflect.DeepEqual(chat.Limits, r.want) {
			t.Errorf("%s: chat got %+v, %v", r.field, chat, err)
		}
		text, err := DecodeCompletion(completionWith(r.field))
		if err != nil || text.N != r.n || !reflect.DeepEqual(text.Limits, r.want) {
			t.Errorf("%s: completion got %+v, %v", r.field, text, err)
		}
	}
	for _, field := range []string{`"max_tokens":7,"max_completion_tokens":5`, `"max_completion_tokens":5,"max_tokens":null`} {
		if req, err := DecodeChat(chatWith(field)); err != nil || req.Limits.MaxTokens != 5 {
			t.Errorf("%s: got %+v, %v", field, req.Limits, err)
		}
	}
}

func TestAffinity(t *testing.T) {
	for messages, want := range map[string]string{
		`{"role":"user","content":"a"}`:                                                              "user: a\n\n",
		`{"role":"user","content":"a"},{"role":"assistant","content":"b"}`:                           "user: a\n\n",
		`{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"user","content":""}`: "system: s\n\nuser: a\n\n",
		`{"role":"system","content":"s"}`:                                                            "system: s\n\n",
	} {
		req, err := DecodeChat([]byte(`{"model":"m","messages":[` + messages + `]}`))
		if err != nil || req.Affinity() != want {
			t.Errorf("%s: got %q, %v", messages, req.Affinity(), err)
		}
	}
	for size, want := range map[int]int{1: 1, 256: 256, 300: 256} {
		if got := (CompletionRequest{Prompt: Prompt(strings.Repeat("x", size))}).Affinity(); len(got) != want {
			t.Errorf("%d bytes became %d", size, len(got))
		}
	}
}
