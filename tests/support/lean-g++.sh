#!/usr/bin/env bash
# g++ without debug information, which takes a third of the time that DeepSpeed's operators are compiled in.
# torch looks for "g++" in a compiler's name.
set -euo pipefail
arguments=()
for argument in "$@"; do
  [ "$argument" = -g ] || arguments+=("$argument")
done
exec g++ "${arguments[@]}"
