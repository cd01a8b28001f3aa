// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

// response returns a request for a response, changed by the changes.
func response(prompt string, changes ...func(*responses.ResponseNewParams)) responses.ResponseNewParams {
	p := responses.ResponseNewParams{Model: "acme/lab", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(prompt)}}
	for _, change := range changes {
		change(&p)
	}
	return p
}

// events reads a stream to its end: the pieces of its text, and its last event.
func events(p responses.ResponseNewParams) (got string, last responses.ResponseStreamEventUnion, err error) {
	s := client.Responses.NewStreaming(bg, p)
	for n := int64(0); s.Next(); n++ {
		last = s.Current()
		if last.SequenceNumber != n {
			return got, last, fmt.Errorf("event %d: %s", n, last.RawJSON())
		}
		if last.Type == "response.output_text.delta" {
			got += last.Delta
		}
	}
	return got, last, s.Err()
}

func respond() error {
	prompt, _ := lab("responses", "say", words)
	answer, err := client.Responses.New(bg, response(prompt, func(p *responses.ResponseNewParams) { p.Metadata = shared.Metadata{"a": "b"} }))
	if err != nil {
		return err
	}
	if err := check(answer.RawJSON(), answer.OutputText(), words, string(answer.Status), "completed", answer.Model, "acme/lab",
		answer.Metadata["a"], "b", answer.Usage.TotalTokens, answer.Usage.InputTokens+answer.Usage.OutputTokens); err != nil {
		return err
	}
	got, last, err := events(response(prompt))
	if err := errors.Join(err, check(last.RawJSON(), got, words, last.Type, "response.completed", last.Response.OutputText(), words)); err != nil {
		return err
	}
	long, _ := lab("responses", "line", strconv.Itoa(200<<10))
	got, last, err = events(response(long))
	if err := errors.Join(err, check(last.Type, got, strings.Repeat("x", 200<<10), last.Response.OutputText(), got)); err != nil {
		return err
	}
	if err := cutResponse(prompt); err != nil {
		return err
	}
	return notKept(answer)
}

// cutResponse wants a response to end at a number of tokens, streamed and not.
func cutResponse(prompt string) error {
	p := response(prompt, func(p *responses.ResponseNewParams) { p.MaxOutputTokens = openai.Int(3) })
	whole, err := client.Responses.New(bg, p)
	if err != nil {
		return err
	}
	got, last, err := events(p)
	return errors.Join(err, check(last.RawJSON(), string(whole.Status), "incomplete", whole.IncompleteDetails.Reason, "max_output_tokens",
		got != "" && got != words && strings.HasPrefix(words, got), true, whole.OutputText(), got, last.Type, "response.incomplete",
		last.Response.OutputText(), got))
}

// notKept goes on with an answer in each of the ways that want it kept, and in the
// one that does not.
func notKept(answer *responses.Response) error {
	prompt, file := lab("responses", "prompt")
	_, err := client.Responses.New(bg, response(prompt, func(p *responses.ResponseNewParams) { p.PreviousResponseID = openai.String(answer.ID) }))
	e, err := fails(err, 400, "unsupported_parameter")
	if err != nil {
		return err
	}
	if err := check(e, e.Param, "previous_response_id", len(file.runs()), 0); err != nil {
		return err
	}
	_, get := client.Responses.Get(bg, answer.ID, responses.ResponseGetParams{})
	_, cancel := client.Responses.Cancel(bg, answer.ID)
	for _, err := range []error{get, cancel, client.Responses.Delete(bg, answer.ID)} {
		if _, err := fails(err, 404, "not_found"); err != nil {
			return err
		}
	}
	was := param.Override[responses.ResponseOutputMessageParam](answer.Output[0])
	again, err := client.Responses.New(bg, response("", func(p *responses.ResponseNewParams) {
		p.Instructions = openai.String("Be brief.")
		p.Input = responses.ResponseNewParamsInputUnion{OfInputItemList: responses.ResponseInputParam{
			responses.ResponseInputItemParamOfMessage("Hello.", responses.EasyInputMessageRoleUser),
			{OfOutputMessage: &was},
			responses.ResponseInputItemParamOfMessage(prompt, responses.EasyInputMessageRoleUser),
		}}
	}))
	if err != nil {
		return err
	}
	return check("prompt", again.OutputText(), "system: Be brief.\n\nuser: Hello.\n\nassistant: "+words+"\n\nuser: "+prompt+"\n\nassistant:")
}

func respondDies() error {
	prompt, _ := lab("responses_die", "die")
	got, last, err := events(response(prompt, func(p *responses.ResponseNewParams) { p.Model = own }))
	if got == "" || err == nil || !strings.Contains(err.Error(), "worker_stream_failed") {
		return fmt.Errorf("after %q: %v", got, err)
	}
	return check(last.RawJSON(), last.Type, "response.failed", string(last.Response.Status), "failed")
}
