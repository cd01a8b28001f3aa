#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# An agent that reports on the text it is given: its size, its longest sentence, its most frequent words. It needs a
# POSIX shell and awk, and shows the whole contract of an agent:
#   - the text is argument 1, or standard input where there is no argument;
#   - what is printed reaches the client at once, line by line;
#   - the files left in $AGENTFM_OUTPUT reach the client when the agent has ended;
#   - exit status 0 says that it went well.
set -u
LC_ALL=C # the tools work on bytes, so that no text, not even a binary one, is invalid to them
export LC_ALL

if [ $# -gt 0 ]; then
	prompt=$1
else
	prompt=$(tr '\000' ' ' && printf x) || exit # the x keeps the line breaks at the end, which $( ) would drop
	prompt=${prompt%x}
fi

if [ -w "${AGENTFM_OUTPUT:-}" ]; then # when run by hand, there may be no folder
	exec 3>"$AGENTFM_OUTPUT/report.md"
else
	exec 3>/dev/null
fi

# say prints one line of the report, and writes it to the file.
say() {
	printf '%s\n' "$1"
	printf '%s\n' "$1" >&3
}

# say_lines does so with each line of its input.
say_lines() {
	while IFS= read -r line; do say "$line"; done
}

# text prints the text to report on.
text() {
	printf '%s' "$prompt"
}

# words prints the words of the text, one a line, in lower case. A word is made of letters, digits and apostrophes;
# outside ASCII, everything but common punctuation counts as a letter.
# shellcheck disable=SC1112 # the typographic quotes are meant
words() {
	text | tr '[:upper:]' '[:lower:]' | awk '{ gsub(/’/, "\047"); gsub(/—|–|…|“|”|„|‘|«|»|¿|¡/, " ") } 1' |
		tr -s '\001-\046\050-\057\072-\140\173-\177' '\n' |
		awk '{ gsub(/^\047+|\047+$/, "") } $0 != ""'
}

# An awk function that cuts a string after at most n bytes, never inside of a UTF-8 character.
# shellcheck disable=SC2016
cut_awk='
function cut(s, n,   i) {
	if (length(s) <= n) return s
	if (rest == "") for (i = 128; i < 192; i++) rest = rest sprintf("%c", i) # the bytes that continue a character
	for (i = n; i > n - 4 && index(rest, substr(s, i + 1, 1)); i--);
	return substr(s, 1, i) "…"
}'

# A chat request arrives as paragraphs "role: content" with a last line "assistant:". Of it, the last "user:" message is
# the text to report on.
lines=$(text | awk '
	/^user: / && last == "" { from = NR }
	{ last = $0 }
	END { if (from && last == "assistant:") print from "," NR - 2 }')
if [ -n "$lines" ]; then
	prompt=$(text | awk -v from="${lines%,*}" -v to="${lines#*,}" '
		NR == from { sub(/^user: /, "") }
		NR >= from && NR <= to')
fi

say '# Text report'
say ''
say "- Characters: $(text | tr -d '\200-\277' | wc -c | tr -d ' ')"
say "- Lines: $(text | awk 'END { print NR }')"
say "- Words: $(words | awk '!seen[$0]++ { n++ } END { print NR ", of them " n + 0 " different" }')"

# A sentence ends with a word that ends with . ! or ?, and at an empty line.
text | awk '{ print (/[^ \t\r]/ ? $0 : ".") }' | tr -s '\001-\040\177' '\n' |
	awk "$cut_awk"'
	function end(   i) {
		if (n) sentences++
		if (n > most) {
			most = n
			longest = first
		}
		n = 0
	}
	!/^[[:punct:]]*$/ {
		n++
		if (n == 1) first = cut($0, 40)
		else if (n <= 40) first = first " " cut($0, 40)
		else if (n == 41) first = first " …"
	}
	/[.!?][])"\047]*$/ { end() }
	END {
		end()
		print "- Sentences: " sentences + 0
		if (most) print "- Longest sentence, of " most " words: \"" longest "\""
	}' | say_lines

words | awk "$cut_awk"'
	{ count[$0]++ }
	END {
		for (place = 1; place <= 5; place++) {
			best = ""
			for (w in count)
				if (best == "" || count[w] > count[best] || (count[w] == count[best] && w < best)) best = w
			if (best == "") break
			list = list (place == 1 ? "" : ", ") cut(best, 40) " (" count[best] ")"
			delete count[best]
		}
		if (list != "") print "- Most frequent words: " list
	}' | say_lines
