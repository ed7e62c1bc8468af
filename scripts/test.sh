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

ensure_env compare,cogvideo,reward,diffusers,hub,ray,s3,wandb,test,dev
cd "$root"
"$bin/ruff" check --quiet
"$bin/ruff" format --check --quiet || die "the files above are not formatted: run $bin/ruff format"
"$bin/mypy"
"$bin/lint-imports" --no-logo

# One thread a process: two processes of torch on two cores would otherwise fight for them.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
options=(-n "${TEST_PROCESSES:-2}" --dist worksteal --durations=10)
[[ $slow == true ]] || options+=(-m "not slow")
# Coverage only means something for the whole suite, the long tests included.
[[ $slow != true ]] || ((${#arguments[@]})) || options+=(--cov --cov-report=term)
exec "$bin/python" -m pytest "${options[@]}" "${arguments[@]+"${arguments[@]}"}"
