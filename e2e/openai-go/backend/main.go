// SPDX-License-Identifier: Apache-2.0

// Compares the answers of two OpenAI-compatible servers with the official OpenAI
// client. The cases, and the command line, are those of
// python/backend_openai_client.py.
package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

var cases = []struct {
	name string
	run  func(*server) error
}{
	{"models", models}, {"chat", chat}, {"stream", stream}, {"usage", usage}, {"tools", tools},
	{"tools_streamed", toolsStreamed}, {"tool_result", toolResult}, {"json_schema", jsonSchema},
	{"json_schema_streamed", jsonSchemaStreamed}, {"embeddings", embeddings}, {"completions", completions},
	{"completions_streamed", completionsStreamed}, {"responses", response}, {"responses_streamed", responseStreamed},
	{"errors", failures},
}

// httpClient uses no connection twice: llama.cpp's server closes one after a
// stream, and does not say so.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: backend KEY URL MODEL URL MODEL")
		os.Exit(2)
	}
	status := 0
	for _, c := range cases {
		var answers [2]string
		var err error
		for i := range answers {
			s := &server{model: os.Args[2*i+3]}
			s.Client = openai.NewClient(option.WithBaseURL(os.Args[2*i+2]), option.WithAPIKey(os.Args[1]),
				option.WithMaxRetries(0), option.WithHTTPClient(httpClient))
			if err = c.run(s); err != nil {
				err = fmt.Errorf("server %d: %w", i+1, err)
				break
			}
			answers[i] = passing.ReplaceAllString(strings.Join(s.answers, "\n"), "")
		}
		if err == nil && answers[0] != answers[1] {
			err = fmt.Errorf("got\n%s\nwant\n%s", answers[1], answers[0])
		}
		if err != nil {
			fmt.Printf("%v\n== failed %s\n", err, c.name)
			status = 1
			continue
		}
		fmt.Println("== ok", c.name)
	}
	os.Exit(status)
}

// passing is what may differ between the answers.
var passing = regexp.MustCompile(
	`"(?:id|item_id|call_id)":"[^"]*"|"(?:created|created_at|completed_at)":\d+|"timings":\{[^{}]*\}`)

// server is one of the two, and its answers in a case.
type server struct {
	openai.Client
	model   string
	answers []string
}

func (s *server) note(answers ...interface{ RawJSON() string }) {
	for _, a := range answers {
		s.answers = append(s.answers, a.RawJSON())
	}
}

var (
	bg    = context.Background()
	story = "Tell me a story."

	weather = shared.FunctionParameters{
		"type": "object",
		"properties": map[string]any{
			"city": map[string]any{"enum": []string{"Rome", "Oslo"}},
			"days": map[string]any{"type": "integer", "minimum": 1, "maximum": 9},
			"note": map[string]any{"type": "string", "maxLength": 12},
		},
		"required":             []string{"city", "days", "note"},
		"additionalProperties": false,
	}
	zone = shared.FunctionParameters{
		"type":       "object",
		"properties": map[string]any{"zone": map[string]any{"enum": []string{"UTC", "CET"}}},
		"required":   []string{"zone"},
	}
	toolbox = []openai.ChatCompletionToolUnionParam{
		openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "weather", Parameters: weather}),
		openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "time", Parameters: zone}),
	}
)

type params = openai.ChatCompletionNewParams

func (s *server) request(changes ...func(*params)) params {
	p := params{
		Model:       s.model,
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage(story)},
		Temperature: openai.Float(0),
		Seed:        openai.Int(1),
	}
	for _, change := range changes {
		change(&p)
	}
	return p
}

// ask returns the answer, which has one choice.
func (s *server) ask(changes ...func(*params)) (openai.ChatCompletionChoice, *openai.ChatCompletion, error) {
	answer, err := s.Chat.Completions.New(bg, s.request(changes...))
	if err != nil {
		return openai.ChatCompletionChoice{}, nil, err
	}
	s.note(answer)
	return answer.Choices[0], answer, nil
}

// stream returns the pieces of an answer, and the whole.
func (s *server) stream(changes ...func(*params)) ([]openai.ChatCompletionChunk, *openai.ChatCompletion, error) {
	chunks, err := collect(s, s.Chat.Completions.NewStreaming(bg, s.request(changes...)))
	var sum openai.ChatCompletionAccumulator
	for _, chunk := range chunks {
		if err == nil && !sum.AddChunk(chunk) {
			err = fmt.Errorf("no sum with %s", chunk.RawJSON())
		}
	}
	return chunks, &sum.ChatCompletion, err
}

func collect[T interface{ RawJSON() string }](s *server, stream *ssestream.Stream[T]) ([]T, error) {
	var items []T
	for stream.Next() {
		items = append(items, stream.Current())
		s.note(stream.Current())
	}
	return items, stream.Err()
}

func want(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("unexpected "+format, args...)
}

func withTools(p *params) {
	p.Tools = toolbox
	p.ToolChoice.OfAuto = openai.String("required")
}

func oneCall(p *params) {
	withTools(p)
	p.ParallelToolCalls = openai.Bool(false)
}

func withSchema(p *params) {
	p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "report", Schema: weather, Strict: openai.Bool(true)},
	}
}

// checkCall wants the arguments of a call of one of the tools.
func checkCall(name, arguments string) error {
	var args struct {
		City, Zone string
		Days       int
	}
	if err := json.Unmarshal([]byte(arguments), &args); err != nil {
		return fmt.Errorf("%w in %s", err, arguments)
	}
	ok := name == "time" && slices.Contains([]string{"UTC", "CET"}, args.Zone) ||
		name == "weather" && slices.Contains([]string{"Rome", "Oslo"}, args.City) && args.Days > 0
	return want(ok, "%s %s", name, arguments)
}

func checkOneCall(answer *openai.ChatCompletion) error {
	choice := answer.Choices[0]
	if len(choice.Message.ToolCalls) != 1 || choice.FinishReason != "tool_calls" {
		return fmt.Errorf("unexpected %s", answer.RawJSON())
	}
	call := choice.Message.ToolCalls[0].Function
	return checkCall(call.Name, call.Arguments)
}

func models(s *server) error {
	pages := s.Models.ListAutoPaging(bg)
	for pages.Next() {
		// A gateway lists its workers, and what they run.
		m := pages.Current()
		if engine := m.JSON.ExtraFields["agentfm_engine"]; m.ID == s.model || engine.Raw() == strconv.Quote(s.model) {
			return nil
		}
	}
	return errors.Join(pages.Err(), fmt.Errorf("no model %s", s.model))
}

func chat(s *server) error {
	choice, answer, err := s.ask()
	if err != nil {
		return err
	}
	if choice.Message.Content == "" || choice.FinishReason != "stop" {
		return fmt.Errorf("unexpected %s", answer.RawJSON())
	}
	_, answer, err = s.ask(func(p *params) {
		p.N, p.MaxTokens = openai.Int(2), openai.Int(9)
		p.Logprobs, p.TopLogprobs = openai.Bool(true), openai.Int(2)
		p.Stop.OfStringArray = []string{"e"}
	})
	if err != nil {
		return err
	}
	return want(len(answer.Choices) == 2, "%s", answer.RawJSON())
}

func stream(s *server) error {
	chunks, sum, err := s.stream()
	if err != nil {
		return err
	}
	choice, _, err := s.ask()
	if err != nil {
		return err
	}
	text := sum.Choices[0].Message.Content
	return want(len(chunks) > 3 && text == choice.Message.Content && sum.Usage.TotalTokens == 0, "%q", text)
}

func usage(s *server) error {
	_, sum, err := s.stream(func(p *params) { p.StreamOptions.IncludeUsage = openai.Bool(true) })
	if err != nil {
		return err
	}
	_, answer, err := s.ask()
	if err != nil {
		return err
	}
	got, whole := sum.Usage, answer.Usage
	return want(got.PromptTokens == whole.PromptTokens && got.CompletionTokens == whole.CompletionTokens &&
		got.TotalTokens == whole.TotalTokens && got.TotalTokens > 0, "%+v", got)
}

func tools(s *server) error {
	_, answer, err := s.ask(oneCall)
	if err != nil {
		return err
	}
	if err := checkOneCall(answer); err != nil {
		return err
	}
	_, _, err = s.ask(withTools)
	return err
}

func toolsStreamed(s *server) error {
	_, sum, err := s.stream(oneCall)
	if err != nil {
		return err
	}
	if err := checkOneCall(sum); err != nil {
		return err
	}
	_, sum, err = s.stream(withTools)
	if err != nil {
		return err
	}
	return want(len(sum.Choices[0].Message.ToolCalls) > 1, "%+v", sum.Choices)
}

func toolResult(s *server) error {
	_, _, err := s.ask(func(p *params) {
		var asked openai.ChatCompletionAssistantMessageParam
		asked.ToolCalls = []openai.ChatCompletionMessageToolCallUnionParam{{
			OfFunction: &openai.ChatCompletionMessageFunctionToolCallParam{
				ID:       "call_1",
				Function: openai.ChatCompletionMessageFunctionToolCallFunctionParam{Name: "weather", Arguments: `{"city":"Rome"}`},
			},
		}}
		p.Messages = append(p.Messages, openai.ChatCompletionMessageParamUnion{OfAssistant: &asked},
			openai.ToolMessage("Sun, 25 °C", "call_1"))
		p.Tools = toolbox
	})
	return err
}

func jsonSchema(s *server) error {
	choice, _, err := s.ask(withSchema)
	if err != nil {
		return err
	}
	return checkCall("weather", choice.Message.Content)
}

func jsonSchemaStreamed(s *server) error {
	_, sum, err := s.stream(withSchema)
	if err != nil {
		return err
	}
	return checkCall("weather", sum.Choices[0].Message.Content)
}

func embeddings(s *server) error {
	p := openai.EmbeddingNewParams{Model: s.model}
	p.Input.OfArrayOfStrings = []string{"one", "two three"}
	plain, err := s.Embeddings.New(bg, p)
	if err != nil {
		return err
	}
	s.note(plain)
	p.EncodingFormat = openai.EmbeddingNewParamsEncodingFormatFloat
	floats, err := s.Embeddings.New(bg, p)
	if err != nil {
		return err
	}
	s.note(floats)
	p.EncodingFormat = openai.EmbeddingNewParamsEncodingFormatBase64
	var coded struct { // the client has no type for it
		Data []struct{ Embedding string }
	}
	if err := s.Post(bg, "embeddings", p, &coded); err != nil {
		return err
	}
	if len(coded.Data) != 2 || len(floats.Data) != 2 || len(plain.Data) != 2 {
		return fmt.Errorf("unexpected %s", plain.RawJSON())
	}
	for i, d := range coded.Data {
		s.answers = append(s.answers, d.Embedding)
		packed, err := base64.StdEncoding.DecodeString(d.Embedding)
		if err != nil {
			return err
		}
		same := len(packed) == 4*len(floats.Data[i].Embedding) && len(packed) > 9
		for n, x := range floats.Data[i].Embedding {
			same = same && math.Abs(float64(math.Float32frombits(binary.LittleEndian.Uint32(packed[4*n:])))-x) < 1e-6
		}
		if !same || !slices.Equal(plain.Data[i].Embedding, floats.Data[i].Embedding) {
			return fmt.Errorf("unexpected %s: %v", d.Embedding, floats.Data[i].Embedding)
		}
	}
	return nil
}

func (s *server) completion() openai.CompletionNewParams {
	p := openai.CompletionNewParams{Model: openai.CompletionNewParamsModel(s.model), Temperature: openai.Float(0), Seed: openai.Int(1)}
	p.Prompt.OfString = openai.String("Once upon a time")
	return p
}

func completions(s *server) error {
	answer, err := s.Completions.New(bg, s.completion())
	if err != nil {
		return err
	}
	s.note(answer)
	return want(answer.Choices[0].Text != "" && answer.Usage.CompletionTokens > 0, "%s", answer.RawJSON())
}

func completionsStreamed(s *server) error {
	chunks, err := collect(s, s.Completions.NewStreaming(bg, s.completion()))
	if err != nil {
		return err
	}
	answer, err := s.Completions.New(bg, s.completion())
	if err != nil {
		return err
	}
	text := ""
	for _, chunk := range chunks {
		text += chunk.Choices[0].Text
	}
	return want(text == answer.Choices[0].Text && len(chunks) > 3, "%q", text)
}

func (s *server) response() responses.ResponseNewParams {
	p := responses.ResponseNewParams{Model: s.model, Temperature: openai.Float(0)}
	p.Input.OfString = openai.String(story)
	return p
}

func (s *server) responseCall() responses.ResponseNewParams {
	p := s.response()
	p.Tools = []responses.ToolUnionParam{responses.ToolParamOfFunction("time", zone, true)}
	p.ToolChoice.OfToolChoiceMode = param.NewOpt(responses.ToolChoiceOptionsRequired)
	p.ParallelToolCalls = openai.Bool(false)
	return p
}

func response(s *server) error {
	answer, err := s.Responses.New(bg, s.response())
	if err != nil {
		return err
	}
	s.note(answer)
	if answer.OutputText() == "" || answer.Usage.OutputTokens == 0 || answer.Status != "completed" {
		return fmt.Errorf("unexpected %s", answer.RawJSON())
	}
	answer, err = s.Responses.New(bg, s.responseCall())
	if err != nil {
		return err
	}
	s.note(answer)
	for _, item := range answer.Output {
		if item.Type == "function_call" {
			return checkCall(item.Name, item.AsFunctionCall().Arguments)
		}
	}
	return fmt.Errorf("no call in %s", answer.RawJSON())
}

func responseStreamed(s *server) error {
	events, err := collect(s, s.Responses.NewStreaming(bg, s.response()))
	if err != nil {
		return err
	}
	answer, err := s.Responses.New(bg, s.response())
	if err != nil {
		return err
	}
	text := ""
	for _, event := range events {
		if event.Type == "response.output_text.delta" {
			text += event.Delta
		}
	}
	if text != answer.OutputText() || events[len(events)-1].Type != "response.completed" {
		return fmt.Errorf("unexpected %q", text)
	}
	_, err = collect(s, s.Responses.NewStreaming(bg, s.responseCall()))
	return err
}

func failures(s *server) error {
	wrong := option.WithJSONSet("response_format.type", "xml")
	_, err := s.Chat.Completions.New(bg, s.request(), wrong)
	_, streamErr := collect(s, s.Chat.Completions.NewStreaming(bg, s.request(), wrong))
	p := openai.EmbeddingNewParams{Model: s.model, EncodingFormat: "hex"}
	p.Input.OfString = openai.String("x")
	_, embeddingErr := s.Embeddings.New(bg, p)
	_, responseErr := s.Responses.New(bg, s.response(), option.WithJSONSet("input", 7))
	for _, err := range []error{err, streamErr, embeddingErr, responseErr} {
		var e *openai.Error
		if !errors.As(err, &e) || e.StatusCode != 400 || e.Message == "" {
			return fmt.Errorf("got %v, want an error of the server", err)
		}
		s.answers = append(s.answers, fmt.Sprint(e.StatusCode, e.Code, e.Param, e.Type, e.Message, e.RawJSON()))
	}
	return nil
}
