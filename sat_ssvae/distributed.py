"""The process group: rank, world size, device, and a start-up with or without a launcher.

PyTorch is imported where it is needed, since commands that compute nothing ask for their rank as well.
"""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, one_line

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """This process's number; 0 without a process group."""
    group = _group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    group = _group()
    return group.get_world_size() if group else 1


def _group() -> Any:
    """`torch.distributed` if this process is in a group; one that has not imported it is in none."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_initialized() else None


def default_device() -> "torch.device":
    """This process's GPU if there is one, else the CPU.

    Raises:
        UserError: LOCAL_RANK names no GPU that this process sees.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = os.environ.get("LOCAL_RANK") or "0", torch.cuda.device_count()
    if not number.isdecimal() or int(number) >= count:
        raise UserError(f"LOCAL_RANK={number} is set, but the GPUs that this process sees are 0 to {count - 1}")
    return torch.device("cuda", int(number))


def initialize(device: "torch.device") -> None:
    """Start DeepSpeed's process group, once: from the launcher's environment, or alone when there is none.

    Raises:
        UserError: the environment says that this is one of several processes, but not where the others are, or they
            cannot be reached.
    """
    import torch
    from torch import distributed as dist

    if dist.is_initialized():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")  # else it warns about its guess
    with _silenced_stderr():  # at import it looks for optional libraries, and the linker complains if they are missing
        import deepspeed
        from deepspeed.ops import __compatible_ops__ as compatible_ops
    # An optional shared-memory all-reduce, which DeepSpeed would spend more than a minute compiling at first use.
    compatible_ops["deepspeed_shm_comm"] = False
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "gloo":
        # Its threads may still free tensors while Python exits, which aborts a process that finished its work.
        atexit.register(leave)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not _launched():
        # A group of one that needs no port and no rank in the environment, which child processes inherit.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            if not os.environ.get(name, "0").strip():
                del os.environ[name]  # DeepSpeed takes an empty one for a number
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on this one
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    except (dist.DistError, OSError, ValueError) as error:
        place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(f"cannot join the other processes at {place} ({one_line(error, 200)})") from None


def _launched() -> bool:
    """Whether a launcher started this process as one of several.

    For a single process CogVideoX's recipes export some of a launcher's variables, too.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    place = {name: os.environ.get(name, "").strip() for name in names}
    if place["RANK"] in ("", "0") and place["WORLD_SIZE"] in ("", "1"):
        return False
    given = " ".join(f"{name}={value}" for name, value in place.items() if value)
    hint = "start several processes with torchrun or deepspeed, or for a single one: unset RANK WORLD_SIZE"
    if missing := [name for name, value in place.items() if not value]:
        raise UserError(f"{given} is set, but not {' and '.join(missing)}: {hint}")
    numbers = [place[name] for name in names if name != "MASTER_ADDR"]
    if not all(map(str.isdecimal, numbers)) or int(place["RANK"]) >= int(place["WORLD_SIZE"]):
        raise UserError(f"{given}: these must be numbers, with RANK below WORLD_SIZE: {hint}")
    return True


def leave() -> None:
    """Shut the process group down. NCCL then waits for all ranks, so do not call it after one of them failed."""
    if group := _group():
        group.destroy_process_group()


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop what this process and its children write to stderr; an exception still reaches the caller."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def sum_over_ranks(value: "torch.Tensor") -> "torch.Tensor":
    """Sum a tensor over all ranks; every rank must call it. A fake tensor, without values, is returned unchanged."""
    if world_size() == 1:
        return value
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(value, FakeTensor):
        return value
    value = value.clone()
    _group().all_reduce(value)
    return value


def mean_over_ranks(value: "torch.Tensor") -> "torch.Tensor":
    """Average a tensor over all ranks; every rank must call it."""
    return sum_over_ranks(value) / world_size() if world_size() > 1 else value


def any_rank(flag: bool, device: "torch.device") -> bool:
    """Whether the flag is set on at least one rank; every rank must call it."""
    if world_size() == 1:
        return flag
    import torch

    return bool(sum_over_ranks(torch.tensor(int(flag), device=device)))


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        _group().barrier()


def lost_rank(error: BaseException) -> bool:
    """Whether an error means that another process died or cannot be reached; gloo says so only in its message."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))
