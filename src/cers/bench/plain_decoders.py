"""The decoders as the methods' description writes them: enlarge first, then convolve. Slow, and easy to check.

They run on the weights of the decoders in `cers.nets` and give the same logits.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cers.nets.decoders import Head, ResidualUNetDecoder, ResidualUpBlock
from cers.nets.mcam import CoordinateGate, MCAMBlock, MCAMDecoder, MultiScaleMix, ScaleBranch

Size = tuple[int, int]


def unet(decoder: ResidualUNetDecoder, features: Sequence[Tensor], size: Size) -> Tensor:
    """The maps, finest first, to logits (B,1,*size)."""
    *finest, f1, f2, f3, x = features
    for block, skip in zip(decoder.blocks, (None, f3, f2, f1), strict=True):
        assert isinstance(block, ResidualUpBlock)
        x = _up_block(block, x, skip)
    return _head(decoder.head, torch.cat([x, *finest], 1), size)


def mcam(decoder: MCAMDecoder, features: Sequence[Tensor], reference: Tensor, size: Size) -> Tensor:
    """The maps, finest first, and the fused references to logits (B,1,*size)."""
    *finest, f1, f2, f3, x = features
    for block, skip in zip(decoder.blocks, (None, f3, f2, f1), strict=True):
        assert isinstance(block, MCAMBlock)
        x, reference = _mcam_block(block, x, reference, skip)
    return _head(decoder.head, torch.cat([x, reference, *finest], 1), size)


def _enlarge(x: Tensor, size: Size | None = None) -> Tensor:
    target = size or (2 * x.shape[2], 2 * x.shape[3])
    return F.interpolate(x, size=target, mode="bilinear", align_corners=False)


def _head(module: Head, x: Tensor, size: Size) -> Tensor:
    logits: Tensor = module.logit(F.relu(module.norm(module.conv(_enlarge(x, size)))))
    return logits


def _up_block(module: ResidualUpBlock, x: Tensor, skip: Tensor | None) -> Tensor:
    x = _enlarge(x if skip is None else torch.cat([x, skip], 1))
    y = F.relu(module.norm1(module.conv1(x)))
    return F.relu(module.norm2(module.conv2(y)) + module.shortcut_norm(module.shortcut(x)))


def _mcam_block(module: MCAMBlock, x: Tensor, reference: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    main = F.gelu(module.main(_enlarge(x if skip is None else torch.cat([x, skip], 1))))
    reference = F.gelu(module.reference(_enlarge(reference)))
    assert isinstance(module.gate, CoordinateGate)
    assert isinstance(module.mix, MultiScaleMix)
    return _mix(module.mix, *_gate(module.gate, main, reference))


def _gate(module: CoordinateGate, main: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([main, reference], 1)
    line = torch.cat([both.mean(3), both.mean(2)], 2)
    line = F.gelu(module.squeeze_norm(module.squeeze(line)))
    rows, columns = line[:, :, : main.shape[2]], line[:, :, main.shape[2] :]
    across = module.rows(rows).sigmoid().unsqueeze(3) * module.columns(columns).sigmoid().unsqueeze(2)
    reference = across * reference
    return F.gelu(module.fuse_norm(module.fuse(main + reference))), reference


def _mix(module: MultiScaleMix, main: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    mixed = _branch(module.wide_main, main) + _branch(module.shared, main)
    other = _branch(module.wide_reference, reference) + _branch(module.shared, reference)
    return _pointwise(module.project_main, mixed) + main, _pointwise(module.project_reference, other) + reference


def _branch(module: ScaleBranch, x: Tensor) -> Tensor:
    last = module.depthwise(x).permute(0, 2, 3, 1)
    normed = F.layer_norm(last, module.norm.normalized_shape, module.norm.weight, module.norm.bias, module.norm.eps)
    return F.gelu(_pointwise(module.expand, normed.permute(0, 3, 1, 2)))


def _pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
