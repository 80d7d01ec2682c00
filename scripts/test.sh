#!/usr/bin/env bash
# Install jaxseg with its test tools, check the style, run all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest -q -n 2 --dist loadfile "$@"
