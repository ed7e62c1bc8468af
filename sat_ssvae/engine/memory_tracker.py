"""Peak memory of a computation, measured without carrying it out.

    with FakeTensorMode():
        model, x = build(), torch.empty(8, 3, 17, 256, 256)
        with MemoryTracker() as memory:
            model(x).sum().backward()
    print(memory.peak)

Fake tensors compute shapes and nothing else; the tracker adds up the storages that are alive. It sees what PyTorch
allocates for tensors, not the workspaces of cuDNN or oneDNN and not what a caching allocator loses to fragmentation.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class MemoryTracker(TorchDispatchMode):
    """Follows the storages that operations inside its context make, from allocation to release."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes of the followed storages that are alive."""
        self.peak = 0
        """The largest number of bytes alive at a time."""
        self._known: set[int] = set()

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of a tensor from now until it is released; one that is followed already counts once."""
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
        """Run the operation; a number that is read from a fake tensor, which has none, is 1."""
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 0
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.follow(value)
        return result
