// SPDX-License-Identifier: Apache-2.0

package openai

import "github.com/go-json-experiment/json/jsontext"

// ObjectResponse is the "object" of a [Response].
const ObjectResponse = "response"

// Values of the field "status" of a [Response] and of its message.
const (
	StatusInProgress = "in_progress"
	StatusCompleted  = "completed"
	StatusIncomplete = "incomplete" // it has as many tokens as it may
	StatusFailed     = "failed"
)

// Response is an answer to a [ResponsesRequest].
type Response struct {
	ID                 string             `json:"id"`
	Object             string             `json:"object"`
	CreatedAt          int64              `json:"created_at"` // Unix seconds
	Status             string             `json:"status"`
	Background         bool               `json:"background"` // always false
	Error              *ResponseError     `json:"error"`
	IncompleteDetails  *IncompleteDetails `json:"incomplete_details"`
	Model              string             `json:"model"`
	Output             []OutputMessage    `json:"output"`
	PreviousResponseID *string            `json:"previous_response_id"` // always null
	Store              bool               `json:"store"`                // always false
	Tools              []jsontext.Value   `json:"tools"`                // always empty
	Usage              *ResponseUsage     `json:"usage"`                // null until the end
	Echo

	PeerID string `json:"agentfm_peer_id,omitzero"` // in events only
	TaskID string `json:"agentfm_task_id,omitzero"`
}

// ResponseError says why a [Response] failed.
type ResponseError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// IncompleteDetails says why a [Response] is not complete.
type IncompleteDetails struct {
	Reason string `json:"reason"`
}

// OutputMessage is the message of a [Response].
type OutputMessage struct {
	ID      string       `json:"id"`
	Type    string       `json:"type"`
	Status  string       `json:"status"`
	Role    string       `json:"role"`
	Content []OutputText `json:"content"`
}

// OutputText is the content of an [OutputMessage].
type OutputText struct {
	Type        string           `json:"type"`
	Text        string           `json:"text"`
	Annotations []jsontext.Value `json:"annotations"` // always empty
	LogProbs    []jsontext.Value `json:"logprobs"`    // always empty
}

// ResponseUsage counts tokens, as [Usage] does.
type ResponseUsage struct {
	InputTokens        int `json:"input_tokens"`
	InputTokensDetails struct {
		CacheWriteTokens int `json:"cache_write_tokens"`
		CachedTokens     int `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	OutputTokens        int `json:"output_tokens"`
	OutputTokensDetails struct {
		ReasoningTokens int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	TotalTokens int `json:"total_tokens"`
	// Estimated says that we counted, and not the agent's model.
	Estimated bool `json:"agentfm_estimated,omitzero"`
}

// response returns the answer without its output.
func (r Reply) response(status string) Response {
	return Response{
		ID: r.ID, Object: ObjectResponse, CreatedAt: r.Created, Status: status, Model: r.Model, Echo: r.Echo.complete(),
	}
}

// message returns the message of the answer.
func (r Reply) message(status string, content ...OutputText) OutputMessage {
	return OutputMessage{ID: itemID(r.ID), Type: "message", Status: status, Role: "assistant", Content: content}
}

// outputText returns the text of a message.
func outputText(text string) OutputText { return OutputText{Type: "output_text", Text: text} }

// ended returns the answer that a choice makes.
func (r Reply) ended(c Choice, u Usage) Response {
	status := statusOf(c.FinishReason)
	response := r.response(status)
	if status == StatusIncomplete {
		response.IncompleteDetails = &IncompleteDetails{Reason: "max_output_tokens"}
	}
	response.Output = []OutputMessage{r.message(status, outputText(c.Text))}
	response.Usage = &ResponseUsage{
		InputTokens: u.PromptTokens, OutputTokens: u.CompletionTokens, TotalTokens: u.TotalTokens, Estimated: u.Estimated,
	}
	return response
}

// statusOf returns the status of an answer that ended for this reason.
func statusOf(finishReason string) string {
	if finishReason == FinishLength {
		return StatusIncomplete
	}
	return StatusCompleted
}
