#!/usr/bin/env bash
# Trains an image-text model on the pictures and words inside the package, and reports R@1/5/10 on unseen concepts.
# usage: bash scripts/quickstart.sh [RUN_FOLDER [a.b=c ...]]   (keys of the recipe to set)
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ ! -x .venv/bin/jointembed ]; then
  echo "Making .venv and installing (once; PyTorch is large) ..."
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --editable .
fi
run="${1:-runs/quickstart}"
.venv/bin/jointembed train recipes/quickstart.yaml "${@:2}" --out "$run" --overwrite
.venv/bin/jointembed evaluate "$run" --split test
