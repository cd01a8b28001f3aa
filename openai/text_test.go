// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// limited returns the text of p, given in parts of n bytes.
func limited(p []byte, n int, l Limits) (string, *Text) {
	x := NewText(l, true)
	var b strings.Builder
	for len(p) > 0 && !x.Done() {
		k := min(n, len(p))
		b.WriteString(x.Next(p[:k]))
		p = p[k:]
	}
	b.WriteString(x.Rest())
	return b.String(), x
}

func TestText(t *testing.T) {
	for _, r := range []struct {
		name, in  string
		limits    Limits
		want      string
		reason    string
		wantDone  bool
		wantCount int
	}{
		{name: "nothing", reason: FinishStop},
		{name: "no limits", in: "Hello world\n\xff", want: "Hello world\n�", reason: FinishStop, wantCount: 4},
		{name: "stop", in: "one two STOP three", limits: Limits{Stop: []string{"STOP"}}, want: "one two ", reason: FinishStop, wantDone: true, wantCount: 3},
		{name: "stop at once", in: "STOP", limits: Limits{Stop: []string{"STOP"}}, reason: FinishStop, wantDone: true},
		{name: "only the begin of a stop", in: "one STO", limits: Limits{Stop: []string{"STOP"}}, want: "one STO", reason: FinishStop, wantCount: 2},
		{name: "a begin inside a begin", in: "aaab", limits: Limits{Stop: []string{"aab"}}, want: "a", reason: FinishStop, wantDone: true, wantCount: 1},
		{name: "the first to be complete", in: "abcd", limits: Limits{Stop: []string{"abcd", "bc"}}, want: "a", reason: FinishStop, wantDone: true, wantCount: 1},
		{name: "the longest of two at one place", in: "xabc", limits: Limits{Stop: []string{"bc", "abc"}}, want: "x", reason: FinishStop, wantDone: true, wantCount: 1},
		{name: "stop of several bytes a character", in: "é€😀", limits: Limits{Stop: []string{"€"}}, want: "é", reason: FinishStop, wantDone: true, wantCount: 1},
		{name: "stop of a newline", in: "a\n\nb", limits: Limits{Stop: []string{"\n\n"}}, want: "a", reason: FinishStop, wantDone: true, wantCount: 1},
		{name: "exactly as many tokens", in: "one two three", limits: Limits{MaxTokens: 3}, want: "one two three", reason: FinishStop, wantCount: 3},
		{name: "one token too many", in: "one two three four", limits: Limits{MaxTokens: 3}, want: "one two three", reason: FinishLength, wantDone: true, wantCount: 3},
		{name: "one token", in: "Hello, world", limits: Limits{MaxTokens: 1}, want: "Hello", reason: FinishLength, wantDone: true, wantCount: 1},
		{name: "inside a word", in: "internationalizationally", limits: Limits{MaxTokens: 1}, want: "international", reason: FinishLength, wantDone: true, wantCount: 1},
		{name: "inside a character", in: "𒀀𒀀", limits: Limits{MaxTokens: 1}, want: "", reason: FinishLength, wantDone: true},
		{name: "the stop comes first", in: "one two STOP three", limits: Limits{MaxTokens: 4, Stop: []string{"STOP"}}, want: "one two ", reason: FinishStop, wantDone: true, wantCount: 3},
		{name: "the tokens come first", in: "one two three STOP", limits: Limits{MaxTokens: 2, Stop: []string{"STOP"}}, want: "one two", reason: FinishLength, wantDone: true, wantCount: 2},
		{name: "stop after exactly as many", in: "one twoSTOP three", limits: Limits{MaxTokens: 2, Stop: []string{"STOP"}}, want: "one two", reason: FinishStop, wantDone: true, wantCount: 2},
	} {
		t.Run(r.name, func(t *testing.T) {
			for n := 1; n <= len(r.in)+1; n++ {
				got, x := limited([]byte(r.in), n, r.limits)
				if got != r.want || x.FinishReason() != r.reason || x.Done() != r.wantDone || x.Tokens() != r.wantCount {
					t.Fatalf("in parts of %d: got %q, %s, done %t, %d tokens", n, got, x.FinishReason(), x.Done(), x.Tokens())
				}
			}
		})
	}
}

// What cannot change any more must not wait.
func TestTextIsPrompt(t *testing.T) {
	for _, r := range []struct {
		limits Limits
		steps  [][2]string
	}{
		{Limits{}, [][2]string{{"a", "a"}, {"b\xc3", "b"}, {"\xa9", "é"}}},
		{Limits{Stop: []string{"\n\n"}}, [][2]string{{"a", "a"}, {"\n", ""}, {"b", "\nb"}, {"\n\nc", ""}, {"d", ""}}},
		{Limits{MaxTokens: 100}, [][2]string{{"internat", "internat"}, {"ional", "ional"}, {" ", " "}}},
		{Limits{MaxTokens: 3}, [][2]string{{"one", "one"}, {" t", " t"}, {"wo", ""}, {" ", "wo "}, {"three", ""}, {" four", "three"}}},
	} {
		x := NewText(r.limits, false)
		for i, step := range r.steps {
			if got := x.Next([]byte(step[0])); got != step[1] {
				t.Errorf("%+v, step %d: got %q, want %q", r.limits, i, got, step[1])
			}
		}
	}
}

// exactly counts the tokens of a text of any size.
func exactly(s string) int {
	count := 0
	for s != "" {
		n := segment(s, true)
		count += tokens(s[:n])
		s = s[n:]
	}
	return count
}

func FuzzText(f *testing.F) {
	f.Add([]byte("Hello world, one two"), 3, 2, "wor", "x")
	f.Add([]byte("𒀀𒀀é€😀\xff\xf0\x9f 中文，中文"), 1, 3, "中", "文，")
	f.Add([]byte("\xff\x7f\xffé\xff\x7f\x00\u0098\xff\xff\xff\xff 8"), 1, 9, "", "")
	f.Add([]byte(strings.Repeat(" \n", 700)+"don't 1234567"), 7, 40, "", "")
	f.Add([]byte(strings.Repeat("中", 800)), 5, 1000, "", "")
	f.Fuzz(func(t *testing.T, p []byte, n, maxTokens int, stop1, stop2 string) {
		if len(p) > 8<<10 || len(stop1) > maxStop || len(stop2) > maxStop {
			return
		}
		var l Limits
		for _, stop := range []string{stop1, stop2} {
			if stop != "" && utf8.ValidString(stop) {
				l.Stop = append(l.Stop, stop)
			}
		}
		l.MaxTokens = max(0, maxTokens)
		whole, w := limited(p, len(p)+1, l)
		got, x := limited(p, max(n, 1, len(p)/256), l)
		if got != whole || x.FinishReason() != w.FinishReason() || x.Done() != w.Done() || x.Tokens() != w.Tokens() {
			t.Fatalf("%q with %+v: in parts %q, %s, %t, %d; whole %q, %s, %t, %d", p, l,
				got, x.FinishReason(), x.Done(), x.Tokens(), whole, w.FinishReason(), w.Done(), w.Tokens())
		}
		if !strings.HasPrefix(validText(p), got) || !x.Done() && got != validText(p) {
			t.Errorf("%q became %q", p, got)
		}
		for _, stop := range l.Stop {
			if strings.Contains(got, stop) {
				t.Errorf("%q is in %q", stop, got)
			}
		}
		if count := exactly(got); l.MaxTokens > 0 && (count > l.MaxTokens || count != x.Tokens()) {
			t.Errorf("%q has %d tokens, not %d of at most %d", got, count, x.Tokens(), l.MaxTokens)
		}
	})
}
