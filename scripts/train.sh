#!/usr/bin/env bash
# Trains a VAE, on every GPU that is visible:  bash scripts/train.sh CONFIG NAME [key=value ...]
#
# NPROC: the number of processes, instead of one a GPU. HOSTFILE: several hosts, one line `NAME slots=GPUS` each, as DeepSpeed's
# launcher takes them (ssh and pdsh, the same folders on all). An interrupted run goes on where it was.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
(($# >= 2)) || die "usage: bash scripts/train.sh CONFIG NAME [key=value ...]"
config=$1 name=$2
shift 2

ensure_env compare
if [[ -n ${HOSTFILE:-} ]]; then
    [[ -f $HOSTFILE ]] || die "$HOSTFILE: no such hostfile"
    exec "$bin/deepspeed" --hostfile "$HOSTFILE" ${NPROC:+--num_gpus "$NPROC"} --module sat_ssvae.cli train --config "$config" --name "$name" "$@"
fi
processes=${NPROC:-$("$bin/python" -c 'import torch; print(torch.cuda.device_count())')}
command=("$bin/sat-ssvae" train --config "$config" --name "$name" "$@")
if ((processes > 1)); then
    # torchrun would set one thread a process by itself, but warns about it.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec "$bin/torchrun" --standalone --nproc-per-node "$processes" "${command[@]}"
fi
exec "${command[@]}"
