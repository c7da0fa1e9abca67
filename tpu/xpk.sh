#!/usr/bin/env bash
# The same run as an XPK workload on a GKE cluster (pip install xpk). Needs CLUSTER and IMAGE (built from tpu/Dockerfile).
#   tpu/xpk.sh cluster                                   makes a cluster with NUM_SLICES node pools of TOPOLOGY
#   tpu/xpk.sh configs/carope/paper_small.py [overrides] submits the run
#   tpu/xpk.sh list | delete                             shows the workloads; ends this one
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME TOPOLOGY CLUSTER
[[ $# -ge 1 ]] || die "usage: tpu/xpk.sh CONFIG [overrides], or tpu/xpk.sh cluster, list or delete"
slice_of "$TOPOLOGY"
where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
case "$1" in
  cluster)
    case "$CAPACITY" in
      spot | on-demand) capacity=("--$CAPACITY") ;;
      reservation) need RESERVATION; capacity=(--reservation="$RESERVATION") ;;
      *) die "CAPACITY '$CAPACITY': wanted spot, reservation or on-demand" ;;
    esac
    run xpk cluster create "${where[@]}" --tpu-type="$ACCELERATOR" --num-slices="$NUM_SLICES" "${capacity[@]}"
    exit ;;
  list) run xpk workload list "${where[@]}"; exit ;;
  delete) run xpk workload delete "${where[@]}" --workload="$NAME"; exit ;;
esac
need WORKDIR IMAGE
[[ -f "$root/${1%%:*}" ]] || die "no config file $1 below $root"
command="JAXLM_DISTRIBUTED=1 jaxlm train --config=$1 --workdir=$WORKDIR"; shift
for override in "$@"; do command+=" $(printf '%q' "$override")"; done
# XPK restarts by itself after the codes 127 to 255, which are signals; 75 and 76 are a lost process and a hang.
run xpk workload create "${where[@]}" --workload="$NAME" --tpu-type="$ACCELERATOR" --num-slices="$NUM_SLICES" \
  --docker-image="$IMAGE" --max-restarts="${RETRIES:-100}" --restart-on-exit-codes=75,76 \
  --termination-grace-period-seconds=120 --command="$command"
