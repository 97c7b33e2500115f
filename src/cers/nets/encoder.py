"""Encoder E: the feature maps of any hierarchical timm model."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial

import timm
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
FINEST = 2


class PyramidEncoder(nn.Module):
    """Feature maps of a timm model at strides 4, 8, 16 and 32, finest first, without weights.

    A model that has a map at stride 2 as well (EfficientNets and ResNets do, ConvNeXt and Swin do not) gives it before
    the four; the decoders' heads read it.

    Images whose sides are no multiples of 32 are enlarged to the next ones, so that each map is twice the next; the
    decoders bring logits back to the image.

    `convnext_tiny` has 27,818,592 parameters, as many as torchvision's `features`. `swinv2_tiny_window8_256` has
    27,576,618: torchvision counts 4,416 more, key biases that it sets to zero at every forward and timm leaves out.

    Raises:
        ValueError: timm has no model of that name, or it has no map at one of the strides.
    """

    def __init__(self, name: str = "convnext_tiny", drop_path: float = 0.1) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = get_close_matches(name, timm.list_models(), n=1)
            hint = f"did you mean '{close[0]}'?" if close else "try convnext_tiny or tf_efficientnet_lite0"
            raise ValueError(f"timm has no encoder '{name}'; {hint}")
        any_size = {"strict_img_size": False} if name.startswith("swin") else {}
        try:
            self.body = timm.create_model(name, features_only=True, drop_path_rate=drop_path, **any_size)
        except (TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"encoder '{name}' gives no feature maps ({error}); try convnext_tiny") from None
        self.name = name
        strides = list(self.body.feature_info.reduction())
        if not set(STRIDES) <= set(strides):
            raise ValueError(f"encoder '{name}' has maps at strides {strides}, not at {STRIDES}; try convnext_tiny")
        self._picked = [strides.index(stride) for stride in (FINEST, *STRIDES) if stride in strides]
        widths = self.body.feature_info.channels()
        self.channels: tuple[int, ...] = tuple(widths[i] for i in self._picked)
        self._channels_last = getattr(self.body, "output_fmt", None) == "NHWC"

    def forward(
        self, images: Float[Tensor, "B 3 H W"], feedback: Sequence[Float[Tensor, "B _ _ _"]] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Maps (B,C_i,H_i,W_i) with C_i of `channels` and H_i, W_i = H, W over 4 … 32, or over 2 … 32.

        `feedback`, of the maps' shapes, is added to each of them before the next stage reads it.
        """
        if feedback is not None:
            with self._fed(feedback):
                return self.forward(images)
        height, width = (-(-side // 32) * 32 for side in images.shape[-2:])
        if (height, width) != images.shape[-2:]:
            images = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        maps = self.body(images)
        picked = [maps[i] for i in self._picked]
        return [m.permute(0, 3, 1, 2) for m in picked] if self._channels_last else picked

    @contextmanager
    def _fed(self, feedback: Sequence[Tensor]) -> Iterator[None]:
        """Within the block every stage whose map is picked adds its part of `feedback` to what it puts out."""
        names = [self.body.feature_info.module_name(i) for i in self._picked]
        stages = dict(self.body.named_modules())
        with ExitStack() as hooks:
            for name, part in zip(names, feedback, strict=True):
                added = part.permute(0, 2, 3, 1) if self._channels_last else part
                stage = stages[name if name in stages else name.replace(".", "_")]
                hooks.enter_context(stage.register_forward_hook(partial(_add, added)))
            yield


def _add(part: Tensor, _stage: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output + part.to(output.dtype)
