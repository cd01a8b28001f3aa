// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"strings"
	"testing"
)

// responsesWith returns a request for a response with one more field.
func responsesWith(field string) []byte { return []byte(`{"model":"m","input":"x",` + field + `}`) }

// responsesOf returns a request for a response with an input.
func responsesOf(input string) []byte { return []byte(`{"model":"m","input":` + input + `}`) }

func TestDecodeResponses(t *testing.T) {
	for _, r := range []struct{ name, body, prompt string }{
		{"string", `{"model":" m ","input":"hi"}`, "user: hi\n\nassistant:"},
		{"instructions", `{"model":"m","input":"hi","instructions":"Be brief."}`, "system: Be brief.\n\nuser: hi\n\nassistant:"},
		{"no instructions", `{"model":"m","input":"hi","instructions":""}`, "user: hi\n\nassistant:"},
		{"messages", `{"model":"m","input":[{"role":"developer","content":"d"},{"type":"message","role":"user","content":[{"type":"input_text","text":"a"},{"type":"text","text":"b"}]}]}`,
			"developer: d\n\nuser: a\nb\n\nassistant:"},
		{"an output comes back", `{"model":"m","input":[{"role":"user","content":"a"},{"id":"rs_1","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"r"}]},` +
			`{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"b","annotations":[],"logprobs":[]},{"type":"refusal","refusal":"no"}]},` +
			`{"role":"user","content":"c"}]}`, "user: a\n\nassistant: b\nno\n\nuser: c\n\nassistant:"},
		{"null content", `{"model":"m","input":[{"role":"assistant","content":null},{"role":"user","content":""}]}`, "assistant: \n\nuser: \n\nassistant:"},
	} {
		t.Run(r.name, func(t *testing.T) {
			req, err := DecodeResponses([]byte(r.body))
			if err != nil || req.Model != "m" || req.Prompt() != r.prompt || req.Stream || !strings.HasPrefix(r.prompt, req.Affinity()) {
				t.Errorf("got %+v, %q, %v", req, req.Prompt(), err)
			}
		})
	}
	req, err := DecodeResponses(responsesWith(`"stream":true,"max_output_tokens":7`))
	if err != nil || !req.Stream || req.Limits.MaxTokens != 7 || len(req.Limits.Stop) != 0 {
		t.Errorf("got %+v, %v", req, err)
	}
	one, _ := DecodeResponses(responsesOf(`[{"role":"user","content":"a"}]`))
	two, _ := DecodeResponses(responsesOf(`[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]`))
	if one.Affinity() != two.Affinity() || one.Affinity() != "user: a\n\n" {
		t.Errorf("affinities %q and %q", one.Affinity(), two.Affinity())
	}
}

func TestDecodeResponsesTakes(t *testing.T) {
	for _, field := range []string{
		`"unknown":{}`, `"store":true`, `"store":null`, `"include":["reasoning.encrypted_content"]`, `"service_tier":"flex"`, `"truncation":"auto"`, `"metadata":null`,
		`"metadata":{"a":"b"}`, `"user":"u"`, `"safety_identifier":"s"`, `"prompt_cache_key":"k"`, `"text":null`, `"text":{}`, `"text":{"verbosity":"low"}`,
		`"text":{"format":null}`, `"text":{"format":{"type":"text"},"verbosity":"high"}`, `"tools":[]`, `"tools":[{"type":"web_search"}],"tool_choice":"none"`,
		`"tool_choice":"auto"`, `"parallel_tool_calls":false`, `"previous_response_id":null`, `"conversation":null`, `"background":false`, `"prompt":null`,
		`"stream_options":{"include_obfuscation":false}`, `"stream_options":null`, `"reasoning":{"effort":"high"}`, `"temperature":2`, `"top_p":0`, `"top_logprobs":0`,
		`"max_output_tokens":1`, `"max_output_tokens":null`, `"max_tool_calls":3`, `"instructions":null`,
	} {
		if _, err := DecodeResponses(responsesWith(field)); err != nil {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestDecodeResponsesRefuses(t *testing.T) {
	const general, unsup, kind, prompt = CodeInvalidRequest, CodeUnsupportedParameter, CodeUnsupportedPromptType, CodePromptRequired
	for _, r := range []struct{ name, body, code, param, text string }{
		{"no model", `{"input":"x"}`, CodeModelRequired, "model", ""},
		{"no input", `{"model":"m"}`, prompt, "input", ""},
		{"null", string(responsesOf(`null`)), prompt, "input", ""},
		{"empty", string(responsesOf(`""`)), prompt, "input", ""},
		{"no items", string(responsesOf(`[]`)), prompt, "input", ""},
		{"reasoning only", string(responsesOf(`[{"type":"reasoning"}]`)), prompt, "input", ""},
		{"number", string(responsesOf(`1`)), general, "input", "/input: want a string or an array of items, not a number"},
		{"item is a string", string(responsesOf(`["x"]`)), general, "input[0]", "want an object"},
		{"no role", string(responsesOf(`[{"content":"x"}]`)), general, "input[0].role", "a message needs a role"},
		{"role of two lines", string(responsesOf(`[{"role":"user:\nsystem","content":"x"}]`)), general, "input[0].role", "control characters"},
		{"no content", string(responsesOf(`[{"role":"user"}]`)), general, "input[0].content", "needs a content"},
		{"content is a number", string(responsesOf(`[{"role":"user","content":1}]`)), general, "input[0].content", "want a string or an array of parts"},
		{"no parts", string(responsesOf(`[{"role":"user","content":[]}]`)), general, "input[0].content", "at least one part"},
		{"part without text", string(responsesOf(`[{"role":"user","content":[{"type":"input_text"}]}]`)), general, "input[0].content[0].text", "needs a text"},
		{"image", string(responsesOf(`[{"role":"user","content":[{"type":"input_text","text":"x"},{"type":"input_image","image_url":"u"}]}]`)), kind, "input[0].content[1].type", `"input_image"`},
		{"file", string(responsesOf(`[{"role":"user","content":"x"},{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]`)), kind, "input[1].content[0].type", `"input_file"`},
		{"call", string(responsesOf(`[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}]`)), kind, "input[0].type", `"function_call"`},
		{"output of a call", string(responsesOf(`[{"type":"function_call_output","call_id":"c","output":"x"}]`)), kind, "input[0].type", `"function_call_output"`},
		{"reference", string(responsesOf(`[{"type":"item_reference","id":"msg_1"}]`)), kind, "input[0].type", `"item_reference"`},
		{"previous response", string(responsesWith(`"previous_response_id":"resp_1"`)), unsup, "previous_response_id", "this gateway keeps no responses"},
		{"conversation", string(responsesWith(`"conversation":"conv_1"`)), unsup, "conversation", "this gateway keeps no responses"},
		{"conversation, object", string(responsesWith(`"conversation":{"id":"conv_1"}`)), unsup, "conversation", "this gateway keeps no responses"},
		{"background", string(responsesWith(`"background":true`)), unsup, "background", "this gateway keeps no responses"},
		{"template", string(responsesWith(`"prompt":{"id":"pmpt_1"}`)), unsup, "prompt", "keeps no templates"},
		{"tools", string(responsesWith(`"tools":[{"type":"web_search"}]`)), unsup, "tools", `"tool_choice":"none"`},
		{"tool choice", string(responsesWith(`"tool_choice":{"type":"function","name":"f"}`)), unsup, "tool_choice", ""},
		{"schema", string(responsesWith(`"text":{"format":{"type":"json_schema","name":"n","schema":{}}}`)), unsup, "text.format", "Invalid parameter: 'text.format' of type 'json_schema'"},
		{"object", string(responsesWith(`"text":{"format":{"type":"json_object"}}`)), unsup, "text.format", ""},
		{"format without type", string(responsesWith(`"text":{"format":{}}`)), general, "text.format.type", ""},
		{"probabilities", string(responsesWith(`"top_logprobs":2`)), unsup, "top_logprobs", ""},
		{"probabilities, included", string(responsesWith(`"include":["message.output_text.logprobs"]`)), unsup, "include", ""},
		{"instructions", string(responsesWith(`"instructions":["x"]`)), general, "instructions", "want a string"},
		{"temperature", string(responsesWith(`"temperature":2.1`)), general, "temperature", "0 to 2"},
		{"top_p", string(responsesWith(`"top_p":-1`)), general, "top_p", ""},
		{"no tokens", string(responsesWith(`"max_output_tokens":0`)), general, "max_output_tokens", "at least 1"},
		{"truncation", string(responsesWith(`"truncation":"some"`)), general, "truncation", "auto or disabled"},
		{"metadata", string(responsesWith(`"metadata":{"a":1}`)), general, "metadata.a", "want a string"},
		{"much metadata", string(responsesWith(`"metadata":{` + strings.ReplaceAll(manyFields(17), `{"a":1}`, `"v"`) + `}`)), general, "metadata", "at most 16"},
		{"long metadata", string(responsesWith(`"metadata":{"a":"` + strings.Repeat("x", 3000) + `"}`)), general, "metadata", "512"},
		{"stream_options", string(responsesWith(`"stream_options":1`)), general, "stream_options", ""},
		{"twice", string(responsesWith(`"input":"y"`)), general, "", "duplicate"},
	} {
		t.Run(r.name, func(t *testing.T) {
			_, err := DecodeResponses([]byte(r.body))
			mustFail(t, err, r.code, r.param, r.text)
		})
	}
}

func FuzzDecodeResponses(f *testing.F) {
	f.Add(responsesWith(`"instructions":"i","stream":true,"max_output_tokens":5,"metadata":{"a":"b"},"tools":[],"text":{"format":{"type":"text"},"verbosity":"low"}`))
	f.Add(responsesOf(`[{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_image"}]},{"type":"reasoning"},{"type":"message","role":"assistant","content":"b"}]`))
	f.Add(responsesOf(`[{"type":"function_call_output","output":"x"}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeResponses(body)
		if err != nil {
			checkFuzzError(t, err)
			return
		}
		prompt := req.Prompt()
		if req.Model == "" || !strings.HasSuffix(prompt, "\n\nassistant:") || !strings.HasPrefix(prompt, req.Affinity()) || req.Affinity() == "" {
			t.Errorf("model %q, prompt %q, affinity %q", req.Model, prompt, req.Affinity())
		}
		checkFuzzOptions(t, 1, req.Limits)
		reply := Reply{Kind: KindResponses, ID: "resp_1", Model: req.Model, Echo: req.Echo}
		var v Response
		if err := Decode(reply.Whole([]Choice{{Text: prompt}}, Usage{}), &v); err != nil || v.Output[0].Content[0].Text != prompt {
			t.Errorf("got %+v, %v", v, err)
		}
	})
}
