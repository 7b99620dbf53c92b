#!/usr/bin/env bash
# Looks the installed versions of everything that jointembed needs up among known vulnerabilities, by pip-audit.
# usage: bash scripts/audit.sh [pip-audit arguments]   (1: there are some; 3: none could be looked up, as without network)
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv-test/bin/python ] && echo .venv-test/bin/python || echo python3)}"
report="$(mktemp)"
trap 'rm -f "$report"' EXIT
code=0
"$python" -m pip_audit --skip-editable --progress-spinner off --format json --output "$report" "$@" || code=$?
"$python" - "$report" "$code" <<'PYTHON'
import json, sys
from pathlib import Path

try:
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["dependencies"]
except ValueError:
    found = []
looked_up = [one for one in found if "vulns" in one]
bad = [one for one in looked_up if one["vulns"]]
for one in bad:
    for fault in one["vulns"]:
        print(f"{one['name']} {one['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version'}")
print(f"{len(looked_up)} of {len(found)} packages looked up, {len(bad)} with known vulnerabilities")
if not looked_up:
    print("the vulnerability service could not be reached, or knows none of them: nothing was audited")
sys.exit(3 if not looked_up else int(sys.argv[2]))
PYTHON
