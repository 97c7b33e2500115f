"""Small pieces that the decoders share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Size = tuple[int, int]


def ladder(features: Sequence[Float[Tensor, "B _ _ _"]], size: Size) -> list[Size]:
    """The sizes a decoder climbs through: those of f3, f2 and f1, twice that, and `size`, the image's own."""
    f1, f2, f3, _ = ((f.shape[2], f.shape[3]) for f in features[-4:])
    return [f3, f2, f1, (2 * f1[0], 2 * f1[1]), size]


def upsample(x: Float[Tensor, "B C _ _"], size: Size) -> Float[Tensor, "B C _ _"]:
    """`x` enlarged bilinearly to `size`. Commutes with 1x1 convolutions, which therefore come first."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def conv3x3_upsampled(
    x: Float[Tensor, "B C H W"], weight: Float[Tensor, "D C 3 3"], size: Size
) -> Float[Tensor, "B D _ _"]:
    """`conv3x3(upsample(x, size))` with zero padding and no bias, without the enlarged map where that is cheaper.

    A 3x3 convolution is nine 1x1 convolutions, shifted and summed. 1x1 convolutions commute with the interpolation, so
    they run on the small map, with a quarter of the multiplications for a doubling; interpolation, shift and sum along
    an axis are then one product with a constant matrix, which grows with the map: wide maps of few channels go the
    plain way.
    """
    b, c, h, w = x.shape
    if 6 * h + 4 * w > 9 * c:
        return F.conv2d(upsample(x, size), weight, padding=1)
    taps = weight.permute(2, 1, 3, 0).reshape(3, c, -1)
    small = x.movedim(1, -1).reshape(b, 1, h * w, c) @ taps
    rows = _shifted_interpolation(h, size[0], x) @ small.reshape(b, 3 * h, -1)
    interleaved = _shifted_interpolation(w, size[1], x).reshape(size[1], 3, w).transpose(1, 2).flatten(1)
    y = interleaved @ rows.reshape(b * size[0], 3 * w, -1)
    return y.reshape(b, *size, -1).movedim(-1, 1)


def _shifted_interpolation(old: int, new: int, like: Tensor) -> Float[Tensor, "new _"]:
    """(new, 3*old): `old` values enlarged to `new` and shifted by -1, 0 and 1, zeros coming in at the ends."""
    unit = torch.eye(old, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))[None]
    enlarged = F.interpolate(unit, size=new, mode="linear", align_corners=False)[0].T
    padded = F.pad(enlarged, (0, 0, 1, 1))
    return torch.cat([padded[shift : shift + new] for shift in range(3)], dim=1).to(like.dtype)
