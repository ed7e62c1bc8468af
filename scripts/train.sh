#!/usr/bin/env bash
# Trains a VAE, on every GPU that is visible:  bash scripts/train.sh CONFIG NAME [key=value ...]
#
# NPROC: the number of processes, instead of one per GPU. HOSTFILE: several hosts, one line `NAME slots=GPUS` each, as DeepSpeed's
# launcher takes them (ssh and pdsh, the same folders on all); MASTER_PORT: a free port of the first one, instead of 29500. An
# interrupted run continues with the same command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
(($# >= 2)) || die "usage: bash scripts/train.sh CONFIG NAME [key=value ...]"
config=$1 name=$2
shift 2

ensure_env compare
if [[ -n ${HOSTFILE:-} ]]; then
    [[ -f $HOSTFILE ]] || die "$HOSTFILE: no such hostfile"
    command -v pdsh >/dev/null || die "HOSTFILE needs pdsh and ssh here; install them, or start torchrun on each host (docs/training.md)"
    # pdsh replaces %h, %n and %u, and a shell on each host reads the line again: braces, $ and globs must arrive as given.
    arguments=()
    for text in --config "$config" --name "$name" "$@"; do
        for special in \\ \$ \`; do text=${text//"$special"/\\"$special"}; done
        text=${text//%/%%}
        [[ $text == *" "* ]] || text=\"${text//\"/\\\"}\" # DeepSpeed itself does this to those with a space
        arguments+=("$text")
    done
    # Without it ssh would wait for hours for a host that the network lost; the ranks give up after ten minutes as well.
    export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=30 -o ServerAliveCountMax=20"
    # One host alone would be started without pdsh, and the quotes would stay.
    exec "$bin/deepspeed" --hostfile "$HOSTFILE" --force_multi ${NPROC:+--num_gpus "$NPROC"} \
        ${MASTER_PORT:+--master_port "$MASTER_PORT"} --module sat_ssvae.cli train "${arguments[@]}"
fi
processes=${NPROC:-$("$bin/python" -c 'import torch; print(torch.cuda.device_count())')}
command=("$bin/sat-ssvae" train --config "$config" --name "$name" "$@")
if ((processes > 1)); then
    # torchrun would set one thread a process by itself, but warns about it.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec "$bin/torchrun" --standalone --nproc-per-node "$processes" "${command[@]}"
fi
exec "${command[@]}"
