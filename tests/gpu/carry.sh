#!/usr/bin/env bash
# Packs wheels for a GPU machine without a package index into .whl/ (see tests/gpu/carry.py). Needs `make install`.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PACKHAUL_VENV:-.venv}/bin/python # has torch, which DeepSpeed's build asks for
[ -x "$python" ] || { echo "carry: error: no $python: run make install first" >&2; exit 2; }
exec "$python" -m tests.gpu.carry "$@"
