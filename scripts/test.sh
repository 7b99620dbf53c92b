#!/usr/bin/env bash
# Makes .venv-test, installs the package with its development tools, runs lint, types, import layers, documentation, tests.
# usage: bash scripts/test.sh [pytest arguments]   (-m slow: the long fault and soak tests, which are run by command)
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ ! -x .venv-test/bin/python ]; then
  "$python" -m venv .venv-test
fi
.venv-test/bin/python -m pip install --quiet --editable '.[dev]'
if ! command -v chromium >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) \
      >/dev/null 2>&1 || echo "chromium could not be installed: the browser tests will be skipped"
  else
    echo "chromium is not installed: the browser tests will be skipped"
  fi
fi
bin=.venv-test/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/mypy
$bin/lint-imports
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 $bin/mkdocs build --quiet --strict --site-dir "$site"  # a broken link is an error
$bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
