"""Transformers as frozen text encoders."""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cers.errors import CersError
from cers.text.base import TextFeatures
from cers.text.hub import locate

Pooling = Literal["cls", "mean"]
BATCH = 32
PROBE = "T1-weighted FLAIR: two ill-defined nodules (3.5 mm), naïve"
# Model types that are BERT with further heads: their own classes would have to be run from the repository.
BERT_TYPES = {"cxr-bert"}


class HFEncoder:
    """A transformer of the `transformers` library, frozen: tokens are its last hidden states, special tokens included.

    `model` is `minilm`, a folder or a model id of the hub; `pooling` is the first token (`cls`) or the mean over
    tokens (`mean`), by default what the model's sentence-transformers configuration says, else `cls`. Texts are cut
    to `max_tokens`. No code from a repository is run.

    Raises:
        CersError: the model cannot be fetched, or its weights do not fit a text encoder.
    """

    kind = "hf"

    def __init__(
        self,
        model: str | Path,
        revision: str | None = None,
        max_tokens: int = 256,
        pooling: Pooling | None = None,
    ) -> None:
        folder, self.revision = locate(model, revision)
        self.model = str(model)
        self.pooling: Pooling = pooling or _declared_pooling(folder)
        self._network, self._tokenizer = _load(folder, self.model)
        self._network.to("cuda" if torch.cuda.is_available() else "cpu")
        limits = (max_tokens, self._tokenizer.model_max_length, _positions(self._network.config))
        self.max_tokens = int(min(limits))
        self._skip = 0  # layers left out at the top; see `split_upper`
        content = _content_hash(self._network, self._tokenizer)
        self.fingerprint = f"hf-{content}-{self.pooling}-{self.max_tokens}"

    @property
    def width(self) -> int:
        """D of the features."""
        return int(self._network.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> list[TextFeatures]:
        """Features of each of `texts`, in order; encoded in batches of similar length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        features: dict[int, TextFeatures] = {}
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            states, padding = self._states([texts[i] for i in rows])
            vectors = pool(states, padding, self.pooling).cpu().numpy()
            for i, state, padded, vector in zip(rows, states.cpu(), padding.cpu(), vectors, strict=True):
                features[i] = TextFeatures(tokens=state[~padded].numpy(), pooled=vector)
        return [features[i] for i in range(len(texts))]

    def split_upper(self, n: int) -> tuple["HFEncoder", "UpperLayers"]:
        """The encoder cut below its last `n` layers: the frozen rest, and the layers as a trainable copy.

        Tokens of the first are the states that enter the last `n` layers, so its features can be cached; the second
        turns them, padded to a batch, into pooled vectors.

        Raises:
            CersError: `n` is not between 1 and the number of layers, or the model is not built like BERT.
        """
        layers = getattr(getattr(self._network, "encoder", None), "layer", None)
        if layers is None or self._network.config.model_type not in {"bert", "roberta", *BERT_TYPES}:
            raise CersError(
                f"'{self.model}' is not built like BERT and cannot train its top; use minilm or clinicalbert"
            )
        if not 1 <= n <= len(layers):
            raise CersError(f"'{self.model}' has {len(layers)} layers; train between 1 and {len(layers)}, not {n}")
        lower = copy.copy(self)
        lower._skip = n
        lower.fingerprint = f"{self.fingerprint}-below{n}"
        return lower, UpperLayers(layers[-n:], self.pooling)

    @torch.inference_mode()
    def _states(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states (B,L,D) and padding (B,L), True where there is no token."""
        batch = self._tokenizer(
            texts,
            truncation=True,
            max_length=self.max_tokens,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(self._network.device)
        states = self._network(**batch, output_hidden_states=True).hidden_states[-1 - self._skip]
        return states, batch["attention_mask"] == 0


class UpperLayers(nn.Module):
    """The last layers of a transformer, trainable: states (B,L,D) and padding (B,L) to unit vectors (B,D)."""

    def __init__(self, layers: Sequence[nn.Module], pooling: Pooling) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in layers).requires_grad_(True)
        self.pooling: Pooling = pooling

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        """Pooled vectors (B,D); a row that is all padding has no meaning, but is finite."""
        hidden = padding.clone()
        hidden[:, 0] = False
        mask = torch.zeros_like(padding, dtype=states.dtype).masked_fill(hidden, torch.finfo(states.dtype).min)
        for layer in self.layers:
            output = layer(states, attention_mask=mask[:, None, None, :])
            states = output[0] if isinstance(output, tuple) else output
        return pool(states, padding, self.pooling)


def pool(states: Tensor, padding: Tensor, pooling: Pooling) -> Tensor:
    """Unit vectors (B,D) of hidden states (B,L,D): the first token, or the mean over all but padding."""
    if pooling == "cls":
        return F.normalize(states[:, 0], dim=-1)
    weights = (~padding).unsqueeze(-1).to(states.dtype)
    return F.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def _load(folder: Path, name: str) -> tuple[Any, Any]:
    """The network, frozen and in eval mode, and its tokenizer."""
    try:
        import transformers
    except ImportError:
        raise CersError(f"text encoder '{name}' needs transformers; run: pip install 'cers[hf]'") from None
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        plain = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") in BERT_TYPES
        network_class = transformers.BertModel if plain else transformers.AutoModel
        tokenizer_class = transformers.BertTokenizer if plain else transformers.AutoTokenizer
        with _quiet():
            tokenizer = tokenizer_class.from_pretrained(folder, **options)
            network, report = network_class.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:  # whatever the library makes of a folder that is no model
        reason = " ".join(str(error).split())[:200]
        raise CersError(f"text encoder '{name}' cannot be loaded ({reason}); use minilm or tfidf instead") from None
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or network.config.is_encoder_decoder:
        flaw = f"its weights lack {missing[0]}" if missing else "it is an encoder-decoder"
        raise CersError(f"text encoder '{name}' does not fit: {flaw}; use minilm or tfidf instead")
    return network.float().eval().requires_grad_(False), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's loading report: what matters of it is checked by `_load`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _declared_pooling(folder: Path) -> Pooling:
    """What a sentence-transformers configuration in `folder` says; `cls` without one."""
    try:
        declared = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "cls"
    return "mean" if declared.get("pooling_mode_mean_tokens") or declared.get("pooling_mode") == "mean" else "cls"


def _positions(config: Any) -> int:
    """Longest input in tokens. RoBERTa counts its positions from `pad_token_id` + 1."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    return positions - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


def _content_hash(network: nn.Module, tokenizer: Any) -> str:
    """Hash of all weights that shape the features and of the tokenizer's behaviour, wherever they were loaded from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        if "pooler" not in key:
            digest.update(key.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]]).encode())
    return digest.hexdigest()[:16]
