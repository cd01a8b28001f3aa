# SPDX-License-Identifier: Apache-2.0
#
# As counted.sh, and it leaves a file.

echo "begun $1"
head -c 65536 /dev/urandom >"$AGENTFM_OUTPUT/file"
echo "done $1"
