// SPDX-License-Identifier: Apache-2.0

// Drives a gateway with the official OpenAI client. The cases are those of
// python/openai_client.py.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/shared"
)

var cases = map[string]func() error{
	"models": models, "whole": whole, "stream": stream, "usage": usage, "completions": completions,
	"while_it_runs": whileItRuns, "choices": choices, "stop": stop, "max_tokens": maxTokens, "parts": parts,
	"roles": roles, "fields": fields, "errors": failures, "logins": logins, "no_access": noAccess,
	"silence": silence, "dies": dies, "killed": killed, "failover": failover, "moved": moved,
	"big_line": bigLine, "no_second_run": noSecondRun, "hang_up": hangUp, "reload": reload,
	"responses": respond, "responses_die": respondDies,
}

var (
	bg     = context.Background()
	client = openai.NewClient(option.WithBaseURL(baseURL), option.WithAPIKey(key), option.WithMaxRetries(0))
	eager  = openai.NewClient(option.WithBaseURL(baseURL), option.WithAPIKey(key)) // with its own retries
)

type (
	params = openai.ChatCompletionNewParams
	chunks = *ssestream.Stream[openai.ChatCompletionChunk]
)

// chat returns a request for the lab agent, changed by the changes.
func chat(prompt string, changes ...func(*params)) params {
	p := params{Model: "acme/lab", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)}}
	for _, change := range changes {
		change(&p)
	}
	return p
}

func model(name string) func(*params) { return func(p *params) { p.Model = name } }

func create(p params, opts ...option.RequestOption) (*openai.ChatCompletion, error) {
	return client.Chat.Completions.New(bg, p, opts...)
}

func streamed(p params, opts ...option.RequestOption) chunks {
	return client.Chat.Completions.NewStreaming(bg, p, opts...)
}

// only returns the text of the only choice, and why it ended.
func only(answer *openai.ChatCompletion, err error) (text, reason string, _ error) {
	if err != nil {
		return "", "", err
	}
	if len(answer.Choices) != 1 {
		return "", "", fmt.Errorf("%d choices", len(answer.Choices))
	}
	return answer.Choices[0].Message.Content, answer.Choices[0].FinishReason, nil
}

// text reads a stream of one choice to its end: its text, and why it ended.
func text(s chunks) (text, reason string, err error) {
	ids := map[string]bool{}
	for s.Next() {
		chunk := s.Current()
		ids[chunk.ID] = true
		switch {
		case len(chunk.Choices) != 1 || reason != "":
			return text, reason, fmt.Errorf("unexpected %s", chunk.RawJSON())
		case chunk.JSON.Usage.Raw() != "":
			return text, reason, fmt.Errorf("usage that nobody asked for: %s", chunk.RawJSON())
		}
		text += chunk.Choices[0].Delta.Content
		reason = chunk.Choices[0].FinishReason
	}
	if s.Err() == nil && (len(ids) != 1 || reason == "") {
		return text, reason, fmt.Errorf("%d ids, reason %q", len(ids), reason)
	}
	return text, reason, s.Err()
}

// fails wants an error of the gateway, and returns it.
func fails(err error, status int, code string) (*openai.Error, error) {
	var e *openai.Error
	if !errors.As(err, &e) {
		return nil, fmt.Errorf("got %v, want an error of the gateway with status %d", err, status)
	}
	if e.Response.Header.Get("X-Request-Id") == "" {
		return nil, fmt.Errorf("no request id in %v", e)
	}
	return e, check(e, e.StatusCode, status, e.Code, code)
}

// failsBoth wants an error of a request, streamed and not.
func failsBoth(p params, status int, code string) error {
	_, err := create(p)
	_, err = fails(err, status, code)
	if err != nil {
		return err
	}
	_, _, err = text(streamed(p))
	_, err = fails(err, status, code)
	return err
}

func models() error {
	list, err := client.Models.List(bg)
	if err != nil {
		return err
	}
	if len(list.Data) < 2 {
		return fmt.Errorf("%d models", len(list.Data))
	}
	ids := []string{"acme/lab"}
	for _, m := range list.Data {
		ids = append(ids, m.ID)
	}
	for _, id := range ids {
		found, err := client.Models.Get(bg, id)
		if err != nil {
			return err
		}
		if err := check(found, found.ID, id); err != nil {
			return err
		}
	}
	_, err = client.Models.Get(bg, "no/such model")
	_, err = fails(err, 404, "model_not_found")
	return err
}

func whole() error {
	prompt, _ := lab("whole", "say", words)
	var resp *http.Response
	answer, err := create(chat(prompt), option.WithResponseInto(&resp))
	got, reason, err := only(answer, err)
	if err != nil {
		return err
	}
	return check(answer, got, words, reason, "stop", string(answer.Object), "chat.completion", answer.Model, "acme/lab",
		answer.Usage.TotalTokens > 0, true, resp.Header.Get("X-Request-Id") != "", true, resp.Header.Get("X-AgentFM-Attempts"), "1")
}

func stream() error {
	prompt, _ := lab("stream", "say", words)
	got, reason, err := text(streamed(chat(prompt)))
	if err != nil {
		return err
	}
	var all openai.ChatCompletionAccumulator
	s := streamed(chat(prompt))
	for s.Next() {
		if !all.AddChunk(s.Current()) {
			return fmt.Errorf("a chunk that does not fit: %s", s.Current().RawJSON())
		}
	}
	return errors.Join(s.Err(), check("stream", got, words, reason, "stop", all.Choices[0].Message.Content, words))
}

func usage() error {
	prompt, _ := lab("usage", "say", words)
	s := streamed(chat(prompt, func(p *params) { p.StreamOptions.IncludeUsage = openai.Bool(true) }))
	var all []openai.ChatCompletionChunk
	for s.Next() {
		all = append(all, s.Current())
	}
	if s.Err() != nil || len(all) < 3 {
		return fmt.Errorf("%d chunks: %w", len(all), s.Err())
	}
	for _, chunk := range all[:len(all)-1] {
		if err := check(chunk.RawJSON(), chunk.JSON.Usage.Raw(), "null", len(chunk.Choices), 1); err != nil {
			return err
		}
	}
	last := all[len(all)-1]
	return check(last.RawJSON(), len(last.Choices), 0, last.Usage.TotalTokens > 0, true)
}

func completions() error {
	prompt, _ := lab("completions", "say", words)
	for _, form := range []openai.CompletionNewParamsPromptUnion{
		{OfString: openai.String(prompt)},
		{OfArrayOfStrings: []string{prompt}},
	} {
		p := openai.CompletionNewParams{Model: "acme/lab", Prompt: form}
		answer, err := client.Completions.New(bg, p)
		if err != nil {
			return err
		}
		var got, reason string
		s := client.Completions.NewStreaming(bg, p)
		for s.Next() {
			got += s.Current().Choices[0].Text
			reason = string(s.Current().Choices[0].FinishReason)
		}
		if err := errors.Join(s.Err(), check(answer, string(answer.Object), "text_completion", answer.Choices[0].Text, words, got, words, reason, "stop")); err != nil {
			return err
		}
	}
	return nil
}

func whileItRuns() error {
	prompt, _ := lab("while_it_runs", "gate", name)
	got := ""
	s := streamed(chat(prompt))
	for s.Next() {
		if got += s.Current().Choices[0].Delta.Content; got != "" { // without this the agent would wait for ever
			if err := os.WriteFile(filepath.Join(state, name), nil, 0o600); err != nil {
				return err
			}
		}
	}
	return errors.Join(s.Err(), check("stream", got, "first\nsecond\n"))
}

func choices() error {
	prompt, file := lab("choices", "say", words)
	two := chat(prompt, func(p *params) { p.N = openai.Int(2) })
	answer, err := create(two)
	if err != nil {
		return err
	}
	if err := check(answer, len(answer.Choices), 2, answer.Choices[0].Message.Content, words,
		answer.Choices[1].Message.Content, words, answer.Choices[1].Index, int64(1), len(file.runs()), 2); err != nil {
		return err
	}
	texts := make(map[int64]string)
	s := streamed(two)
	for s.Next() {
		for _, choice := range s.Current().Choices {
			texts[choice.Index] += choice.Delta.Content
		}
	}
	return errors.Join(s.Err(), check("stream", texts, map[int64]string{0: words, 1: words}))
}

func stop() error {
	prompt, _ := lab("stop", "say", words)
	for _, stops := range []openai.ChatCompletionNewParamsStopUnion{
		{OfString: openai.String(" four")},
		{OfStringArray: []string{" nine", " four"}},
	} {
		if err := cut(chat(prompt, func(p *params) { p.Stop = stops }), "one two three", "stop"); err != nil {
			return err
		}
	}
	return nil
}

// cut wants a text and a reason, streamed and not.
func cut(p params, wantText, wantReason string) error {
	got, reason, err := only(create(p))
	if err := errors.Join(err, check(p.Model, got, wantText, reason, wantReason)); err != nil {
		return err
	}
	got, reason, err = text(streamed(p))
	return errors.Join(err, check(p.Model, got, wantText, reason, wantReason))
}

func maxTokens() error {
	prompt, _ := lab("max_tokens", "say", words)
	for _, change := range []func(*params){
		func(p *params) { p.MaxTokens = openai.Int(3) },
		func(p *params) { p.MaxCompletionTokens = openai.Int(3) },
	} {
		p := chat(prompt, change)
		got, _, err := only(create(p))
		if err != nil {
			return err
		}
		if got == "" || got == words || !strings.HasPrefix(words, got) {
			return fmt.Errorf("got %q", got)
		}
		if err := cut(p, got, "length"); err != nil {
			return err
		}
	}
	return nil
}

func parts() error {
	prompt, _ := lab("parts", "prompt")
	content := []openai.ChatCompletionContentPartUnionParam{
		openai.TextContentPart("Über 100 % of \\n it!"), openai.TextContentPart(prompt),
	}
	p := chat("", func(p *params) { p.Messages[0] = openai.UserMessage(content) })
	got, _, err := only(create(p))
	if err := errors.Join(err, check(p.Model, got, "user: Über 100 % of \\n it!\n"+prompt+"\n\nassistant:")); err != nil {
		return err
	}
	image := openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64,AA=="})
	_, err = create(chat("", func(p *params) { p.Messages[0] = openai.UserMessage(append(content, image)) }))
	e, err := fails(err, 400, "unsupported_prompt_type")
	if err != nil {
		return err
	}
	return check(e, e.Param, "messages[0].content[2].type")
}

func roles() error {
	prompt, _ := lab("roles", "prompt")
	call := openai.ChatCompletionMessageToolCallUnionParam{OfFunction: &openai.ChatCompletionMessageFunctionToolCallParam{
		ID: "call_1", Function: openai.ChatCompletionMessageFunctionToolCallFunctionParam{Name: "add", Arguments: "{}"},
	}}
	p := chat("", func(p *params) {
		p.Messages = []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("Be brief."), openai.DeveloperMessage("Be kind."), openai.UserMessage("Add."),
			{OfAssistant: &openai.ChatCompletionAssistantMessageParam{ToolCalls: []openai.ChatCompletionMessageToolCallUnionParam{call}}},
			openai.ToolMessage("42", "call_1"), openai.UserMessage(prompt),
		}
	})
	got, _, err := only(create(p))
	for _, paragraph := range []string{"system: Be brief.", "developer: Be kind.", "user: Add.", "tool: 42"} {
		if err == nil && !strings.Contains(got, paragraph+"\n\n") {
			err = fmt.Errorf("no %q in %q", paragraph, got)
		}
	}
	return err
}

func fields() error {
	for field, change := range map[string]func(*params){
		"tools": func(p *params) {
			p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
				Name: "add", Parameters: shared.FunctionParameters{"type": "object", "properties": map[string]any{}},
			})}
		},
		"response_format": func(p *params) {
			p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
				JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "x", Schema: map[string]any{"type": "object"}},
			}
		},
		"logprobs": func(p *params) { p.Logprobs = openai.Bool(true) },
	} {
		prompt, file := lab("fields", "say", "x")
		p := chat(prompt, change)
		_, whole := create(p)
		_, _, stream := text(streamed(p))
		for _, err := range []error{whole, stream} {
			var e *openai.Error
			if !errors.As(err, &e) {
				return fmt.Errorf("%s: %v", field, err)
			}
			if err := check(e, e.StatusCode, 400, e.Param, field, e.Type, "invalid_request_error", len(file.runs()), 0); err != nil {
				return err
			}
		}
	}
	prompt, _ := lab("fields", "say", "x")
	got, _, err := only(create(chat(prompt, func(p *params) {
		p.Temperature, p.TopP, p.Seed, p.User = openai.Float(0), openai.Float(1), openai.Int(1), openai.String("me")
		p.SetExtraFields(map[string]any{"chat_id": 1})
	})))
	return errors.Join(err, check("sampling", got, "x"))
}

func failures() error {
	if err := errors.Join(
		failsBoth(chat("", model("nobody")), 404, "model_not_found"),
		failsBoth(chat("", model("full")), 503, "mesh_overloaded"),
		failsBoth(chat("", func(p *params) { p.Messages = []openai.ChatCompletionMessageParamUnion{} }), 400, "prompt_required"),
		failsBoth(chat("", model(" ")), 400, "model_required"),
	); err != nil {
		return err
	}
	_, err := client.Models.List(bg, option.WithAPIKey("not-the-key-of-this-gateway"))
	_, err = fails(err, 401, "invalid_api_key")
	return err
}

func logins() error {
	for range 31 {
		_, err := client.Models.List(bg, option.WithAPIKey("not-the-key-of-this-gateway"))
		if _, err := fails(err, 401, "invalid_api_key"); err == nil {
			continue
		}
		e, err := fails(err, 429, "rate_limited")
		if err != nil {
			return err
		}
		seconds, err := strconv.Atoi(e.Response.Header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 60 {
			return fmt.Errorf("Retry-After %d, %v", seconds, err)
		}
		return nil
	}
	return errors.New("31 failed logins in a minute")
}

func noAccess() error {
	list, err := client.Models.List(bg)
	if err != nil {
		return err
	}
	for _, m := range list.Data {
		if strings.Contains(m.RawJSON(), "acme/lab") {
			return fmt.Errorf("listed: %s", m.RawJSON())
		}
	}
	prompt, _ := lab("no_access", "say", "x")
	_, whole := create(chat(prompt))
	_, _, stream := text(streamed(chat(prompt)))
	_, get := client.Models.Get(bg, "acme/lab")
	for _, err := range []error{whole, stream, get} {
		var e *openai.Error
		if !errors.As(err, &e) || e.StatusCode != 403 && e.StatusCode != 404 {
			return fmt.Errorf("got %v", err)
		}
	}
	prompt, _ = lab("no_access", "say", "x")
	return cutOnce(chat(prompt, model("other")), "x")
}

// cutOnce wants a text of an answer that is not streamed.
func cutOnce(p params, want string) error {
	got, _, err := only(create(p))
	return errors.Join(err, check(p.Model, got, want))
}

func silence() error {
	prompt, _ := lab("silence", "silence", silent)
	got, reason, err := text(streamed(chat(prompt)))
	if err := errors.Join(err, check("chat", got, "first\nsecond\n", reason, "stop")); err != nil {
		return err
	}
	prompt, _ = lab("silence", "silence", silent)
	got = ""
	s := client.Completions.NewStreaming(bg, openai.CompletionNewParams{
		Model: "acme/lab", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String(prompt)},
	})
	for s.Next() {
		got += s.Current().Choices[0].Text
	}
	if err := errors.Join(s.Err(), check("completion", got, "first\nsecond\n")); err != nil {
		return err
	}
	prompt, _ = lab("silence", "silence", silent)
	got, _, err = events(response(prompt))
	return errors.Join(err, check("response", got, "first\nsecond\n"))
}

// broken reads a stream that must end in an error after its text.
func broken(s chunks, file runsFile) error {
	got := ""
	for s.Next() {
		choice := s.Current().Choices[0]
		if choice.FinishReason != "" {
			return fmt.Errorf("ended with reason %s", choice.FinishReason)
		}
		if got += choice.Delta.Content; got != "" {
			if err := os.WriteFile(string(file)+".begun", nil, 0o600); err != nil {
				return err
			}
		}
	}
	if got == "" || s.Err() == nil || !strings.Contains(s.Err().Error(), "worker_stream_failed") {
		return fmt.Errorf("after %q: %v", got, s.Err())
	}
	return nil
}

func dies() error {
	prompt, file := lab("dies", "die")
	if err := broken(streamed(chat(prompt, model(own))), file); err != nil {
		return err
	}
	_, err := create(chat(prompt, model(own)))
	_, err = fails(err, 502, "worker_stream_failed")
	return err
}

func killed() error {
	prompt, file := lab("killed", "gate", "never")
	return broken(streamed(chat(prompt)), file)
}

func failover() error {
	for _, command := range []string{"fail-once", "kill-once"} {
		for _, stream := range []bool{false, true} {
			prompt, file := lab("failover", command)
			var resp *http.Response
			p, into := chat(prompt, model(pair)), option.WithResponseInto(&resp)
			var got string
			var err error
			if stream {
				got, _, err = text(streamed(p, into))
			} else {
				got, _, err = only(create(p, into))
			}
			if err != nil {
				return err
			}
			var workers []string
			for _, run := range file.runs() {
				workers = append(workers, strings.Fields(run)[1])
			}
			slices.Sort(workers)
			if err := check(got, strings.HasPrefix(got, "served by "), true, resp.Header.Get("X-AgentFM-Attempts"), "2",
				workers, []string{"one", "two"}); err != nil {
				return err
			}
		}
	}
	return nil
}

func moved() error {
	prompt, _ := lab("moved", "hold", "moved")
	var resp *http.Response
	got, _, err := only(create(chat(prompt), option.WithResponseInto(&resp)))
	if err != nil {
		return err
	}
	return check("answer", got, "held by second", resp.Header.Get("X-AgentFM-Attempts"), "2")
}

func bigLine() error {
	prompt, _ := lab("big_line", "line", strconv.Itoa(200<<10))
	return cut(chat(prompt), strings.Repeat("x", 200<<10), "stop")
}

func noSecondRun() error {
	for _, stream := range []bool{false, true} {
		prompt, file := lab("no_second_run", "fail")
		var err error
		if stream {
			_, _, err = text(eager.Chat.Completions.NewStreaming(bg, chat(prompt, model(own))))
		} else {
			_, err = eager.Chat.Completions.New(bg, chat(prompt, model(own)))
		}
		e, err := fails(err, 502, "worker_stream_failed")
		if err != nil {
			return err
		}
		if err := check(e, e.Response.Header.Get("X-Should-Retry"), "false", len(file.runs()), 1); err != nil {
			return err
		}
	}
	return nil
}

func hangUp() error {
	for _, stream := range []bool{false, true} { // before the first byte
		prompt, file := lab("hang_up", "stay")
		ctx, cancel := context.WithTimeout(bg, time.Minute)
		ended := make(chan error, 1)
		go func() {
			var err error
			if stream {
				_, _, err = text(client.Chat.Completions.NewStreaming(ctx, chat(prompt)))
			} else {
				_, err = client.Chat.Completions.New(ctx, chat(prompt))
			}
			ended <- err
		}()
		err := file.awaitStart()
		cancel()
		if err != nil {
			return err
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return fmt.Errorf("got %v", err)
		}
		if err := file.awaitEnd(); err != nil {
			return err
		}
	}
	prompt, file := lab("hang_up", "drip")
	s := streamed(chat(prompt))
	if !s.Next() {
		return s.Err()
	}
	if err := errors.Join(file.awaitStart(), s.Close()); err != nil {
		return err
	}
	return file.awaitEnd()
}

func reload() error {
	prompt, _ := lab("reload", "gate", "reloaded")
	got, reason, err := text(streamed(chat(prompt)))
	return errors.Join(err, check("stream", got, "first\nsecond\n", reason, "stop"))
}
