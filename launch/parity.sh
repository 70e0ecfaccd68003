#!/usr/bin/env bash
# Compares our models and readers with timm and PyTorch, in an environment of their own.
set -euo pipefail

usage() {
  cat <<'TEXT'
Makes .parity (timm, PyTorch and what the tests need; 6 GB, once), then
  - compares the logits of every family's random timm model with ours,
  - reads PyTorch's files in all their layouts, harmful ones too,
  - checks tests/golden/timm_shapes.json: the parameters of every preset in timm.
Usage:    launch/parity.sh [--write] [ARGUMENT OF PYTEST]...
          --write  writes tests/golden/timm_shapes.json anew before checking it
Example:  launch/parity.sh -k dinov2
TEXT
}

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

write=false arguments=()
for argument in "$@"; do
  case $argument in
    --help | -h) usage && exit ;;
    --write) write=true ;;
    *) arguments+=("$argument") ;;
  esac
done

cd "$root"
python=$root/.parity/bin/python
if [[ ! -e .parity/.done ]]; then
  rm -rf .parity
  "$(find_python)" -m venv .parity
  grep -v tensorflow requirements.txt >.parity/requirements.txt
  echo "launch: installing timm and PyTorch into .parity, once (2 to 10 minutes)." >&2
  "$python" -m pip install -qq --disable-pip-version-check timm \
    -r .parity/requirements.txt -r requirements-test.txt ||
    die "pip could not install timm; mend what it says and rerun."
  touch .parity/.done
fi
export JAX_PLATFORMS=cpu
[[ $write == false ]] || "$python" tests/parity/shapes.py
exec "$python" -m pytest -m "not gpu" tests/parity ${arguments[@]+"${arguments[@]}"}
