"""What training costs beside time: images that go through networks, and memory."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

IMAGE_CHANNELS = 3


class ImagePasses:
    """Counts images that enter a network of `method`, each time one does: teachers and second networks count too.

    Every network here begins with a convolution of the three image channels; what passes through it is counted, so
    that no method has to be asked. 1x1 convolutions of three channels mix other things.
    """

    def __init__(self, method: nn.Module) -> None:
        self.count = 0
        self._counting = False
        for module in method.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == IMAGE_CHANNELS and module.kernel_size != (1, 1):
                module.register_forward_pre_hook(self._see)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block; validation, which is no part of learning, happens outside."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._counting:
            self.count += len(inputs[0])


def peak_memory() -> int | None:
    """Most bytes ever held: of the GPU by tensors where there is one, else of main memory by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, ValueError, StopIteration):
        # Not getrusage: across exec it keeps the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    with suppress(ImportError):
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None
