#!/usr/bin/env bash
# Shows the state of the slice, and follows the log of one worker while it trains.
#
#   tpu_scripts/watch.sh
#
# Ctrl-C ends the watching, not the training. Flags of its own:
#   --worker=NUMBER            [0]
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

worker=0
own_flag() {
  case "$1" in
    --worker=*) worker="${1#*=}" ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker=$worker: expected a number"

find_slice
[[ -n $dry_run ]] || say "$name: TPU VM ${tpu_state:-none}, queued request ${request_state:-none}"
if [[ $slice == ready || -n $dry_run ]]; then
  note "if it is READY:"
  on_workers "$worker" 'bash distill_sbs/worker.bash log'
  run "${ssh[@]}"
fi
