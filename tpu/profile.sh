#!/usr/bin/env bash
# Captures an XProf trace of a few steps of a config, in a run folder of its own, and fetches it.
#   tpu/profile.sh configs/carope/paper_small.py [overrides]       then: pip install xprof && xprof --logdir tpu-profile
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need PROJECT ZONE NAME WORKDIR
[[ $# -ge 1 ]] || die "usage: tpu/profile.sh CONFIG [overrides]"
config="$1"; shift
[[ -f "$root/${config%%:*}" ]] || die "no config file $config below $root"
folder="$WORKDIR-profile-$(date +%Y%m%d-%H%M%S)"      # a second trace is a second run
command="cd jaxlm && JAXLM_DISTRIBUTED=1 ../venv/bin/jaxlm train --config=$config --workdir=$folder \
--config.train.steps=30 --config.train.profile=15,19"
for override in "$@"; do command+=" $(printf '%q' "$override")"; done
on_workers "$command"
run mkdir -p tpu-profile
run gcloud storage cp -r "$folder/profile" tpu-profile/
