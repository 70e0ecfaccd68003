#!/usr/bin/env bash
# Makes .venv, then runs a whole study in it: searches, trainings and evaluations.
set -euo pipefail

if [[ $# == 0 || $1 == --help || $1 == -h ]]; then
  cat <<'TEXT'
Makes .venv if need be, then runs python -m diffrate_jax.study with your arguments.
What is done is not done again: the same command goes on where it stopped.
Usage:    launch/study.sh --plan=FILE --workdir=DIR [--parts=1,2] [--results=DIR]
                          [--config.FIELD=VALUE for every run]...
Example:  launch/study.sh --plan=configs/studies/small.json --workdir=runs/small
Paths are taken from the repository root, wherever the script is called from.
TEXT
  exit
fi

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
make_venv requirements.txt
cd "$root"
exec "$root/.venv/bin/python" -m diffrate_jax.study "$@"
