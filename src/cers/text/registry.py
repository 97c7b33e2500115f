"""Text encoders by name, and how a run folder remembers its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cers.errors import CersError, nearest
from cers.files import write_atomic
from cers.text.base import TextEncoder
from cers.text.hub import MINILM
from cers.text.tfidf import TfidfEncoder

# Pinned so that two runs years apart read the same weights.
HUB = {
    "cxr-bert": ("microsoft/BiomedVLP-CXR-BERT-specialized", "f1cc2c6b7fac60f3724037746a129a5baf194dbc"),
    "clinicalbert": ("emilyalsentzer/Bio_ClinicalBERT", "d5892b39a4adaed74b92212a44081509db72f87b"),
}
NAMES = ("tfidf", MINILM, *HUB, "hf:<model>[@revision]", "none")
MANIFEST = "encoder.json"


def make_text_encoder(name: str | None, texts: Sequence[str], max_tokens: int, seed: int) -> TextEncoder | None:
    """The encoder called `name`: one of `NAMES` or a folder. None for `none`, and where no text is to be read.

    `texts` are those of the training cases; TF-IDF is fitted on them, with `seed`.

    Raises:
        CersError: unknown name, or a model that cannot be had.
    """
    texts = [text for text in texts if text.strip()]
    if name is None or name == "none":
        return None
    if name == "tfidf":
        return TfidfEncoder.fit(texts, seed=seed, max_tokens=max_tokens) if texts else None
    model, revision = _resolve(name)
    return _transformer(model, revision, max_tokens) if texts else None


def save_text_encoder(encoder: TextEncoder | None, folder: Path) -> None:
    """Write what `load_text_encoder` needs into `folder`: all of TF-IDF, or name and fingerprint of a transformer."""
    manifest: dict[str, Any] = {"kind": "none"}
    if isinstance(encoder, TfidfEncoder):
        encoder.save(folder)
        manifest = {"kind": "tfidf", "fingerprint": encoder.fingerprint}
    elif encoder is not None:
        from cers.text.hf import HFEncoder

        if not isinstance(encoder, HFEncoder):
            raise TypeError(f"cannot save a {type(encoder).__name__}")
        names = ("kind", "model", "revision", "pooling", "max_tokens", "fingerprint")
        manifest = {name: getattr(encoder, name) for name in names}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=2))


def load_text_encoder(folder: Path) -> TextEncoder | None:
    """The encoder that `save_text_encoder` wrote to `folder`.

    Raises:
        CersError: nothing readable there, or the weights found now are not those of the run.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        kind = manifest["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CersError(f"{folder / MANIFEST} is missing or damaged; train the run again") from None
    if kind == "none":
        return None
    encoder: TextEncoder
    if kind == "tfidf":
        encoder = TfidfEncoder.load(folder)
    else:
        encoder = _transformer(manifest["model"], manifest["revision"], manifest["max_tokens"], manifest["pooling"])
    if encoder.fingerprint != manifest["fingerprint"]:
        source = manifest.get("model", folder)
        raise CersError(f"text encoder {source} is not the one of this run any more; restore it or train the run again")
    return encoder


def _resolve(name: str) -> tuple[str, str | None]:
    """Model and revision that `name` stands for."""
    if name == MINILM:
        return name, None
    if name in HUB:
        return HUB[name]
    if name.startswith("hf:"):
        model, _, revision = name.removeprefix("hf:").partition("@")
        return model, revision or None
    if (Path(name) / "config.json").is_file():
        return str(Path(name).resolve()), None
    raise CersError(f"no text encoder or model folder '{name}'; {nearest(name, NAMES)}")


def _transformer(model: str, revision: str | None, max_tokens: int, pooling: Any = None) -> TextEncoder:
    from cers.text.hf import HFEncoder  # needs transformers

    return HFEncoder(model, revision, max_tokens, pooling)
