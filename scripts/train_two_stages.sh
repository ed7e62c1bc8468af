#!/usr/bin/env bash
# Both stages of a training at the smallest size, on the demo's clips:  bash scripts/train_two_stages.sh [FOLDER]
#
# Stage 1 trains everything at 48 px, stage 2 the decoder alone at 96 px. Held-out clips beside their reconstructions are in
# FOLDER/stage*/evaluations/, scores in evaluations.jsonl. An interrupted run continues with the same command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
output=${1:-runs/two_stages}

ensure_env compare
"$bin/python" - "$output/clips" <<'PYTHON'
import pathlib, sys
from sat_ssvae.data.demo import prepare_demo

prepare_demo(pathlib.Path(sys.argv[1]), resolution=96)
PYTHON
common=(--output "$output" "data.path=$output/clips/train" "monitor.path=$output/clips/heldout")
"$bin/sat-ssvae" train --config tiny_48p --name stage1 "${common[@]}"
"$bin/sat-ssvae" train --config tiny_96p --name stage2 --freeze_encoder True --resume_from "$output/stage1/latest.pth" "${common[@]}"
"$bin/python" - "$output" <<'PYTHON'
import json, pathlib, sys

for stage in ("stage1", "stage2"):
    for line in (pathlib.Path(sys.argv[1]) / stage / "evaluations.jsonl").read_text().splitlines():
        look = json.loads(line)
        print(f"{stage} step {look['step']:5d}  PSNR {look['psnr']:.2f} dB  SSIM {look['ssim']:.3f}")
PYTHON
