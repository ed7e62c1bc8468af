#!/usr/bin/env bash
# Does diffusion converge faster on SSVAE's latents? Everything from an empty machine to the report:
#
#     bash scripts/compare_convergence.sh [--preset smoke|full] [--data FOLDER] [--output FOLDER] ...
#
# An interrupted run goes on where it was. All options: bash scripts/compare_convergence.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
ensure_env compare
exec "$bin/sat-ssvae" compare "$@"
