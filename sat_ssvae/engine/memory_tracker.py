"""Peak memory of a computation, measured without running it.

    with FakeTensorMode():
        model, x = build(), torch.empty(8, 3, 17, 256, 256)
        with MemoryTracker() as memory:
            model(x).sum().backward()
    print(memory.peak)

Fake tensors compute shapes and nothing else; the tracker adds up the storages that are alive. It sees what PyTorch
allocates for tensors, not the workspaces of cuDNN or oneDNN and not what a caching allocator loses to fragmentation.

Fake convolutions give results in the layout of their input, as cuDNN and oneDNN do. PyTorch's own fakes depend on the
machine: on a processor without bfloat16 their results are contiguous, and later copies would be counted that no GPU
makes.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class MemoryTracker(TorchDispatchMode):
    """Tracks the storages that operations inside its context allocate, until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes of the tracked storages that are alive."""
        self.peak = 0
        """The largest number of bytes alive at a time."""
        self._known: set[int] = set()

    def follow(self, tensor: Tensor) -> None:
        """Track the storage of a tensor until it is released; a storage counts once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; a number read from a fake tensor, which has no values, is 1."""
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 0
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            result = _in_layout_of(args[0], result)
        elif func is torch.ops.aten.convolution_backward.default:
            result = (result[0] if result[0] is None else _in_layout_of(args[1], result[0]), *result[1:])
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.follow(value)
        return result


def _in_layout_of(x: Tensor, result: Tensor) -> Tensor:
    """`result` in channels-last layout if `x` has it; both `B C T H W` or `B C H W`."""
    layout = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    if x.dim() < 4 or x.is_contiguous() or not x.is_contiguous(memory_format=layout):
        return result
    return result.contiguous(memory_format=layout)
