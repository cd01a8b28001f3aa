// SPDX-License-Identifier: Apache-2.0

package openai

// Values of the field "finish_reason".
const (
	FinishStop   = "stop"   // the agent ended the answer itself, or a stop sequence did
	FinishLength = "length" // the answer has as many tokens as it may
)

// Text turns an agent's output into the text of one choice: valid UTF-8, that ends
// where the limits of the request say. All of it together is the same however
// the output was split. A Text is for one goroutine at a time.
type Text struct {
	cutter Cutter
	stops  *stopper // nil without stop sequences
	budget *budget  // nil without a limit of tokens
	meter  *meter   // nil when nobody asks for Tokens, or the budget knows
	done   bool
	reason string
}

// NewText returns a Text with these limits. With count it counts its tokens;
// without count and limits it costs no more than a [Cutter].
func NewText(l Limits, count bool) *Text {
	t := &Text{reason: FinishStop}
	if len(l.Stop) > 0 {
		t.stops = &stopper{stops: l.Stop}
	}
	switch {
	case l.MaxTokens > 0:
		t.budget = &budget{left: l.MaxTokens}
	case count:
		t.meter = new(meter)
	}
	return t
}

// Next adds p to the output and returns the text that is certain with it. Once
// a limit was reached it returns nothing more; see Done.
func (t *Text) Next(p []byte) string { return t.limit(t.cutter.Next(p), false) }

// Rest returns the text that was held back, when the output has ended.
func (t *Text) Rest() string { return t.limit(t.cutter.Rest(), true) }

// limit takes text through the limits.
func (t *Text) limit(s string, end bool) string {
	if t.done {
		return ""
	}
	var stopped, cut bool
	if t.stops != nil {
		s, stopped = t.stops.next(s, end)
	}
	if t.budget != nil {
		s, cut = t.budget.next(s, end || stopped)
	}
	if t.meter != nil {
		t.meter.add(s)
	}
	if cut {
		t.reason = FinishLength
	}
	t.done = cut || stopped
	return s
}

// Done says whether a limit was reached: the agent may be stopped.
func (t *Text) Done() bool { return t.done }

// FinishReason returns [FinishLength] when the text has more tokens than the
// limit, which was cut off, else [FinishStop].
func (t *Text) FinishReason() string { return t.reason }

// Tokens returns how many tokens the text has, as [CountTokens] counts, exactly
// with a limit of tokens. It is 0 when they were not to be counted.
func (t *Text) Tokens() int {
	switch {
	case t.budget != nil:
		return t.budget.count()
	case t.meter != nil:
		return t.meter.count()
	}
	return 0
}
