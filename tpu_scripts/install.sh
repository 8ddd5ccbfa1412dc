#!/usr/bin/env bash
# Installs this checkout on every worker of the slice, with Python 3.11 and the pinned packages.
#
#   tpu_scripts/install.sh
#
# Again after a change here: what changed is installed, the environment stays. gin files and tasks/
# travel along, your own among them.
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

parse_flags "$@"
needs project zone

run cd "$(dirname "$here")"
run mkdir -p build
run tar -czf build/distill_sbs.tar.gz --exclude=__pycache__ \
  README.md LICENSE setup.py pyproject.toml constraints.txt distill_sbs gin tasks
on_workers all 'mkdir -p distill_sbs'
run "${ssh[@]}"
run gcloud compute tpus tpu-vm scp build/distill_sbs.tar.gz tpu_scripts/worker.bash \
  "$name:distill_sbs/" "${place[@]}" --worker=all
on_workers all 'bash distill_sbs/worker.bash install tpu,gcs'
run "${ssh[@]}"
