"""Device and precision, by `accelerate`."""

import platform
from contextlib import suppress

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from cers.errors import CersError


def make_accelerator(precision: str) -> Accelerator:
    """An accelerator of that precision; its process-wide state is renewed, since runs may differ in it.

    Raises:
        CersError: this machine has no such precision.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = None
    with suppress(ValueError):
        accelerator = Accelerator(mixed_precision=precision)
    # Without a GPU accelerate takes fp16 for full precision and does not say so.
    if accelerator is None or (precision == "fp16" and accelerator.device.type == "cpu"):
        raise CersError(f"train.precision={precision} needs a GPU that has it; set train.precision=auto")
    return accelerator


def actual_precision(wanted: str) -> str:
    """What "auto" means here: bf16 where the hardware multiplies in it, else "no", as emulation is ten times slower."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "no"


def prediction_accelerator(trained_in: str) -> Accelerator:
    """One to predict with: in the mixed precision of this machine, if it has one, after a training in any."""
    return make_accelerator("no" if trained_in == "no" else actual_precision("auto"))


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bf16 (AVX-512 BF16, AMX, or Arm's BF16)."""
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return True
    return platform.machine() in ("aarch64", "arm64") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def device_name() -> str:
    """What computes here: the GPU's name, or `cpu` and the processor's architecture."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
