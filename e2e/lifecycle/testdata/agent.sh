# SPDX-License-Identifier: Apache-2.0
#
# The agent of these tests. It says $LABEL, then repeats the lines that come
# through the FIFO which its prompt names, until nobody has that open for writing
# any more. So a test decides when it goes on and when it ends, and knows that it
# runs as soon as it has said $LABEL. A prompt that names no FIFO ends it at once.

prompt=${1#user: } # a chat's prompt is "user: TEXT", an empty line, "assistant:"
fifo=${prompt%%[[:space:]]*}
[ -p "$fifo" ] || exec echo "$LABEL"

exec 3<"$fifo"
if [ -n "$STUBBORN" ]; then # has a child, and both take no hint
	trap '' TERM # which the child inherits
	sleep 300 &
	echo $! >"$fifo.child"
fi
[ -n "$FILES" ] && echo "by $$" >"$AGENTFM_OUTPUT/said"
echo $$ >"$fifo.pid"
echo "$LABEL"
while read -r line <&3; do
	case $line in
	flood) head -c 340000 /dev/zero | tr '\0' x && echo ;; # more than the buffers on the way hold
	pipe) yes | head -n 1 ;; # the first of the two must be ended by the second
	*) echo "$line" ;;
	esac
done
echo "bye from $LABEL"
