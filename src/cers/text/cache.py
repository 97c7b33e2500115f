"""Embeddings on disk, keyed by content: no text is encoded twice by the same encoder."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from cers.files import write_atomic
from cers.text.base import TextEncoder, TextFeatures

logger = logging.getLogger(__name__)
SHARD = 256  # texts encoded and written at a time: what a kill can cost


class EmbeddingCache:
    """Features of one encoder's texts, in `folder`/<fingerprint>/<SHA-256 of the shard>.safetensors.

    A shard holds N texts: `keys` (N,32) SHA-256 of fingerprint and text, `pooled` (N,D), `tokens` (sum of L,D) and
    `lengths` (N,). Shards are never changed, so processes may share the folder; one whose content does not match
    its name is removed and its texts are encoded again. With `tokens=False` only `pooled` is kept, and features have
    no tokens: rationales need no more, and their tokens would fill gigabytes.

    `hits` and `misses` count distinct texts.
    """

    def __init__(self, folder: Path, encoder: TextEncoder, *, tokens: bool = True) -> None:
        self._encoder = encoder
        self._tokens = tokens
        self._folder = folder / (encoder.fingerprint if tokens else f"{encoder.fingerprint}-pooled")
        self.hits = 0
        self.misses = 0

    def features(self, texts: Iterable[str]) -> dict[str, TextFeatures]:
        """Features of each distinct text, encoding those not on disk.

        Raises:
            CersError: the folder cannot be written.
        """
        wanted = {self._key(text): text for text in texts}
        found = {wanted[key]: f for shard in self._shards() for key, f in shard.items() if key in wanted}
        missing = sorted((t for t in wanted.values() if t not in found), key=len)
        self.hits += len(found)
        self.misses += len(missing)
        for start in range(0, len(missing), SHARD):
            found |= self._encode(missing[start : start + SHARD])
            logger.info("encoded %d of %d new texts", min(start + SHARD, len(missing)), len(missing))
        return found

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._encoder.fingerprint}\0{text}".encode()).digest()

    def _encode(self, texts: Sequence[str]) -> dict[str, TextFeatures]:
        features = self._encoder.encode(texts)
        if not self._tokens:
            features = [TextFeatures(tokens=f.tokens[:0], pooled=f.pooled) for f in features]
        content = save(
            {
                "keys": np.stack([np.frombuffer(self._key(text), dtype=np.uint8) for text in texts]),
                "pooled": np.stack([f.pooled for f in features]),
                "tokens": np.concatenate([f.tokens for f in features]),
                "lengths": np.array([len(f.tokens) for f in features], dtype=np.int64),
            }
        )
        write_atomic(self._folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
        return dict(zip(texts, features, strict=True))

    def _shards(self) -> Iterator[dict[bytes, TextFeatures]]:
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # another process found it damaged first
                continue
            if hashlib.sha256(content).hexdigest() == path.stem:
                yield _read(content)
            else:
                path.unlink(missing_ok=True)


def _read(content: bytes) -> dict[bytes, TextFeatures]:
    shard = load(content)
    tokens = np.split(shard["tokens"], np.cumsum(shard["lengths"])[:-1])
    rows = zip(shard["keys"], tokens, shard["pooled"], strict=True)
    return {key.tobytes(): TextFeatures(tokens=t, pooled=p) for key, t, p in rows}
