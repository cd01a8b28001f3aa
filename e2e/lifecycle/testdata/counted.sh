# SPDX-License-Identifier: Apache-2.0
#
# An agent that takes a moment, and says what its prompt was.

echo "begun $1"
sleep "0.$(( $$ % 3 ))"
echo "done $1"
