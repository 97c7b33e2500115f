"""Other programs' names of encoder weights, turned into timm's."""

import re
from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]

_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_LITE0_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE0_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

_CONVNEXT_STEM = {"features.0.0.": "stem.0.", "features.0.1.": "stem.1."}
_CONVNEXT_PARTS = {
    "block.0.": "conv_dw.",
    "block.2.": "norm.",
    "block.3.": "mlp.fc1.",
    "block.5.": "mlp.fc2.",
    "layer_scale": "gamma",
}
_SWIN_STEM = {"features.0.0.": "patch_embed.proj.", "features.0.2.": "patch_embed.norm."}
_SWIN_PARTS = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}


def to_timm(state: Mapping[str, Tensor]) -> State:
    """`state` under timm's names: torchvision's ConvNeXt and Swin V2 and the packaged EfficientNet-Lite0 are renamed.

    Anything else comes back as it is.
    """
    if "_conv_stem.weight" in state:
        return _efficientnet_lite0(state)
    if "features.1.0.layer_scale" in state:
        return _torchvision_convnext(state)
    if "features.1.0.attn.logit_scale" in state:
        return _torchvision_swin_v2(state)
    return dict(state)


def _efficientnet_lite0(state: Mapping[str, Tensor]) -> State:
    places = [f"blocks.{stage}.{i}" for stage, depth in enumerate(_LITE0_DEPTHS) for i in range(depth)]
    renamed: State = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            expanding = f"_blocks.{parts[1]}._expand_conv.weight" in state
            names = _LITE0_EXPANDING if expanding else _LITE0_PLAIN
            renamed[f"{places[int(parts[1])]}.{names[parts[2]]}.{parts[3]}"] = value
        else:
            renamed[f"{_LITE0_TOP[parts[0]]}.{parts[1]}"] = value
    return renamed


def _torchvision_convnext(state: Mapping[str, Tensor]) -> State:
    renamed = {_rename(key, "stages", _CONVNEXT_STEM, _CONVNEXT_PARTS): value for key, value in state.items()}
    return {key: value.flatten() if key.endswith(".gamma") else value for key, value in renamed.items()}


def _torchvision_swin_v2(state: Mapping[str, Tensor]) -> State:
    renamed: State = {}
    for key, value in state.items():
        new = _rename(key, "layers", _SWIN_STEM, _SWIN_PARTS)
        if new.endswith("attn.qkv.bias"):
            query, _, renamed[new.replace("qkv.bias", "v_bias")] = value.chunk(3)
            renamed[new.replace("qkv.bias", "q_bias")] = query
        else:
            renamed[new] = value
    return renamed


def _rename(key: str, stages: str, stem: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """torchvision numbers stages 1, 3, 5, 7 and the reductions between them 2, 4, 6, timm's stages 0 to 3."""
    match = re.fullmatch(r"features\.([1-7])\.(.+)", key)
    if match is None:
        return next((new + key.removeprefix(old) for old, new in stem.items() if key.startswith(old)), key)
    number, rest = int(match[1]), match[2]
    if number % 2 == 0:
        return f"{stages}.{number // 2}.downsample.{rest}"
    block, _, rest = rest.partition(".")
    rest = next((new + rest.removeprefix(old) for old, new in parts.items() if rest.startswith(old)), rest)
    return f"{stages}.{number // 2}.blocks.{block}.{rest}"
