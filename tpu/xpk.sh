#!/usr/bin/env bash
# The same run as an XPK workload on a GKE cluster (pip install xpk). Needs CLUSTER and IMAGE (built from tpu/Dockerfile).
#   tpu/xpk.sh configs/carope/paper_small.py [overrides]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME TOPOLOGY WORKDIR CLUSTER IMAGE
[[ $# -ge 1 ]] || die "usage: tpu/xpk.sh CONFIG [overrides]"
[[ -f "$root/${1%%:*}" ]] || die "no config file $1 below $root"
slice_of "$TOPOLOGY"
command="JAXLM_DISTRIBUTED=1 jaxlm train --config=$1 --workdir=$WORKDIR"; shift
for override in "$@"; do command+=" $(printf '%q' "$override")"; done
run xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="$NAME" \
  --tpu-type="$ACCELERATOR" --num-slices="$NUM_SLICES" --docker-image="$IMAGE" --max-restarts="${RETRIES:-100}" \
  --command="$command"
