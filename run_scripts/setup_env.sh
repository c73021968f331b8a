#!/usr/bin/env bash
# Builds .venv with the exact versions of requirements/lock.txt; nothing is compiled. Safe to call again.
#   run_scripts/setup_env.sh [PYTHON]      PYTHON: python3.11 or python3.12 (default python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${1:-python3}"
STAMP=.venv/.locked
WANTED="$(cat requirements/lock.txt setup.py | cksum)"
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANTED" ]; then exit 0; fi
"$PYTHON" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"ofaseg needs Python 3.11 or 3.12, this is {sys.version.split()[0]}; call: make env PYTHON=python3.12")
PY
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
echo "Installing requirements/lock.txt into .venv (torch with CUDA libraries is about 3 GB to download)"
.venv/bin/python -m pip install --quiet --upgrade "pip>=24"
.venv/bin/python -m pip install --quiet --no-deps --requirement requirements/lock.txt
# fairseq's compiled extensions are not needed (its setup skips them under READTHEDOCS), nor is torchaudio
READTHEDOCS=1 .venv/bin/python -m pip install --quiet --no-build-isolation --no-deps fairseq-fixed==0.12.3.1
.venv/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
echo "$WANTED" > "$STAMP"
