# SPDX-License-Identifier: Apache-2.0
#
# The agent of the conformance tests. Its prompt says what it does: "lab: COMMAND TOKEN WORDS..." on a line of it. In the
# file $STATE/TOKEN it notes a line "PID WORKER" for each run, before it does anything that can be seen.

prompt=$(cat)
set -f
set -- $(printf '%s\n' "$prompt" | sed -n 's/.*lab: //p' | tail -n 1)
command=$1 token=$2
[ $# -ge 2 ] || exit 2
shift 2
echo "$$ $WORKER" >>"$STATE/$token"

# first succeeds in the first run of this token alone.
first() { mkdir "$STATE/$token.first" 2>/dev/null; }

case $command in
say) printf %s "$*" ;;                                      # its words
prompt) printf %s "$prompt" ;;                              # the whole prompt
line) head -c "$1" /dev/zero | tr '\0' x ;;                 # one line of so many bytes
silence) sleep "$1" && : >"$STATE/$token.said" && echo first && sleep "$1" && echo second ;; # notes when it says something
drip) while echo drop; do sleep 1; done ;;                  # for ever
gate) echo first && until [ -e "$STATE/$1" ]; do sleep 0.05; done && echo second ;; # goes on when that file is there
hold) until [ -e "$STATE/$1" ]; do sleep 0.2; done && printf 'held by %s' "$WORKER" ;;
stay) exec sleep 600 ;;                                     # says nothing
work) sleep "$1" && printf done ;;
die) echo half && exit 3 ;;                                 # after its first byte
fail) exit 3 ;;                                             # before
fail-once) if first; then exit 3; else printf 'served by %s' "$WORKER"; fi ;;
kill-once) if first; then kill -9 $$; else printf 'served by %s' "$WORKER"; fi ;;
*) exit 2 ;;
esac
