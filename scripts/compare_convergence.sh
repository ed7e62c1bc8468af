#!/usr/bin/env bash
# Does diffusion converge faster on SSVAE's latents? Everything from an empty machine to the report:
#
#     bash scripts/compare_convergence.sh [--preset smoke|full] [--data FOLDER] [--output FOLDER] ...
#
# The same question asked of CogVideoX's own training, in the active environment (or that of PYTHON), where CogVideoX runs:
#
#     bash scripts/compare_convergence.sh --cogvideo PATH --stock YAML ... --ssvae OVERLAY.yaml ... [--processes GPUS]
#
# An interrupted run continues with the same command. All options: --help, and --cogvideo PATH --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
if [[ " $* " == *" --cogvideo"[\ =]* ]]; then
    python=${PYTHON:-python}
    if ! "$python" -c 'import pytorch_msssim, sat_ssvae, transformers, wandb' 2>/dev/null; then
        say "installing into the environment of $python..."
        "$python" -m pip install --quiet --disable-pip-version-check -e "$root[compare,cogvideo]" ||
            die "pip could not install $root with $python"
    fi
    exec "$python" -m sat_ssvae.cli cogvideo compare "$@"
fi
ensure_env compare
exec "$bin/sat-ssvae" compare "$@"
