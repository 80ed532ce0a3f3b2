#!/usr/bin/env bash
# On the GPU machine: bash tests/gpu/run.sh SECONDS [STAGE...], or bash .whl/run.sh, as carry.sh says.
# Installs the carried wheels into a folder of its own, once, and runs the stages (tests/gpu/run.py) in what is left of
# SECONDS. Figures and the log are written to $OUT.
set -euo pipefail
cd "$(dirname "$0")/../.."
total=${1:?"expected the seconds that the call may take: bash .whl/run.sh 440"}
shift
state=${PACKHAUL_STATE:-$HOME/.packhaul_gpu} python=${PACKHAUL_PYTHON:-python3}
site=$state/site
wheels=$(cd .whl && sha256sum ./*.whl)
if [ "$(cat "$site/.wheels" 2>/dev/null)" != "$wheels" ]; then
  rm -rf "$site"
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
  printf '%s\n' "$wheels" >"$site/.wheels" # last: says that all are there
fi
echo "wheels installed after $SECONDS s"
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m tests.gpu.run --state "$state" "$((total - SECONDS))" "$@"
