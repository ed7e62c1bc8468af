"""Peak memory of the packaged training settings on one GPU, and of encoding and decoding.

    python scripts/estimate_memory.py [--json] [--memory auto|fast|small] [--card 24] [--adversarial]

A training step runs as it is, perceptual network and discriminators included, but on fake tensors, which compute shapes
and nothing else; a dispatch mode adds up the storages that are alive. The optimiser's state is added by DeepSpeed's
arithmetic. Not in it: the CUDA context, workspaces of cuDNN and fragmentation; 2 GiB of the card are left for them.
"""

import argparse
import json
from typing import Any

import torch
from estimate_scaling import training
from torch._subclasses.fake_tensor import FakeTensorMode

from sat_ssvae import SSVAE
from sat_ssvae.training.memory import GIB, RESERVE, choose_plan, inference_memory, step_memory

CONFIGS = ("article_256p", "article_512p", "article_1080p")
FRAMES = 17
SIZES = {"256 px": (256, 256), "512 px": (512, 512), "1080p": (1072, 1920)}
WAYS: dict[str, dict[str, int]] = {"whole": {}, "4 frames at a time": {"chunk_frames": 4}}
TILED = {"tiles of 512": {"tile_size": 512, "chunk_frames": 4}}


def training_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A packaged configuration's step, as it would be taken on the card."""
    overrides = [f"memory={options.memory}", *(["adversarial.weight=0.5"] if options.adversarial else [])]
    config = training(name, *overrides)
    choice = choose_plan(config, int(options.card * GIB) - RESERVE, options.ranks)
    memory = step_memory(config, choice.plan, ranks=options.ranks)
    row = {"config": name, "batch_size": config.batch_size, "peak_gib": memory.peak / GIB, "plan": choice.plan.name}
    row |= {f"{part}_gib": value / GIB for part, value in memory._asdict().items()}
    return {**row, "largest_batch": choice.largest_batch}


def inference_rows() -> list[dict[str, Any]]:
    """Encoding and decoding of one video, in bf16."""
    rows = []
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)  # fake weights cannot be converted afterwards
        vae = SSVAE().eval().requires_grad_(False)
        for size, (height, width) in SIZES.items():
            for way, given in (WAYS | TILED).items() if size == "1080p" else WAYS.items():
                video = torch.empty(1, 3, FRAMES, height, width)
                latents = torch.empty(1, vae.latent_channels, *vae.latent_size(FRAMES, height, width))
                encode = inference_memory(lambda vae, x=video, g=given: vae.encode(x, **g).mean, vae)
                decode = inference_memory(lambda vae, z=latents, g=given: vae.decode(z, **g), vae)
                sizes = {"encode_gib": encode / GIB, "decode_gib": decode / GIB}
                rows.append({"size": size, "frames": FRAMES, "way": way, **sizes})
        torch.set_default_dtype(torch.float32)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    cells = [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Read the options and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of Markdown tables")
    parser.add_argument("--memory", choices=["auto", "fast", "small"], default="auto", help="as in the configuration")
    parser.add_argument(
        "--card", type=float, default=24.0, metavar="GIB", help="the GPU's memory (default: %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that ZeRO divides the optimiser over")
    parser.add_argument("--adversarial", action="store_true", help="with discriminators")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="packaged configurations (default: %(default)s)")
    options = parser.parse_args()
    result = {"training": [training_row(name, options) for name in options.configs], "inference": inference_rows()}
    print(json.dumps(result, indent=1) if options.json else "\n\n".join(map(table, result.values())))


if __name__ == "__main__":
    main()
