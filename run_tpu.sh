#!/usr/bin/env bash
# Runs a command of llama_jax on every host of a Cloud TPU, or as several processes on this machine.
#
# Read it from top to bottom: what the options are, the steps on this side, what keeps a job going, the processes of
# --local, what happens on each host of the TPU, and last the order of the steps. Only `gcloud` is needed here, and bash
# 4.4 or newer.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
POLL_SECONDS=30       # between two looks at a request that waits for a TPU
RECONNECT_SECONDS=15  # before the log is asked for again after a lost connection
STOP_SECONDS=600      # what `stop` leaves a job to save and end
MOST_BACKOFF=900      # seconds before a restart: a minute at first, twice as long each time, at most so many
LEAVE_SECONDS=${LEAVE_SECONDS:-10} # what the processes of --local have to end once one of them failed

usage() {
  cat <<'USAGE'
usage:
  ./run_tpu.sh --name NAME --type TYPE --zone ZONE --project PROJECT --bucket gs://BUCKET [options] -- COMMAND [ARGS]
      Everything in order: create, install, run, follow. The exit code is that of the command on host 0. Where the
      command runs already, it is followed.
  ./run_tpu.sh STEP --name NAME --zone ZONE --project PROJECT [options] [-- COMMAND [ARGS]]
      One step alone:
        create    ask for the TPU by a queued resource, and wait until it is there
        install   copy this checkout to every host and install it there
        run       start COMMAND with the same arguments on every host; it keeps running without a connection
        follow    show the log of host 0, from its last 100 lines on, until the command ends
        stop      ask the command to save and end (it exits with 75; run the same command to resume)
        delete    delete the TPU and its queued resource
  ./run_tpu.sh --local N -- COMMAND [ARGS]
      COMMAND as N processes of one job on this machine (CPU, unless JAX_PLATFORMS says otherwise).

COMMAND is a command of llama_jax: pretrain, sft, lora, evaluate, …

options:
  --name NAME             of the TPU and of its queued resource
  --type TYPE             accelerator type: v2-8 … v3-32 … v4-512 … v5litepod-256 … v5p-1024 … v6e-256
  --zone ZONE             such as us-central1-a
  --project PROJECT       the Google Cloud project that pays
  --bucket gs://BUCKET    looked for before anything is paid for; a command that trains gets --run_dir gs://BUCKET/NAME,
                          unless its arguments name another run directory
  --slices N              several TPUs of this type in one job (default 1); each step has to be told
  --spot                  a spot TPU, which is cheaper and can be taken away; otherwise on demand
  --keep_going            when the command fails or the TPU is taken away or loses a host, run the command again so that
                          it resumes, on a new TPU if need be; not after 0, after 2 (a mistake) or after the step stop
  --restarts N            with --keep_going, give up after so many in a row without a newer checkpoint (default 8)
  --wait_minutes N        how long the request may wait for a TPU (default 720)
  --runtime_version V     the image; by default the one that Google names for JAX on this type
  --source URL            what to install instead of this checkout, such as git+https://HOST/REPOSITORY@COMMIT
  --delete                delete the TPU when the command has ended, or when a step before that fails
  --dry_run               print every command, and run none
USAGE
}

say() { printf '%s\n' "$*" >&2; }

# The user's mistake.
mistake() {
  say "error: $*"
  exit 2
}

# The arguments as one line that bash reads back to the same arguments.
quoted() {
  local word flag line=
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      [[ $word =~ ^--[a-z-]+= ]] && flag=${BASH_REMATCH[0]} || flag=
      word=${word:${#flag}}
      word=$flag${word@Q}
    fi
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# The options.

# (+x: a variable of the same name in the environment stays the caller's and is not handed on changed.)
declare +x STEP='' NAME='' TYPE='' ZONE='' PROJECT='' BUCKET='' RUNTIME_VERSION='' SOURCE='' LOCAL='' RUN_DIR=''
declare +x SPOT=false KEEP_GOING=false DELETE=false DRY_RUN=false WAIT_MINUTES=720 RESTARTS='' SLICES=1
declare +x COMMAND=() SLICE_NAMES=() FOR_A_TPU='' # the last step or option that --local does not take

read_options() {
  case ${1:-} in
    create | install | run | follow | stop | delete) STEP=$1 FOR_A_TPU=$1 && shift ;;
  esac
  while (($#)); do
    case $1 in
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
      --*) [[ $1 =~ ^--(local|dry_run)?$ ]] || FOR_A_TPU=$1 ;;&
      --name | --type | --zone | --project | --bucket | --slices | --restarts | --wait_minutes | --runtime_version | \
        --source | --local)
        (($# > 1)) && [[ $2 && $2 != --* ]] || mistake "$1: needs a value"
        ;;&
      --name) NAME=$2 ;;
      --type) TYPE=$2 ;;
      --zone) ZONE=$2 ;;
      --project) PROJECT=$2 ;;
      --bucket) BUCKET=${2%/} ;;
      --slices) SLICES=$2 ;;
      --restarts) RESTARTS=$2 ;;
      --wait_minutes) WAIT_MINUTES=$2 ;;
      --runtime_version) RUNTIME_VERSION=$2 ;;
      --source) SOURCE=$2 ;;
      --local) LOCAL=$2 ;;
      --spot) SPOT=true && shift && continue ;;
      --keep_going) KEEP_GOING=true && shift && continue ;;
      --delete) DELETE=true && shift && continue ;;
      --dry_run) DRY_RUN=true && shift && continue ;;
      -h | --help) usage && exit 0 ;;
      --) COMMAND=("${@:2}") && break ;;
      -*) mistake "$1: unknown option; ./run_tpu.sh --help lists them (the command and its arguments follow --)" ;;
      *) mistake "$1: unknown step; there are create, install, run, follow, stop, delete (a command follows --)" ;;
    esac
    shift 2
  done
}

# Whether this step is part of what was asked for.
asked() { [[ -z $STEP || $STEP == "$1" ]]; }

check_command() {
  ((${#COMMAND[@]})) || mistake "no command; say it after --, as in: -- pretrain --config pretrain_7b"
  [[ ${COMMAND[0]} =~ ^[a-z_0-9]+$ && -e $ROOT/llama_jax/${COMMAND[0]}.py ]] ||
    mistake "${COMMAND[0]}: not a command of llama_jax; there is none of this name in $ROOT/llama_jax"
}

check_number() { [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || mistake "$1: '$2' is not a positive number"; }

# The TPU that was asked for: a mistake is found before anything is paid for.
check_options() {
  local index
  [[ $NAME ]] || mistake "--name: needed, the name of the TPU, such as llama-7b"
  [[ $NAME =~ ^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$ ]] ||
    mistake "--name: '$NAME' must be lower-case letters, digits and hyphens, with a letter first and no hyphen last"
  [[ $PROJECT ]] || mistake "--project: needed, the Google Cloud project that pays"
  [[ $ZONE ]] || mistake "--zone: needed, such as us-central1-a"
  [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || mistake "--zone: '$ZONE' is not a zone, such as us-central1-a"
  check_number --slices "$SLICES"
  [[ -z $RESTARTS ]] || $KEEP_GOING || mistake "--restarts: does something only with --keep_going"
  check_number --restarts "${RESTARTS:=8}"
  check_number --wait_minutes "$WAIT_MINUTES"
  ! $KEEP_GOING || [[ -z $STEP ]] || mistake "--keep_going: belongs to no step, it takes all of them"
  if asked create; then
    [[ $TYPE ]] || mistake "--type: needed, the accelerator type, such as v5litepod-256"
    [[ $TYPE =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
      mistake "--type: '$TYPE' is not an accelerator type; there are v2-N, v3-N, v4-N, v5litepod-N (v5e), v5p-N, v6e-N"
  fi
  [[ -z $SOURCE || $SOURCE == *://* ]] ||
    mistake "--source: '$SOURCE' is not a URL that pip installs, such as git+https://HOST/REPOSITORY@COMMIT"
  if asked run; then
    check_command
    check_run_dir
  elif ((${#COMMAND[@]})); then
    mistake "-- ${COMMAND[0]}: $STEP takes no command; it belongs to run, or to no step at all"
  fi
  ! $DELETE || [[ -z $STEP || $STEP == follow ]] || mistake "--delete: belongs to follow, or to no step at all"
  $DRY_RUN || command -v gcloud >/dev/null ||
    mistake "gcloud: not installed here; see https://cloud.google.com/sdk/docs/install"
  SLICE_NAMES=("$NAME")
  if ((SLICES > 1)); then # as Google names them
    for index in $(seq 0 $((SLICES - 1))); do SLICE_NAMES[index]=$NAME-$index; done
  fi
}

# All processes of a run share its directory, so on a TPU it lies in a bucket.
check_run_dir() {
  local index resume=auto
  for index in "${!COMMAND[@]}"; do
    case ${COMMAND[index]} in
      --run_dir) RUN_DIR=${COMMAND[index + 1]:-} ;;
      --run_dir=*) RUN_DIR=${COMMAND[index]#*=} ;;
      --resume) resume=${COMMAND[index + 1]:-} ;;
      --resume=*) resume=${COMMAND[index]#*=} ;;
    esac
  done
  ! $KEEP_GOING || [[ $resume == auto ]] ||
    mistake "--resume: with --keep_going '$resume' would hold for every restart; begin without --keep_going"
  [[ -z $RUN_DIR || $RUN_DIR == gs://* ]] ||
    mistake "--run_dir: '$RUN_DIR' is not on every host; name a directory of a bucket, gs://BUCKET/…"
  [[ -z $BUCKET || $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]+(/.*)?$ ]] ||
    mistake "--bucket: '$BUCKET' is not a bucket, such as gs://my-bucket"
  case ${COMMAND[0]} in
    pretrain | sft | lora | reward | dpo | kto | grpo | ppo)
      if [[ -z $RUN_DIR ]]; then
        [[ $BUCKET ]] || mistake "--bucket: needed, the gs://BUCKET that all hosts write the run to"
        RUN_DIR=$BUCKET/$NAME
        COMMAND+=(--run_dir "$RUN_DIR")
      fi
      ;;
  esac
}

# The steps. Each says what failed, and returns 1 then.

COSTS='' # what exists of the TPU as far as is known: nothing, or the word that begins the sentence about it
CREATED=false # whether it was asked for by this script
DELETED=false # and since then deleted by it
PACKED=false
OUT_OF_REACH=false # whether the job may be running although nobody can look at it
STOPPED=false # whether somebody else has stopped the job or deleted the TPU

# Runs gcloud, or prints the call (to descriptor 3: this output, also from within $(…)).
gcloud_() {
  if $DRY_RUN; then quoted gcloud "$@" >&3; else gcloud "$@" </dev/null; fi
}

queued_resource() {
  gcloud_ compute tpus queued-resources "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

# on_slice SLICE all|0 COMMAND ARGUMENTS…: what its hosts are to do, by their own copy of this script.
on_slice() {
  # A connection that died is noticed within a minute and a half.
  gcloud_ compute tpus tpu-vm ssh "$1" --project="$PROJECT" --zone="$ZONE" --worker="$2" --quiet \
    --ssh-flag=-oServerAliveInterval=30 --command="$(quoted bash run_tpu.sh "${@:3}")"
}

# shellcheck disable=SC2329 # called by on_all_slices
copy_to_slice() {
  gcloud_ compute tpus tpu-vm scp "${@:2}" "$1:" --project="$PROJECT" --zone="$ZONE" --worker=all --quiet
}

# on_all_slices FUNCTION ARGUMENTS…: calls it with the name of each slice before the arguments, for all of them at the
# same time; fails if one does. (`gcloud … queued-resources ssh --node=all` succeeds without the slices that are gone.)
on_all_slices() {
  local slice pid pids=() status=0
  for slice in "${SLICE_NAMES[@]}"; do
    if $DRY_RUN; then
      "$1" "$slice" "${@:2}"
    else
      (trap - INT && "$1" "$slice" "${@:2}") & # Ctrl-C ends them too
      pids+=($!)
    fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

on_all_hosts() { on_all_slices on_slice all "$@"; }

# For `failed … || return`; gcloud has said why.
failed() {
  say "error: $*"
  return 1
}

# However the script ends: what it leaves behind, and how to be rid of it.
# shellcheck disable=SC2329 # called by the trap
say_what_is_left() {
  if [[ -z $COSTS ]] || $DRY_RUN; then return; fi
  local delete=(gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet)
  say "$COSTS; to remove it: $(quoted "${delete[@]}")"
}
trap say_what_is_left EXIT

# The state of the queued resource, NOT_FOUND if there is none. A dry run assumes the state it is given.
state_of_tpu() {
  local assumed=$1 state errors
  errors=$(mktemp)
  if state=$(queued_resource describe '--format=value(state.state)' 2>"$errors"); then
    if $DRY_RUN; then state=$assumed; fi
  elif grep -q NOT_FOUND "$errors"; then
    state=NOT_FOUND
  else
    cat "$errors" >&2
    state=
  fi
  rm -f "$errors"
  printf '%s\n' "$state"
  [[ $state ]]
}

check_bucket() {
  [[ -z $BUCKET ]] || gcloud_ storage buckets describe "$(cut -d/ -f1-3 <<<"$BUCKET")" --project="$PROJECT" \
    '--format=value(location)' >/dev/null ||
    failed "--bucket: $BUCKET cannot be opened; nothing was created"
}

create_tpu() {
  local state options=(--node-id="$NAME")
  state=$(state_of_tpu NOT_FOUND) || failed "create: cannot ask for the state of $NAME" || return
  if $KEEP_GOING && [[ $state =~ ^(FAILED|SUSPENDING|SUSPENDED)$ ]]; then
    say "$NAME is $state; it still holds quota, and is deleted first"
    delete_tpu || return
    state=NOT_FOUND
  fi
  if [[ $state == NOT_FOUND ]]; then
    ((SLICES == 1)) || options=(--node-count="$SLICES" --node-prefix="$NAME")
    ! $SPOT || options+=(--spot)
    COSTS="$NAME may exist after all"
    # The request lapses when nobody waits for it any more.
    queued_resource create --accelerator-type="$TYPE" --runtime-version="${RUNTIME_VERSION:-$(runtime_version)}" \
      "${options[@]}" --valid-until-duration="${WAIT_MINUTES}m" --quiet >&2 ||
      failed "create: gcloud could not ask for $NAME ($TYPE)" || return
    CREATED=true DELETED=false
  else
    say "$NAME already exists ($state)"
  fi
  COSTS="$NAME is requested, and costs money from when it is ACTIVE"
  wait_for_tpu || return
  COSTS="$NAME still exists and costs money"
}

# The image for JAX: https://cloud.google.com/tpu/docs/runtimes
runtime_version() {
  case $TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

wait_for_tpu() {
  local state last='' waited=0 misses=0
  while true; do
    if state=$(state_of_tpu ACTIVE); then
      misses=0
    else # hours of waiting need not end for a moment without network
      ((++misses < 5)) || failed "create: cannot ask for the state of $NAME" || return
      state=$last
    fi
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NOT_FOUND)
        queued_resource describe >&2 || true
        failed "create: $NAME is $state; delete it, then run the same command again" || return
        ;;
    esac
    ((waited < 60 * WAIT_MINUTES)) ||
      failed "create: $NAME is still $state after $WAIT_MINUTES minutes" || return
    [[ $state == "$last" ]] || say "$NAME is $state; waiting at most $WAIT_MINUTES minutes"
    last=$state
    sleep "$POLL_SECONDS"
    waited=$((waited + POLL_SECONDS))
  done
}

# This checkout as it is now: a job that is kept going for days goes on with the code that it began with.
pack() {
  local folder=$1 content=(configs)
  # Beside a package from elsewhere a second one in the working directory would be the one that runs.
  [[ $SOURCE ]] || content+=(llama_jax pyproject.toml README.md LICENSE)
  local archive=(tar -czf "$folder/llama_jax.tar.gz" -C "$ROOT" --exclude=__pycache__ "${content[@]}")
  if $DRY_RUN; then
    quoted mkdir -p "$folder" >&3
    quoted cp "$ROOT/run_tpu.sh" "$folder" >&3
    quoted "${archive[@]}" >&3
  else
    mkdir -p "$folder" && cp "$ROOT/run_tpu.sh" "$folder" && "${archive[@]}"
  fi
}

install_on_hosts() {
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/llama_jax/$NAME
  COSTS="$NAME still exists and costs money"
  $PACKED || pack "$folder" || failed "install: cannot pack the checkout into $folder" || return
  PACKED=true
  on_all_slices copy_to_slice "$folder/run_tpu.sh" "$folder/llama_jax.tar.gz" >&2 ||
    failed "install: cannot copy to the hosts of $NAME" || return
  on_all_hosts host_install ${SOURCE:+"$SOURCE"} >&2 || failed "install: not every host of $NAME has installed it"
}

run_on_hosts() {
  COSTS="$NAME still exists and costs money"
  on_all_hosts host_start "${COMMAND[@]}" >&2 || failed "run: not every host of $NAME has started ${COMMAND[0]}"
}

# Shows the log of host 0 until the job ends; returns its exit code.
follow_log() {
  local outcome='' code=0
  COSTS="$NAME still exists and costs money"
  OUT_OF_REACH=false
  trap 'say "the job on $NAME keeps running; the steps follow and stop find it again"; exit 130' INT
  show_log || code=$?
  trap 'exit 130' INT
  if ((code != 0)) || $DRY_RUN; then return "$code"; fi
  if [[ $outcome == *' stopped' ]]; then
    STOPPED=true
    outcome=${outcome% stopped}
  fi
  case $outcome in
    0) return 0 ;;
    none) failed "follow: no job was started on $NAME" || return ;;
    75) say "the job on $NAME saved and ended after a signal; run the same command to resume" && return 75 ;;
  esac
  say "the job on $NAME failed on host 0 ($outcome); all hosts say:"
  on_all_hosts host_status >&2 || true
  [[ $outcome =~ ^[0-9]+$ ]] || outcome=1
  return "$outcome"
}

# Sets `outcome` to how the job ended. Lines come numbered, so that whoever has to connect again (gcloud does so by
# itself too) shows none of them twice.
show_log() {
  local line number shown=0 misses=0
  shopt -s lastpipe # the loop below is of this shell, and Ctrl-C ends gcloud too
  until [[ $outcome ]]; do
    on_slice "${SLICE_NAMES[0]}" 0 host_follow "$shown" | while IFS= read -r line; do
      number=${line%% *} line=${line#* }
      if [[ $number == exit ]]; then
        outcome=$line
      elif [[ $number =~ ^[0-9]+$ ]] && ((number > shown)); then
        printf '%s\n' "$line"
        shown=$number misses=0
      fi
    done || true
    if $DRY_RUN; then return 0; fi
    if [[ -z $outcome ]]; then
      lost_connection $((++misses)) || return
      sleep "$RECONNECT_SECONDS"
    fi
  done
}

# The log broke off: only a TPU that is still there is worth another try.
lost_connection() {
  local state
  if state=$(state_of_tpu ACTIVE) && [[ $state != ACTIVE ]]; then
    failed "follow: $NAME is $state: it was taken away or deleted" || return
  fi
  if (($1 == 20)); then
    OUT_OF_REACH=true
    failed "follow: host 0 of $NAME cannot be reached; its job may still be running, and the step follow finds it again" ||
      return
  fi
  say "the connection to host 0 of $NAME is lost; connecting again"
}

stop_on_hosts() {
  COSTS="$NAME still exists and costs money"
  on_all_hosts host_stop >&2 || failed "stop: not every host of $NAME could be told"
}

delete_tpu() {
  COSTS="$NAME may still exist and cost money"
  DELETED=true
  queued_resource delete --force --quiet >&2 || failed "delete: $NAME could not be deleted" || return
  COSTS='' OUT_OF_REACH=false
  $DRY_RUN || say "$NAME and its queued resource are deleted"
}

# What keeps a job going.

# Follows the job until it is done, is stopped, or makes no progress any more; returns its exit code.
keep_going() {
  local code=0 fruitless=0 newest reached seconds
  newest=$(newest_checkpoint)
  follow_log || code=$?
  # 75 without the step stop: the machine had notice that it is taken away.
  until ((code == 0 || code == 2)) || $STOPPED; do
    reached=$(newest_checkpoint)
    if ((reached > newest)); then newest=$reached fruitless=0; fi
    if ((fruitless == RESTARTS)); then
      failed "--keep_going: no newer checkpoint (restarts: $RESTARTS; newest: ${newest/#-1/none}); giving up" || break
    fi
    seconds=$((fruitless < 4 ? 60 << fruitless : MOST_BACKOFF))
    say "restart $((++fruitless)) of at most $RESTARTS in $seconds s (newest checkpoint: ${newest/#-1/none})"
    sleep "$seconds"
    code=0
    { start_again "$fruitless" && follow_log; } || code=$?
  done
  return "$code"
}

# The newest step that the run has saved, -1 if none can be seen. (Its manifest is what is written last.)
newest_checkpoint() {
  local path newest=-1
  if [[ $RUN_DIR ]]; then
    while IFS= read -r path; do
      path=${path%/manifest.json} path=${path##*/}
      if [[ $path =~ ^[0-9]{1,15}$ ]] && ((10#$path > newest)); then newest=$((10#$path)); fi
    done < <(gcloud_ storage ls "$RUN_DIR/checkpoints/*/manifest.json" --project="$PROJECT" 2>/dev/null)
  fi
  echo "$newest"
}

# start_again FRUITLESS: brings the job to run again, whatever ended it. So many restarts have come to nothing.
start_again() {
  local state
  state=$(state_of_tpu ACTIVE) || failed "--keep_going: cannot ask for the state of $NAME" || return
  if [[ $state == NOT_FOUND ]] && ! $DELETED; then
    COSTS='' STOPPED=true
    failed "--keep_going: $NAME was deleted by somebody else; giving up" || return
  fi
  if [[ $state == ACTIVE ]]; then
    if runs_already; then return; fi
    # The same TPU, if all of its hosts answer; but what fails on it time and again may be due to a broken chip.
    if (($1 <= 2)) && on_all_hosts host_stop >&2; then
      start_job
      return
    fi
    say "$NAME is not fit for the job any more; it holds quota, and is deleted first"
    delete_tpu || return
  fi
  create_tpu && start_job
}

start_job() { install_on_hosts && run_on_hosts; }

runs_already() {
  on_all_hosts host_runs "${COMMAND[@]}" &>/dev/null && say "$NAME runs ${COMMAND[0]} already"
}

# Several processes on this machine.

PIDS=() # of the processes that still run, by rank

signal_all() {
  local pid
  for pid in "${PIDS[@]}"; do kill -s "$1" -- "$pid" 2>/dev/null || true; done
}

# COMMAND as LOCAL processes. The output is that of process 0; the exit code that of the first that failed.
run_locally() {
  local rank port=PORT logs='' process python=${PYTHON:-python}
  [[ $LOCAL =~ ^[1-9][0-9]*$ ]] || mistake "--local: '$LOCAL' is not a positive number of processes"
  check_command
  command -v "$python" >/dev/null || mistake "$python: not found; activate the environment, or set PYTHON"
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
  if ! $DRY_RUN; then
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    logs=$(mktemp -d)
  fi
  trap 'signal_all INT' INT
  trap 'signal_all TERM' TERM HUP
  set -m # each process in a group of its own: Ctrl-C reaches this script alone, which passes it on once
  for ((rank = 0; rank < LOCAL; rank++)); do
    process=("$python" -m llama_jax "${COMMAND[@]}" --distributed.coordinator "127.0.0.1:$port"
      --distributed.num_processes "$LOCAL" --distributed.process_id "$rank")
    if $DRY_RUN; then
      quoted "${process[@]}"
    elif ((rank == 0)); then
      "${process[@]}" </dev/null &
      PIDS[rank]=$!
    else
      "${process[@]}" </dev/null >"$logs/process_$rank.log" 2>&1 &
      PIDS[rank]=$!
    fi
  done
  set +m
  wait_for_processes "$logs"
}

wait_for_processes() {
  local logs=$1 rank status code=0 deadline=
  while ((${#PIDS[@]})); do
    for rank in "${!PIDS[@]}"; do
      if kill -0 "${PIDS[rank]}" 2>/dev/null; then continue; fi
      wait "${PIDS[rank]}" 2>/dev/null && status=0 || status=$?
      unset "PIDS[rank]"
      if ((status == 0 || code != 0)); then continue; fi
      code=$status
      if ((code == 75)); then # all save together
        deadline=$((SECONDS + 120))
        continue
      fi
      say "process $rank of $LOCAL ended with exit code $code"
      ((rank == 0)) || cat "$logs/process_$rank.log" >&2
      # The others would wait in vain for the one that is gone.
      deadline=$((SECONDS + LEAVE_SECONDS))
      signal_all TERM
    done
    if [[ $deadline ]] && ((SECONDS >= deadline)); then
      # With the processes that they started.
      for rank in "${!PIDS[@]}"; do kill -KILL -- "-${PIDS[rank]}" 2>/dev/null || true; done
    fi
    ((${#PIDS[@]} == 0)) || sleep 0.2 || true # a signal ends the sleep too
  done
  if ((code == 0 || code == 75 || LOCAL == 1)); then
    rm -rf "$logs"
  else
    say "what the other processes printed is in $logs"
  fi
  return "$code"
}

# On each host of the TPU.

HOME_ON_HOST=~/llama_jax
JOB=$HOME_ON_HOST/job # command, log, pid (of host_job), python_pid, exit_code, stopping; lock is held while it runs

say_as_host() { printf '[%s] %s\n' "$(hostname)" "$*"; }

job_runs() { [[ -e $JOB/lock ]] && ! flock --nonblock "$JOB/lock" true; }

is_the_job() { [[ $(cat "$JOB/command") == "$(quoted "$@")" ]]; }

host_runs() { job_runs && is_the_job "$@"; }

host_install() {
  if job_runs; then
    say_as_host "a job runs here: $(cat "$JOB/command"); follow it, or stop it first"
    return 1
  fi
  mkdir -p "$HOME_ON_HOST" && cd "$HOME_ON_HOST"
  rm -rf llama_jax configs pyproject.toml
  tar -xzf "$HOME/llama_jax.tar.gz"
  # The images bring Python 3.10, or one that forbids pip to install into it; uv brings its own.
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -x .venv/bin/python ]] || uv venv --quiet --python 3.11 .venv
  if [[ $1 ]]; then
    uv pip install --quiet --python .venv/bin/python --reinstall-package llama_jax "llama_jax[tpu,gcp] @ $1"
  else
    uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcp]'
  fi
  say_as_host "installed"
}

# Starts the job apart from the connection. gcloud repeats a command whose connection broke, so a second start of the
# same job does nothing.
host_start() {
  mkdir -p "$JOB"
  exec 9>"$JOB/lock"
  if ! flock --nonblock 9; then
    if is_the_job "$@"; then
      say_as_host "runs already" && return
    fi
    say_as_host "another job runs here: $(cat "$JOB/command"); stop it first"
    return 1
  fi
  rm -f "$JOB"/{exit_code,stopping,python_pid}
  [[ ! -e $JOB/log ]] || mv "$JOB/log" "$JOB/log.previous"
  quoted "$@" >"$JOB/command"
  setsid nohup bash "$ROOT/run_tpu.sh" host_job "$@" </dev/null >"$JOB/log" 2>&1 &
  echo $! >"$JOB/pid"
  say_as_host "started"
}

# The job itself; holds the lock it was given until it ends.
host_job() {
  local code=0
  cd "$HOME_ON_HOST"
  # Which slice this is of how many is asked of the machine: a variable that an earlier slice left would win over that,
  # and the job would wait for slices that are gone.
  unset "${!MEGASCALE_@}"
  .venv/bin/python -u -m llama_jax "$@" 9>&- &
  echo $! >"$JOB/python_pid"
  wait $! || code=$?
  echo "$code" >"$JOB/exit_code.new"
  mv "$JOB/exit_code.new" "$JOB/exit_code"
}

# Prints "NUMBER LINE" for each line of the log after the first $1 (of 0: the last 100), waits for more while the job
# runs, and ends with "exit CODE": a number, "none" if no job was started, "lost" if the host went down under it; and
# " stopped" if it was asked to end by the step stop.
host_follow() {
  local shown=$1 line lines
  [[ -e $JOB/log ]] || { echo "exit none" && return; }
  lines=$(wc -l <"$JOB/log")
  ((shown > 0 || lines <= 100)) || shown=$((lines - 100))
  local tail=(tail -n "+$((shown + 1))")
  if job_runs; then tail+=(-f --pid="$(cat "$JOB/pid")"); fi
  while IFS= read -r line || [[ $line ]]; do
    printf '%d %s\n' $((++shown)) "$line"
  done < <("${tail[@]}" "$JOB/log")
  printf 'exit %s%s\n' "$(cat "$JOB/exit_code" 2>/dev/null || echo lost)" "$([[ ! -e $JOB/stopping ]] || echo ' stopped')"
}

host_status() {
  local code
  if job_runs; then
    say_as_host "still runs"
  else
    code=$(cat "$JOB/exit_code" 2>/dev/null || echo lost)
    say_as_host "ended with exit code $code"
    [[ $code == 0 ]] || tail -n 20 "$JOB/log"
  fi
}

host_stop() {
  local second
  job_runs || { say_as_host "no job runs here" && return; }
  # Told once: a second signal would end it without saving.
  [[ -e $JOB/stopping ]] || kill -TERM "$(cat "$JOB/python_pid")"
  touch "$JOB/stopping"
  for ((second = 0; second < STOP_SECONDS; second++)); do
    job_runs || { say_as_host "ended with exit code $(cat "$JOB/exit_code")" && return; }
    sleep 1
  done
  echo 137 >"$JOB/exit_code"
  kill -KILL -- "-$(cat "$JOB/pid")" || true
  say_as_host "did not end within $STOP_SECONDS s and was killed"
}

# The order of the steps.

all_steps() {
  create_tpu || return
  if $CREATED || ! runs_already; then
    start_job || return
  fi
  if $KEEP_GOING; then keep_going; else follow_log; fi
}

# Never returns: all of this file was read by then, and may be replaced while a job runs.
main() {
  local code=0
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || mistake "bash $BASH_VERSION: too old, 4.4 or newer is needed"
  case ${1:-} in
    host_install) host_install "${2:-}"; exit ;;
    host_start) host_start "${@:2}"; exit ;;
    host_job) host_job "${@:2}"; exit ;;
    host_runs) host_runs "${@:2}"; exit ;;
    host_follow) host_follow "$2"; exit ;;
    host_status) host_status; exit ;;
    host_stop) host_stop; exit ;;
  esac
  read_options "$@"
  if [[ $LOCAL ]]; then
    [[ -z $FOR_A_TPU ]] || mistake "--local: takes no step and no option but --dry_run, so not $FOR_A_TPU"
    run_locally
    exit
  fi
  check_options
  exec 3>&1
  trap 'exit 130' INT
  if asked run; then check_bucket || exit; fi
  case $STEP in
    create) create_tpu ;;
    install) install_on_hosts ;;
    run) run_on_hosts ;;
    follow) follow_log ;;
    stop) stop_on_hosts ;;
    delete) delete_tpu ;;
    *) all_steps ;;
  esac || code=$?
  if $DELETE && [[ $COSTS ]] && ! $OUT_OF_REACH; then delete_tpu || code=1; fi
  exit "$code"
}

main "$@"
