#!/usr/bin/env bash
# Makes .venv, then runs the quickstart in it.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  cat <<'TEXT'
Makes .venv if need be, then runs python -m diffrate_jax.quickstart with your arguments.
Usage:    launch/quickstart.sh [--workdir=DIR]
Example:  launch/quickstart.sh --workdir=runs/quickstart
DIR is taken from the repository root, wherever the script is called from.
TEXT
  exit
fi

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
make_venv requirements.txt
cd "$root"
exec "$root/.venv/bin/python" -m diffrate_jax.quickstart "$@"
