"""A device that is not the CPU, on machines that have no GPU: it computes on the CPU, and mixes with it no more than a
GPU does.

    with elsewhere() as device:
        model.to(device)(x.to(device))      # raises where an operation gets tensors of both devices
        with waits() as places:
            model(x)                        # where the program would wait for a GPU

With `SAT_SSVAE_TEST_DEVICE=cuda` in the environment `elsewhere` gives that device itself (scripts/gpu_check.sh).
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")
torch.get_device_module("elsewhere").get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
DEVICE = torch.device("elsewhere:0")
REAL = os.environ.get("SAT_SSVAE_TEST_DEVICE")
"""The device to test instead of the one that is made up here."""
BETWEEN_DEVICES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
READING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
"""Operations whose result the host has, or whose result's shape depends on the values."""


class Elsewhere(torch.Tensor):
    """A tensor of the other device; `inner` is the CPU's tensor that holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        layout = inner.shape, inner.stride(), inner.storage_offset()
        made = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=inner.dtype, device=DEVICE)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def tolist(self):
        note_wait()
        return self.inner.tolist()

    def __repr__(self):
        return f"Elsewhere({self.inner})"


class Devices(TorchDispatchMode):
    """Makes tensors where an operation is told to make them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


noted: list[list[str]] = []


@contextmanager
def waits() -> Iterator[list[str]]:
    """The lines of code in which a GPU's program would wait for its device, as file:line function."""
    noted.append([])
    try:
        yield noted[-1]
    finally:
        noted.pop()


def note_wait():
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.endswith(("elsewhere.py", "frame.py"))]
    line = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames[-4:]))
    for places in noted:
        places.append(line)


def waits_for_the_device(function, args, kwargs, goes_there):
    """Results that the host has, and copies between the devices unless they are told not to block."""
    if function not in BETWEEN_DEVICES:
        return function.overloadpacket.__name__ in READING and isinstance(args[0], Elsewhere)
    if function is torch.ops.aten.copy_.default:
        reads, writes = isinstance(args[1], Elsewhere), isinstance(args[0], Elsewhere)
        non_blocking = args[2] if len(args) > 2 else False
    else:
        reads, writes, non_blocking = isinstance(args[0], Elsewhere), goes_there, kwargs.get("non_blocking", False)
    return (reads and not writes) or (writes and not reads and not non_blocking)


def compute(function, args, kwargs):
    leaves = tree_leaves((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Elsewhere)]
    wanted = kwargs.get("device")
    goes_there = bool(there) if wanted is None else wanted.type == DEVICE.type
    if there and any(tensor.ndim for tensor in here) and function not in BETWEEN_DEVICES:
        raise RuntimeError(f"{function}: tensors on two devices")
    if goes_there and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{function}: a generator of the CPU for another device")
    if noted and waits_for_the_device(function, args, kwargs, goes_there):
        note_wait()
    plain_args, plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    result = function(*plain_args, **(plain if wanted is None else plain | {"device": torch.device("cpu")}))
    if function is torch.ops.aten.copy_.default:
        return args[0]

    def wrapped(value):
        if not goes_there or not isinstance(value, torch.Tensor):
            return value
        same = [tensor for tensor in there if tensor.inner is value]  # what was changed in place
        return same[0] if same else Elsewhere(value)

    return tree_map(wrapped, result)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    if REAL is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield torch.device(REAL)
        return
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Devices():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
