# Shared by the scripts of this folder: variables, checks, dry run. Source it, do not run it.
# shellcheck shell=bash disable=SC2034,SC2153   # variables are for the scripts that source this
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

# Values come from the environment, else from tpu/cluster.env (copy cluster.env.example and edit it): what is set already is
# set again.
given="$(export -p)"
if [[ -f "${CLUSTER_ENV:-$here/cluster.env}" ]]; then
  # shellcheck disable=SC1090
  source "${CLUSTER_ENV:-$here/cluster.env}"
  eval "$given"
fi
DRY_RUN="${DRY_RUN:-0}"
NUM_SLICES="${NUM_SLICES:-1}"
CAPACITY="${CAPACITY:-spot}"

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# need NAME...: every named variable must be set.
need() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || die "$name is not set: copy tpu/cluster.env.example to tpu/cluster.env and fill it in, or export $name"
  done
}

# run CMD...: runs it; with DRY_RUN=1 prints it, quoted so that it can be pasted.
run() {
  if [[ "$DRY_RUN" == 1 ]]; then
    printf '%q ' "$@"; printf '\n'
  else
    "$@"
  fi
}

# The names Google Cloud uses for a slice: accelerator type (v4 and v5p count cores, two a chip) and runtime image.
slice_of() {
  local chip="${1%%:*}" shape="${1#*:}" chips=1 side
  [[ "$1" == *:*x* ]] || die "TOPOLOGY '$1' is not of the form chip:AxB or chip:AxBxC (v5e:4x4, v5p:4x4x4)"
  for side in ${shape//x/ }; do
    [[ "$side" =~ ^[0-9]+$ ]] || die "TOPOLOGY '$1': '$side' is not a number"
    chips=$((chips * side))
  done
  case "$chip" in
    v4)  ACCELERATOR="v4-$((chips * 2))";     RUNTIME="tpu-ubuntu2204-base" ;;
    v5e) ACCELERATOR="v5litepod-$chips";      RUNTIME="v2-alpha-tpuv5-lite" ;;
    v5p) ACCELERATOR="v5p-$((chips * 2))";    RUNTIME="v2-alpha-tpuv5" ;;
    v6e) ACCELERATOR="v6e-$chips";            RUNTIME="v2-alpha-tpuv6e" ;;
    *) die "TOPOLOGY '$1': no chip '$chip'; known: v4 v5e v5p v6e" ;;
  esac
  CHIPS="$chips"
}

# Node names of the queued resource: one, or NAME-0 ... for several slices.
nodes() {
  local k
  if [[ "$NUM_SLICES" == 1 ]]; then
    printf '%s\n' "$NAME"
  else
    for ((k = 0; k < NUM_SLICES; k++)); do printf '%s-%d\n' "$NAME" "$k"; done
  fi
}

# on_workers COMMAND: the same shell command on every host of every slice, all slices at once. Fails if one fails.
on_workers() {
  local node pid failed=0 pids=()
  for node in $(nodes); do
    if [[ "$DRY_RUN" == 1 ]]; then
      run gcloud compute tpus tpu-vm ssh "$node" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
    else
      gcloud compute tpus tpu-vm ssh "$node" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1" </dev/null &
      pids+=("$!")
    fi
  done
  # bash 3.2 calls an empty array unset.
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  return "$failed"
}

# State of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED ... or MISSING. A question that
# cannot be answered (no network, no permission) is asked again for ten minutes: a slice is not lost because we are.
state() {
  local said tries
  for ((tries = 0; tries < ${STATE_TRIES:-20}; tries++)); do
    if said="$(gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --format='value(state.state)' 2>&1)"; then
      printf '%s\n' "$said"
      return 0
    fi
    if [[ "$said" == *NOT_FOUND* || "$said" == *"not found"* ]]; then
      printf 'MISSING\n'
      return 0
    fi
    sleep "${STATE_PAUSE:-30}"
  done
  printf 'error: no answer about %s: %s\n' "$NAME" "$said" >&2
  return 2
}

# State of the slice: as `state`, but PREEMPTED where the queued resource is ACTIVE and one of its nodes was taken away.
slice_state() {
  local node said current
  current="$(state)" || return 2
  if [[ "$current" == ACTIVE ]]; then
    for node in $(nodes); do
      said="$(gcloud compute tpus tpu-vm describe "$node" --project="$PROJECT" --zone="$ZONE" --format='value(state)' 2>/dev/null)" ||
        continue
      case "$said" in
        PREEMPTED | TERMINATED | STOPPED) current=PREEMPTED ;;
      esac
    done
  fi
  printf '%s\n' "$current"
}
