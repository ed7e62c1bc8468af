"""Reconstructs videos: python scripts/reconstruction.py --config YAML --input VIDEO --output DIR --checkpoint VAE.

The same as `sat-ssvae reconstruct`; `--help` lists all options.
"""

import sys

from sat_ssvae.cli import main

sys.exit(main(["reconstruct", *sys.argv[1:]]))
