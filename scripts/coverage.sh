#!/usr/bin/env bash
# Branch coverage of the package by the tests: a table of what was not run, and a page of HTML for every file.
# usage: bash scripts/coverage.sh [pytest arguments]   (by default all tests but the slow ones)
# COVERAGE_OUT: folder of the report, coverage/ if not set. Processes that tests start are counted too. Tests that take
# room to write away from a process are left out: the coverage tool writes from that process as well, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv-test/bin/python ] && echo .venv-test/bin/python || echo python3)}"
out="${COVERAGE_OUT:-coverage}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$python" -m pytest -q -m "not slow" --deselect tests/faults/test_faults_checkpoints.py --cov --cov-report="term-missing:skip-covered" --cov-report="html:$out" \
  --cov-report="json:$out/coverage.json" "$@"
