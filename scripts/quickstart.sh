#!/usr/bin/env bash
# Install, train on drawn shapes, evaluate, and say where the pictures are.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh
workdir=${1:-runs/quickstart}
.venv/bin/python train.py --config=configs/quickstart.py --config.resume=True --workdir="$workdir"
.venv/bin/python eval.py --config=configs/quickstart.py --workdir="$workdir"
