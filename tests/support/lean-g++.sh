#!/usr/bin/env bash
# g++ for DeepSpeed's operators, in less than half of the time: without debug information, and with the part of torch's
# headers that they use. A version that uses more of them is compiled with all of them.
# torch looks for "g++" in a compiler's name.
set -euo pipefail
headers="$(dirname "${BASH_SOURCE[0]}")/lean_headers"
arguments=() objects=false
for argument in "$@"; do
  [ "$argument" = -g ] || arguments+=("$argument")
  [ "$argument" != -c ] || objects=true
done
if $objects; then
  g++ -I"$headers" "${arguments[@]}" && exit
  echo "$0: not with $headers (see above); compiling with all of torch's headers" >&2
fi
exec g++ "${arguments[@]}"
