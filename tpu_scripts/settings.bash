# shellcheck shell=bash disable=SC2034
# Settings and helpers of the scripts in this folder, which source it.
#
# Enters: flags, whose defaults are the environment's DISTILL_SBS_…. Leaves: the variables below,
# exported under those names again, so that one script can call another.

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || {
  echo "error: bash $BASH_VERSION is too old, 4.4 is needed (on a Mac: brew install bash)" >&2
  exit 2
}

# What these scripts create carries this label, and they delete nothing that does not.
readonly label_key=created-by label_value=distill-sbs

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec 3>&1 # dry runs print here, even from inside $(…)
rest=()   # what follows -- on the command line

settings_help() {
  cat <<'EOF'
Settings (in brackets the environment variable that gives the default, and what it is without one):
  --project=ID               [DISTILL_SBS_PROJECT]
  --zone=ZONE                [DISTILL_SBS_ZONE] such as us-west4-a
  --bucket=gs://NAME         [DISTILL_SBS_BUCKET] for data and runs; a folder in a bucket will do
  --name=NAME                [DISTILL_SBS_TPU: distill-sbs] of the TPU VM and of its queued request
  --accelerator_type=TYPE    [DISTILL_SBS_ACCELERATOR_TYPE: v5litepod-8]
  --runtime_version=VERSION  [DISTILL_SBS_RUNTIME_VERSION: the one that goes with the accelerator]
  --provisioning=KIND        [DISTILL_SBS_PROVISIONING: on_demand] or spot, preemptible, reserved
  --queued, --noqueued       [DISTILL_SBS_QUEUED: false] asks for the TPU VM by a queued request
  --create_flags='FLAGS'     [DISTILL_SBS_CREATE_FLAGS] more flags for `gcloud … create`
  --dry_run                  prints the commands in order and runs none of them
EOF
}

# The comment that a script opens with is its help.
usage() {
  awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
  settings_help
}

fail() {
  echo "error: $*" >&2
  exit 2
}

say() { echo "$*" >&2; }

# A flag of the calling script alone; scripts that have some define this again.
own_flag() { return 1; }

parse_flags() {
  project="${DISTILL_SBS_PROJECT:-}"
  zone="${DISTILL_SBS_ZONE:-}"
  bucket="${DISTILL_SBS_BUCKET:-}"
  name="${DISTILL_SBS_TPU:-distill-sbs}"
  accelerator_type="${DISTILL_SBS_ACCELERATOR_TYPE:-v5litepod-8}"
  runtime_version="${DISTILL_SBS_RUNTIME_VERSION:-}"
  provisioning="${DISTILL_SBS_PROVISIONING:-on_demand}"
  queued="${DISTILL_SBS_QUEUED:-false}"
  create_flags="${DISTILL_SBS_CREATE_FLAGS:-}"
  dry_run=
  while (($#)); do
    case "$1" in
      -h | --help)
        usage
        exit 0
        ;;
      --project=*) project="${1#*=}" ;;
      --zone=*) zone="${1#*=}" ;;
      --bucket=*) bucket="${1#*=}" ;;
      --name=*) name="${1#*=}" ;;
      --accelerator_type=*) accelerator_type="${1#*=}" ;;
      --runtime_version=*) runtime_version="${1#*=}" ;;
      --provisioning=*) provisioning="${1#*=}" ;;
      --queued) queued=true ;;
      --noqueued) queued=false ;;
      --create_flags=*) create_flags="${1#*=}" ;;
      --dry_run) dry_run=--dry_run ;;
      --)
        shift
        rest=("$@")
        break
        ;;
      *) own_flag "$1" || fail "unknown flag $1; flags are typed --name=value, --help lists them" ;;
    esac
    shift
  done
  bucket="${bucket%/}"
  check_settings
  place=(--project="$project" --zone="$zone")
  export DISTILL_SBS_PROJECT="$project" DISTILL_SBS_ZONE="$zone" DISTILL_SBS_BUCKET="$bucket" \
    DISTILL_SBS_TPU="$name" DISTILL_SBS_ACCELERATOR_TYPE="$accelerator_type" \
    DISTILL_SBS_RUNTIME_VERSION="$runtime_version" DISTILL_SBS_PROVISIONING="$provisioning" \
    DISTILL_SBS_QUEUED="$queued" DISTILL_SBS_CREATE_FLAGS="$create_flags"
}

check_settings() {
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=$name: expected a lower-case letter, then letters, digits and dashes, 40 at most"
  [[ -z $zone || $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    fail "--zone=$zone: expected a zone such as us-west4-a"
  [[ -z $bucket || $bucket =~ ^gs://[a-z0-9][-a-z0-9._]+(/[-A-Za-z0-9._]+)*$ ]] ||
    fail "--bucket=$bucket: expected gs://NAME or gs://NAME/FOLDER"
  [[ $provisioning =~ ^(on_demand|spot|preemptible|reserved)$ ]] ||
    fail "--provisioning=$provisioning: expected on_demand, spot, preemptible or reserved"
  [[ $queued =~ ^(true|false)$ ]] || fail "DISTILL_SBS_QUEUED=$queued: expected true or false"
  [[ $queued == false || $provisioning != preemptible ]] ||
    fail "--queued goes with --provisioning=spot, not preemptible"
}

# needs SETTING…: each must have been given.
needs() {
  local setting
  for setting; do
    [[ -n ${!setting} ]] ||
      fail "--$setting is not set; pass --$setting=… or set DISTILL_SBS_${setting^^}"
  done
}

# Words as one would type them: quoted where the shell needs it, --flag= left outside the quotes.
quoted() {
  local word flag separator='' quote="'\\''" plain='^[-A-Za-z0-9_./:=,@%+]+$'
  for word; do
    flag=
    if [[ ! $word =~ $plain && $word =~ ^(--[A-Za-z_.-]+=)(.*)$ ]]; then
      flag="${BASH_REMATCH[1]}" word="${BASH_REMATCH[2]}"
    fi
    if [[ $word =~ $plain ]]; then
      :
    elif [[ $word == *\'* && $word != *[\"\$\`\\!]* ]]; then
      word="\"$word\""
    else
      word="'${word//\'/$quote}'"
    fi
    printf '%s%s' "$separator$flag" "$word"
    separator=' '
  done
}

# Says in a dry run when the commands that follow are run.
note() { [[ -z $dry_run ]] || echo "# $*" >&3; }

# Runs a command that changes something, and shows it; a dry run prints it instead.
run() {
  if [[ -n $dry_run ]]; then
    { quoted "$@" && echo; } >&3
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

# Runs a command that only looks; a dry run prints it instead, and gets no answer.
ask() {
  if [[ -n $dry_run ]]; then
    { quoted "$@" && echo; } >&3
  else
    "$@"
  fi
}

must_be_ours() {
  [[ $2 == "$label_value" ]] ||
    fail "$1 does not carry the label $label_key=$label_value: these scripts did not create it" \
      "and leave it alone; choose another name"
}

# Sets `slice` to none, waiting, ready or gone, from the TPU VM and its queued request, both of
# which must be ours; and tpu_state, tpu_type, request_state. Status 1 if gcloud could not tell.
find_slice() {
  local answer tpu_label request_label node='tpu.nodeSpec[0].node'
  # Where nothing is in the zone gcloud would warn that nothing there has a name.
  local this=("${place[@]}" --filter="name ~ /$name\$" --verbosity=error)
  answer="$(ask gcloud compute tpus tpu-vm list "${this[@]}" \
    --format="csv[no-heading](state,acceleratorType.basename(),labels.$label_key)")" || return 1
  IFS=, read -r tpu_state tpu_type tpu_label <<<"$answer"
  answer="$(ask gcloud compute tpus queued-resources list "${this[@]}" \
    --format="csv[no-heading](state.state,$node.labels.$label_key)")" || return 1
  IFS=, read -r request_state request_label <<<"$answer"
  [[ -z $tpu_state ]] || must_be_ours "the TPU VM $name in $zone" "$tpu_label"
  [[ -z $request_state ]] || must_be_ours "the queued request $name in $zone" "$request_label"
  case "$tpu_state,$request_state" in
    ,) slice=none ;;
    READY,*) slice=ready ;;
    PREEMPTED,* | TERMINATED,* | STOPPED,* | *,FAILED | *,SUSPENDING | *,SUSPENDED) slice=gone ;;
    *) slice=waiting ;;
  esac
}

# in_bucket URL: whether that object exists; any failure but its absence ends the script.
in_bucket() {
  local answer
  if answer="$(ask gcloud storage ls "$1" 2>&1)"; then
    [[ -n $answer ]]
  elif [[ $answer == *"matched no objects"* || $answer == *"not found: 404"* ]]; then
    return 1
  else
    fail "$answer"
  fi
}

# on_workers all|NUMBER COMMAND: the gcloud command that runs COMMAND there, in `ssh`.
on_workers() {
  ssh=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2")
}

# The run that --experiment and --run name: sets run, model_dir and train_flags.
describe_run() {
  [[ -n $experiment ]] || fail "--experiment is not set; such as --experiment=cqa_dss_base"
  [[ -f $here/../gin/experiments/$experiment.gin ]] ||
    fail "--experiment=$experiment: gin/experiments/ has no $experiment.gin"
  run="${run:-$experiment}"
  [[ $run =~ ^[-A-Za-z0-9._]+(/[-A-Za-z0-9._]+)*$ ]] ||
    fail "--run=$run: expected letters, digits, . _ - and / for folders"
  model_dir="$bucket/runs/$run"
  train_flags=(--multiprocess --gin_file="gin/experiments/$experiment.gin"
    --gin.MODEL_DIR="'$model_dir'" --gin.DATA_DIR="'$bucket/data'" "${rest[@]}")
}
