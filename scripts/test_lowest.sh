#!/usr/bin/env bash
# Installs the lowest version of every dependency that pyproject.toml allows, extras included, and runs a core part of the tests.
# usage: bash scripts/test_lowest.sh [pytest arguments]
# JOINTEMBED_LOWEST: folder of the virtual environment, made once (3 GB with PyTorch's CUDA libraries) and kept.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${JOINTEMBED_LOWEST:-${TMPDIR:-/tmp}/jointembed-lowest}"
bin="$folder/bin"
if [ ! -x "$bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$folder"
fi
"$bin/python" -m pip install --quiet uv
# lowest-direct: what pyproject.toml names at its lower bound, what those need in turn as it is today
"$bin/uv" pip install --quiet --python "$bin/python" --system-certs --upgrade --resolution lowest-direct \
  --editable '.[tensorboard,faiss,ray,onnx,interop,serve,bench,tune]'
"$bin/uv" pip install --quiet --python "$bin/python" --system-certs pytest==9.2.0 pytest-timeout==2.4.0 hypothesis httpx2
"$bin/python" scripts/lowest_versions.py
core=(
  tests/test_recipe.py tests/test_cli.py tests/test_model.py tests/test_layers.py tests/data tests/branches
  tests/objectives/test_objectives_vicreg.py tests/objectives/test_objectives_clip.py tests/optim
  tests/training/test_training_run.py tests/evaluation tests/inference tests/report/test_report_tables.py
)
nice -n 10 "$bin/python" -m pytest -q -p no:cacheprovider -m "not slow and not ddp and not browser" "${@:-${core[@]}}"
