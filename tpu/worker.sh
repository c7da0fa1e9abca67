#!/usr/bin/env bash
# Runs on a TPU host (bootstrap.sh starts it): a Python of at least 3.11, a virtual environment, jaxlm with its TPU extra.
set -euo pipefail
cd "$HOME"
python=""
for candidate in python3.13 python3.12 python3.11 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
if [[ -x venv/bin/python ]]; then
  :                                   # a repeated bootstrap keeps its environment
elif [[ -n "$python" ]]; then
  "$python" -m venv venv
else
  # Older images carry Python 3.10: uv fetches an interpreter of its own, without root.
  python3 -m pip install -q --user uv
  "$HOME/.local/bin/uv" venv --seed --python 3.12 venv
fi
venv/bin/python -m pip install -q -c jaxlm/constraints.txt -e 'jaxlm[tpu]'
venv/bin/jaxlm --version
