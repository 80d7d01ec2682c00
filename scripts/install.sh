#!/usr/bin/env bash
# Make .venv with jaxseg in it: `bash scripts/install.sh [extras]`, e.g. test. Python 3.11 or 3.12.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv/bin/python ]; then
  for python in "${PYTHON:-python3}" python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      break
    fi
    python=
  done
  [ -n "$python" ] || { echo "error: no Python 3.11 or 3.12 found; set PYTHON=/path/to/it" >&2; exit 2; }
  "$python" -m venv .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
