#!/usr/bin/env bash
# Makes .venv in the repository root, once. The other scripts source this file.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# TensorFlow, which only reads the data, stays silent. XLA's thread pool must be larger
# than two: on two cores the collectives of eight fake devices deadlock otherwise.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} TF_ENABLE_ONEDNN_OPTS=0
export NPROC=${NPROC:-16}
# XLA on a CPU asks for the memory of each step anew. Keep it, and in huge pages: the
# kernel's page faults were a fifth of a search step.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} MALLOC_ARENA_MAX=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647

die() { echo "launch: $*" >&2; exit 2; }

# Prints the first Python that runs (a pyenv shim may exist and yet fail), is new enough
# and can make environments.
find_python() {
  local python found='' candidates=(python3.12 python3.11 python3)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for python in "${candidates[@]}"; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &>/dev/null ||
      continue
    "$python" -c 'import ensurepip, venv' &>/dev/null && echo "$python" && return
    found=$python
  done
  [[ -z $found ]] || die "expected a Python with its venv module, found $found" \
    "without; install it (Debian, Ubuntu: apt-get install python3-venv) and rerun."
  die "expected Python 3.11 or newer, found none as ${candidates[*]};" \
    "install one or set PYTHON to its path."
}

make_venv() { # make_venv requirements.txt [requirements-test.txt]
  local venv=$root/.venv python version file hash pins options=()
  [[ ! -e $venv/.installing ]] || rm -rf "$venv" # an earlier run was cut off
  if [[ ! -e $venv ]]; then
    python=$(find_python)
    mkdir "$venv" && touch "$venv/.installing"
    "$python" -m venv "$venv" || die "$python could not make .venv, for the reason above."
  fi
  version=$("$venv/bin/python" -c \
    'import sys; print("%d%d" % sys.version_info[:2])' 2>/dev/null) ||
    die "expected a working Python in .venv, found none; delete .venv and rerun."
  pins=$root/constraints/py$version.txt
  [[ ! -f $pins ]] || options=(-c "$pins")
  for file in "$@"; do
    options+=(-r "$root/$file")
    hash=$(cat "$root/$file" "$pins" 2>/dev/null | cksum) || true
    [[ ! -f $venv/.$file || $(<"$venv/.$file") != "$hash" ]] || continue
    echo "launch: installing $file into .venv, once (in all 2.6 GB, 1 to 10 minutes)." >&2
    [[ ! -f $venv/.$file ]] || mv "$venv/.$file" "$venv/.installing"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
      "${options[@]}" || die "pip could not install $file; mend what it says and rerun."
    echo "$hash" >"$venv/.$file" && rm -f "$venv/.installing"
  done
}

[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0
[[ $# == 0 ]] || { echo "Makes .venv. Example: PYTHON=python3.12 launch/venv.sh"; exit; }
make_venv requirements.txt
