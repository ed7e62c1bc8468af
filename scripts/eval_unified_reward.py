"""Scores generated videos: python scripts/eval_unified_reward.py --video_dir DIR --batch_size 4.

The same as `sat-ssvae reward`; `--help` lists all options, docs/evaluation.md says how to start the server.
"""

import sys

from sat_ssvae.cli import main

sys.exit(main(["reward", *sys.argv[1:]]))
