#!/usr/bin/env bash
# Runs on each worker of a slice: install.sh puts it into ~/distill_sbs, and the others call it.
#
#   worker.bash install EXTRA,…     unpacks distill_sbs.tar.gz and installs it with those extras
#   worker.bash start RUN FLAG…     trains in the background, unless the worker trains already
#   worker.bash status RUN          `state: running RUN`, `state: exit STATUS`, `state: idle` or
#                                   `state: not installed`
#   worker.bash log                 follows the log of the newest run while it trains
#   worker.bash stop                SIGTERM: training saves a checkpoint and exits
#
# Everything lies beside this file: uv/, source/, venv/ and the mark `installed`; logs/RUN.log and
# logs/RUN.status (the last exit status); train.run, train.pid and train.child (the newest run and
# its processes). Whoever trains holds train.lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The log of a run without its ending; a run of a sweep has slashes in its name.
log_of() { echo "logs/${1//\//__}"; }

is_training() { ! flock --nonblock train.lock true; }

install() {
  if is_training; then
    echo "$(hostname): trains $(<train.run); stop it first, nothing installed" >&2
    exit 2
  fi
  rm -f installed
  # The images bring Python 3.10, and JAX needs a newer one; uv brings that, without apt.
  python3 -m pip install --quiet --upgrade --target=uv 'uv>=0.8,<1'
  rm -rf source && mkdir source && tar -xzf distill_sbs.tar.gz -C source
  [[ -x venv/bin/python ]] || uv/bin/uv venv --quiet --python=3.11 venv
  uv/bin/uv pip install --quiet --python=venv/bin/python --constraint=source/constraints.txt \
    --reinstall-package=distill_sbs "distill_sbs[$1] @ file://$PWD/source"
  touch installed
  echo "$(hostname): distill_sbs is installed, with $(uv/bin/uv pip list --quiet \
    --python=venv/bin/python | awk '$1 == "jax" || $1 == "libtpu" { printf "%s %s ", $1, $2 }')"
}

start() {
  local run="$1"
  # What is started inherits the lock: it is free when all of it has ended.
  exec 9>train.lock
  if ! flock --nonblock 9; then
    echo "$(hostname): trains $(<train.run) already, nothing started"
    return
  fi
  mkdir -p logs
  rm -f "$(log_of "$run").status"
  echo "$run" >train.run
  nohup bash worker.bash train "$@" >>"$(log_of "$run").log" 2>&1 </dev/null &
  echo "$!" >train.pid
  echo "$(hostname): started $run"
}

# In the background, from `start`.
train() {
  local run="$1" status=0
  shift
  # A machine that goes down asks every process to end; this one waits for its child.
  trap : TERM
  echo "=== $(date --utc +%FT%TZ) $run: $*"
  PYTHONUNBUFFERED=1 venv/bin/python -m distill_sbs.train "$@" &
  echo "$!" >train.child
  while true; do
    wait "$!" && status=0 || status=$?
    kill -0 "$!" 2>/dev/null || break # else the wait was interrupted, not the child
  done
  echo "$status" >"$(log_of "$run").status"
  echo "=== $(date --utc +%FT%TZ) $run: exit status $status"
}

status() {
  if [[ ! -e installed ]]; then
    echo "state: not installed"
  elif is_training; then
    echo "state: running $(<train.run)"
  elif [[ -s $(log_of "$1").status ]]; then
    echo "state: exit $(<"$(log_of "$1").status")"
  else
    echo "state: idle"
  fi
}

log() {
  [[ -s train.run ]] || { echo "nothing was trained here yet" && return; }
  tail --lines=40 --follow --pid="$(<train.pid)" "$(log_of "$(<train.run)").log"
}

stop() {
  if is_training; then
    kill -TERM "$(<train.child)"
    echo "$(hostname): asked $(<train.run) to save and stop"
  else
    echo "$(hostname): nothing trains"
  fi
}

case "${1:-}" in
  install | start | train | status | log | stop) "$@" ;;
  *)
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
    exit 2
    ;;
esac
