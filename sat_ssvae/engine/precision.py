"""The precision of convolutions and matrix products."""

import logging
from typing import Literal

import torch

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which convolutions and matrix products run in `precision`."""
    precision = resolved(precision, device)
    if precision == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def resolved(precision: Precision, device: torch.device) -> Precision:
    """`precision` itself; for auto bfloat16 where `device` has instructions for it, and float32 elsewhere."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16; others convert every operand first."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's
    return True


def tell_precision(precision: Precision, device: torch.device) -> None:
    """Log what auto stands for on `device`, and warn of a precision that the device emulates."""
    if precision == "auto":
        logger.info("computing in %s", resolved(precision, device))
    elif precision == "bfloat16" and not computes_bfloat16(device):
        kind = "GPU" if device.type == "cuda" else "processor"
        logger.warning(
            "this %s has no instructions for bfloat16 and may take 10 times longer than in float32; "
            "precision=auto chooses a suitable one",
            kind,
        )
