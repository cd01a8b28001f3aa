# SPDX-License-Identifier: Apache-2.0
#
# An agent that notes each of its runs in the file $RUNS before it does anything, and says
# what its prompt was.

echo "$1" >>"$RUNS"
echo "begun $1"
sleep "0.$(( $$ % 3 ))"
echo "done $1"
