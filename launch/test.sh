#!/usr/bin/env bash
# Makes .venv, then checks the style and runs the tests on the CPU.
set -euo pipefail

usage() {
  cat <<'TEXT'
Makes .venv if need be, checks the style (ruff), runs the tests (pytest) on the CPU:
without arguments all but the slow ones, side by side on all cores, and compiled
for speed of compiling, not of running.
Usage:    launch/test.sh [--slow] [ARGUMENT OF PYTEST]...
          --slow  alone runs the reference values again, compiled as for users, and
                  the tests marked slow, side by side too; those of time come last,
                  by themselves
Example:  launch/test.sh tests/test_cost.py -x
Paths are taken from the repository root, wherever the script is called from.
JAX_PLATFORMS=cuda launch/test.sh -m gpu runs the tests that need a GPU.
TEXT
}

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

arguments=()
for argument in "$@"; do
  case $argument in
    --help | -h) usage && exit ;;
    --slow) arguments+=(-m "slow and not gpu") ;;
    *) arguments+=("$argument") ;;
  esac
done

make_venv requirements.txt requirements-test.txt
cd "$root"
python=$root/.venv/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check .
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Tests mostly wait for compilations, of one thread each. A worker takes 3 GB.
many=(--numprocesses auto --maxprocesses 4 --dist loadfile)
if [[ $# == 0 ]]; then
  # XLA's newer emitters of fusions take half of the time of compiling.
  export JAX_DISABLE_MOST_OPTIMIZATIONS=true
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_use_fusion_emitters=false"
  arguments=("${many[@]}")
elif [[ $# == 1 && $1 == --slow ]]; then
  "$python" -m pytest "${many[@]}" -m "not gpu" tests/test_golden.py
  timed=(tests/test_quickstart.py tests/test_speed.py)
  "$python" -m pytest "${arguments[@]}" "${many[@]}" "${timed[@]/#/--ignore=}"
  export TEST_DEVICES=1 NPROC=2
  arguments+=("${timed[@]}" -s)
fi
exec "$python" -m pytest ${arguments[@]+"${arguments[@]}"}
