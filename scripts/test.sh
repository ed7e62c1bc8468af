#!/usr/bin/env bash
# Sets everything up, then lint, types, import contract and tests:  bash scripts/test.sh [--slow] [pytest arguments]
#
# --slow (or CI=true in the environment): the long tests too. Arguments go to pytest, `bash scripts/test.sh tests/test_config.py -k range`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

slow=${CI:-false}
arguments=()
for argument in "$@"; do
    if [[ $argument == --slow ]]; then slow=true; else arguments+=("$argument"); fi
done

