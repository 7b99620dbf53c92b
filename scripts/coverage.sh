#!/usr/bin/env bash
# Branch coverage of the package by the tests: a table of what was not run, and a page of HTML for every file.
# usage: bash scripts/coverage.sh [pytest arguments]   (by default all tests but the slow ones)
# COVERAGE_OUT: folder of the report, coverage/ if not set. Processes that tests start are counted too.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv-test/bin/python ] && echo .venv-test/bin/python || echo python3)}"
out="${COVERAGE_OUT:-coverage}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$python" -m pytest -q -m "not slow" --cov --cov-report="term-missing:skip-covered" --cov-report="html:$out" \
  --cov-report="json:$out/coverage.json" "$@"
