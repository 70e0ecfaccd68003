#!/usr/bin/env bash
# Runs a program on all hosts of a TPU pod.
set -euo pipefail

usage() {
  cat <<'TEXT'
Copies this checkout to every host of a TPU VM or pod, installs it there, and runs a
program on all of them as one run. What is installed already is not installed again.
Usage:    launch/tpu_pod.sh --name=NAME --zone=ZONE [--project=PROJECT] -- COMMAND...
          --name     of the TPU, as gcloud compute tpus tpu-vm list shows it
          --zone     it is in
          --project  gcloud's own default without
Example:  launch/tpu_pod.sh --name=my-v4-32 --zone=us-central2-b -- \
            python -m diffrate_jax.search --config=configs/deit_small.py \
            --config.target=2.9 --config.weights=deit_small.safetensors \
            --config.data_dir=gs://BUCKET/data --workdir=gs://BUCKET/runs/deit_small
Needs gcloud, logged in, and Python 3.11 on the hosts. What lies in the checkout, such as
the file of weights, is copied along, but for data/, runs/ and results/. Status 75: all is
saved, and the same command goes on.
TEXT
}

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

name='' where=() again=$(printf ' %q' bash "$0" "$@")
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --help | -h) usage && exit ;;
    --name=?*) name=${1#*=} ;;
    --zone=?* | --project=?*) where+=("$1") ;;
    *) die "unknown or empty argument $1; see --help." ;;
  esac
  shift
done
[[ -n $name ]] || die "which TPU? Give --name=NAME; see --help."
[[ ${where[*]:-} == *--zone=* ]] || die "where is $name? Give --zone=ZONE; see --help."
[[ ${1:-} == -- && $# -gt 1 ]] || die "give the command after --; see --help."
shift
command -v gcloud >/dev/null ||
  die "expected the program gcloud, found none; install the Google Cloud CLI."

on_all() { # on_all TEXT: runs a line of shell on every host, in its home folder
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
tar -czf "$archive/diffrate_jax.tar.gz" -C "$root" --exclude=./.git --exclude='./.venv*' \
  --exclude=./.parity --exclude=./runs --exclude=./data --exclude=./results .
echo "launch: installing on all hosts of $name (the first time minutes)." >&2
gcloud compute tpus tpu-vm scp "$archive/diffrate_jax.tar.gz" "$name:" "${where[@]}" \
  --worker=all || die "gcloud could not copy to $name; mend what it says and rerun."
on_all "mkdir -p diffrate_jax && tar -xzf diffrate_jax.tar.gz -C diffrate_jax && cd \
diffrate_jax && bash launch/venv.sh && .venv/bin/python -m pip install -q \
-c constraints/py\$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2], \
sep=\"\")').txt 'jax[tpu]'" || die "the hosts of $name could not install; see above."

status=0
on_all "cd diffrate_jax && . launch/venv.sh && export PATH=\$PWD/.venv/bin:\$PATH \
DIFFRATE_COORDINATOR=auto && exec$(printf ' %q' "$@")" || status=$?
[[ $status == 0 || $status == 2 ]] ||
  echo "launch: the run on $name ended with status $status; go on with:$again" >&2
exit "$status"
