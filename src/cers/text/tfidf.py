"""TF-IDF with latent semantic analysis: the encoder that needs no download."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from cers.errors import CersError
from cers.files import write_atomic
from cers.text.base import TextFeatures

MAX_TERMS = 20_000  # the most frequent ones; bounds the file in the run folder to about 10 MB
SETTINGS = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"(?u)\b\w+\b"}
VOCABULARY = "vocabulary.json"
ARRAYS = "tfidf.safetensors"


class TfidfEncoder:
    """Unigrams and bigrams, sublinear TF-IDF, reduced by a truncated SVD (Deerwester et al. 1990).

    A token is one known term of the text: its TF-IDF weight times its row of the SVD, scaled by one constant so that
    tokens of the training texts have entries of unit mean square. `pooled` is the sum of all tokens, normalised, which
    is the document's vector in the reduced space. A text without a known term has no token and a zero `pooled`: to the
    rest of the program it is an unknown text.
    """

    kind = "tfidf"

    def __init__(
        self,
        vocabulary: Sequence[str],
        idf: NDArray[np.float64],
        rows: NDArray[np.float32],
        max_tokens: int,
    ) -> None:
        self._vocabulary = list(vocabulary)
        self._idf = idf
        self._rows = rows
        self.max_tokens = max_tokens
        self._vectorizer = _vectorizer(self._vocabulary, idf)
        content = json.dumps(self._vocabulary).encode() + idf.tobytes() + rows.tobytes()
        self.fingerprint = f"tfidf-{hashlib.sha256(content).hexdigest()[:16]}-{max_tokens}"

    @classmethod
    def fit(cls, texts: Sequence[str], width: int = 128, seed: int = 0, max_tokens: int = 256) -> Self:
        """Fit on the distinct texts among `texts`, which must be training texts only.

        `width` is clipped to the rank of the corpus. Order and repetition of the texts do not matter.

        Raises:
            CersError: no text has a word.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        vectorizer = TfidfVectorizer(max_features=MAX_TERMS, **SETTINGS)
        try:
            weights = vectorizer.fit_transform(sorted(set(texts)))
        except ValueError:
            raise CersError("no words to fit TF-IDF on; set text.report=none or text.cot=none") from None
        _, strength, directions = randomized_svd(
            weights, n_components=min(width, *weights.shape), n_iter=7, random_state=seed
        )
        rows = directions[strength > 1e-6 * strength[0]].T
        entries = weights.multiply(weights).sum(axis=0).A1 @ np.square(rows).mean(axis=1) / weights.nnz
        scaled = np.ascontiguousarray(rows / np.sqrt(entries), dtype=np.float32)
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, scaled, max_tokens)

    @property
    def width(self) -> int:
        """D of the features."""
        return int(self._rows.shape[1])

    def encode(self, texts: Sequence[str]) -> list[TextFeatures]:
        """Features of each of `texts`, in order; at most `max_tokens` tokens each, the heaviest terms."""
        if not texts:
            return []
        weights = self._vectorizer.transform(texts)
        return [self._features(weights[i].indices, weights[i].data) for i in range(len(texts))]

    def _features(self, terms: NDArray[np.int32], weights: NDArray[np.float64]) -> TextFeatures:
        order = np.lexsort((terms, -weights))
        tokens = weights[order, None].astype(np.float32) * self._rows[terms[order]]
        total = tokens.sum(axis=0, dtype=np.float64)
        length = np.linalg.norm(total)
        pooled = (total / length if length > 0 else total).astype(np.float32)
        return TextFeatures(tokens=tokens[: self.max_tokens], pooled=pooled)

    def save(self, folder: Path) -> None:
        """Write the vocabulary as JSON and the arrays as safetensors."""
        vocabulary = {"max_tokens": self.max_tokens, "terms": self._vocabulary}
        write_atomic(folder / VOCABULARY, json.dumps(vocabulary, ensure_ascii=False))
        write_atomic(folder / ARRAYS, save({"idf": self._idf, "rows": self._rows}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The encoder that `save` wrote: its features are the same to the last bit.

        Raises:
            CersError: a file is missing or damaged.
        """
        try:
            vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
            arrays = load((folder / ARRAYS).read_bytes())
            return cls(vocabulary["terms"], arrays["idf"], arrays["rows"], vocabulary["max_tokens"])
        except Exception as error:
            raise CersError(f"{folder}: the TF-IDF encoder cannot be read ({error}); train the run again") from None


def _vectorizer(vocabulary: Sequence[str], idf: NDArray[np.float64]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(vocabulary=vocabulary, **SETTINGS)
    vectorizer.idf_ = idf
    return vectorizer
