#!/usr/bin/env bash
# A pod of processes on this machine: the rehearsal of a run on many hosts.
set -euo pipefail

usage() {
  cat <<'TEXT'
Runs a program as several processes of one run, as a pod or a cluster does.
Usage:    launch/local_pod.sh [--processes=N] [--devices=N] -- COMMAND...
          --processes  how many; 2 by default
          --devices    CPU devices of each process; 2 by default
Example:  launch/local_pod.sh --processes=2 --devices=2 -- python -m diffrate_jax.search \
            --config=configs/quickstart.py --workdir=runs/search \
            --config.weights=runs/quickstart/train/weights.safetensors
Only what process 0 prints is shown. When a process fails the others are ended, and the
status is that of the first to fail. SIGTERM and Ctrl-C make all processes save at the
same step and leave with status 75; the same command goes on from there.
Runs in .venv, made if need be, or in the environment that is active.
TEXT
}

# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

is_count() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }

processes=2 devices=2 again=$(printf ' %q' bash "$0" "$@")
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --help | -h) usage && exit ;;
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    *) die "unknown argument $1; see --help." ;;
  esac
  shift
done
is_count "$processes" || die "--processes must be at least 1, got '$processes'."
is_count "$devices" || die "--devices must be at least 1, got '$devices'."
[[ ${1:-} == -- && $# -gt 1 ]] || die "give the command after --; see --help."
shift

[[ -n ${VIRTUAL_ENV:-} ]] || make_venv requirements.txt
PATH=${VIRTUAL_ENV:-$root/.venv}/bin:$PATH
cd "$root"
logs=$(mktemp -d)
pids=()
trap 'rm -rf "$logs"' EXIT
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
port=$(python -c 'import socket; s = socket.create_server(("localhost", 0)); print(s.getsockname()[1])')
export DIFFRATE_COORDINATOR=localhost:$port DIFFRATE_PROCESSES=$processes
export JAX_NUM_CPU_DEVICES=$devices PYTHONUNBUFFERED=1

for ((i = 0; i < processes; i++)); do
  if [[ $i == 0 ]]; then
    DIFFRATE_PROCESS=$i "$@" &
  else
    DIFFRATE_PROCESS=$i "$@" >/dev/null 2>"$logs/$i" &
  fi
  pids+=($!)
done

# Waits for all. Once one has failed the others get ten seconds to notice it, and what
# they end with then (69 or 134: another process has gone) is not the cause.
statuses=() failed='' deadline=''
while [[ ${#statuses[@]} -lt $processes && $SECONDS -lt ${deadline:-$((SECONDS + 1))} ]]; do
  sleep 0.2
  for i in "${!pids[@]}"; do
    if [[ -n ${statuses[i]:-} ]] || kill -0 "${pids[i]}"; then continue; fi
    statuses[i]=0
    wait "${pids[i]}" || statuses[i]=$?
    [[ ${statuses[i]} != 0 ]] || continue
    deadline=${deadline:-$((SECONDS + 10))}
    [[ -n $failed && ! ${statuses[failed]} =~ ^(69|134)$ ]] || failed=$i
  done
done 2>/dev/null
kill -KILL "${pids[@]}" 2>/dev/null || true
wait 2>/dev/null || true

[[ -n $failed ]] || exit 0
status=${statuses[failed]}
[[ $failed == 0 || $status -ge 128 ]] || tail -n 20 "$logs/$failed" >&2
case $status in
  2) ;;
  75) echo "launch: all is saved; go on with:$again" >&2 ;;
  *) echo "launch: process $failed ended with status $status and the others with it;" \
    "go on with:$again" >&2 ;;
esac
exit "$status"
