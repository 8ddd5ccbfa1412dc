#!/usr/bin/env bash
# Prepares datasets into the bucket: uploads the raw files, and worker 0 makes records of them.
#
#   tpu_scripts/prepare.sh --dataset=cqa --source_dir=datasets
#
# Creates the bucket, in the zone's region, where there is none. A dataset that is prepared already
# is left as it is. Flags of its own:
#   --dataset=NAME             several with commas
#   --source_dir=FOLDER        [DISTILL_SBS_SOURCE_DIR] the published files, NAME/ for each dataset
#   --overwrite                prepares again what is prepared already
#
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.bash"

dataset=
source_dir="${DISTILL_SBS_SOURCE_DIR:-}"
overwrite=
own_flag() {
  case "$1" in
    --dataset=*) dataset="${1#*=}" ;;
    --source_dir=*) source_dir="${1#*=}" ;;
    --overwrite) overwrite=true ;;
    *) return 1 ;;
  esac
}
parse_flags "$@"
needs project zone bucket
[[ $dataset =~ ^[a-z0-9_]+(,[a-z0-9_]+)*$ ]] ||
  fail "--dataset=$dataset: expected a dataset such as cqa, or several with commas"

# From nothing: the embedded datasets have no published files.
is_generated() { [[ $1 == wordproblems || $1 == comparisons ]]; }

IFS=, read -ra names <<<"$dataset"
wanted=()
for each in "${names[@]}"; do
  if [[ -z $overwrite ]] && in_bucket "$bucket/data/$each/info.json"; then
    say "$bucket/data/$each is there already; --overwrite prepares it again"
    continue
  fi
  if ! is_generated "$each"; then
    [[ -n $source_dir ]] || fail "--source_dir is not set; it is the folder of the published files"
    [[ -n $dry_run || -d $source_dir/$each ]] || fail "--source_dir=$source_dir has no folder $each"
  fi
  wanted+=("$each")
done

bucket_root="$(grep -o '^gs://[^/]*' <<<"$bucket")"
if ! answer="$(ask gcloud storage buckets describe "$bucket_root" \
  --format="value(labels.$label_key)" 2>&1)" || [[ -n $dry_run ]]; then
  [[ -n $dry_run || $answer == *"not found: 404"* ]] || fail "$answer"
  note "if it does not exist:"
  # Checkpoints come and go: kept for a week after their deletion they would be paid for.
  run gcloud storage buckets create "$bucket_root" --project="$project" --location="${zone%-*}" \
    --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0
  run gcloud storage buckets update "$bucket_root" --update-labels="$label_key=$label_value"
fi

for each in "${wanted[@]}"; do
  [[ -n $overwrite ]] || note "unless it is prepared already:"
  is_generated "$each" ||
    run gcloud storage rsync --recursive "$source_dir/$each" "$bucket/raw/$each"
  on_workers 0 "distill_sbs/venv/bin/python -m distill_sbs.prepare $(quoted --dataset="$each" \
    --source_dir="$bucket/raw" --data_dir="$bucket/data")"
  run "${ssh[@]}"
done
