"""The decoders as the methods' description writes them: enlarge first, then convolve. Slow, and easy to check."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cers.nets.decoders import Head, ResidualUNetDecoder, ResidualUpBlock
from cers.nets.mcam import MCAMBlock, MCAMDecoder, ScaleBranch


def enlarge(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    target = size or (2 * x.shape[2], 2 * x.shape[3])
    return F.interpolate(x, size=target, mode="bilinear", align_corners=False)


def head(module: Head, x: Tensor, size: tuple[int, int]) -> Tensor:
    return module.logit(F.relu(module.norm(module.conv(enlarge(x, size)))))


def up_block(module: ResidualUpBlock, x: Tensor, skip: Tensor | None) -> Tensor:
    x = enlarge(x if skip is None else torch.cat([x, skip], 1))
    y = F.relu(module.norm1(module.conv1(x)))
    return F.relu(module.norm2(module.conv2(y)) + module.shortcut_norm(module.shortcut(x)))


def unet(decoder: ResidualUNetDecoder, features: list[Tensor], size: tuple[int, int]) -> Tensor:
    x = features[3]
    for block, skip in zip(decoder.blocks, (None, features[2], features[1], features[0]), strict=True):
        x = up_block(block, x, skip)
    return head(decoder.head, x, size)


def gate(module: torch.nn.Module, main: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([main, reference], 1)
    line = torch.cat([both.mean(3), both.mean(2)], 2)
    line = F.gelu(module.squeeze_norm(module.squeeze(line)))
    rows, columns = line[:, :, : main.shape[2]], line[:, :, main.shape[2] :]
    across = module.rows(rows).sigmoid().unsqueeze(3) * module.columns(columns).sigmoid().unsqueeze(2)
    reference = across * reference
    return F.gelu(module.fuse_norm(module.fuse(main + reference))), reference


def branch(module: ScaleBranch, x: Tensor) -> Tensor:
    x = module.depthwise(x)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    x = (x - mean) / (variance + module.norm.eps).sqrt()
    x = x * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
    return F.gelu(F.conv2d(x, module.expand.weight[:, :, None, None], module.expand.bias))


def mix(module: torch.nn.Module, main: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    def project(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    mixed = branch(module.wide_main, main) + branch(module.shared, main)
    other = branch(module.wide_reference, reference) + branch(module.shared, reference)
    return project(module.project_main, mixed) + main, project(module.project_reference, other) + reference


def mcam_block(module: MCAMBlock, x: Tensor, reference: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    main = F.gelu(module.main(enlarge(x if skip is None else torch.cat([x, skip], 1))))
    reference = F.gelu(module.reference(enlarge(reference)))
    return mix(module.mix, *gate(module.gate, main, reference))


def mcam(decoder: MCAMDecoder, features: list[Tensor], reference: Tensor, size: tuple[int, int]) -> Tensor:
    x = features[3]
    for block, skip in zip(decoder.blocks, (None, features[2], features[1], features[0]), strict=True):
        x, reference = mcam_block(block, x, reference, skip)
    return head(decoder.head, torch.cat([x, reference], 1), size)
