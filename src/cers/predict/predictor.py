"""Predictions of a run for any cases, with the references behind them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cers.data.case import Batch, Case
from cers.data.loaders import evaluation_batches, restore
from cers.data.prediction import CasePrediction, Compared, Reference
from cers.engine.device import prediction_accelerator
from cers.material import unannotated
from cers.methods.base import Evidence, Prediction
from cers.retrieval.pool import KnowledgePool
from cers.run import Run

BATCH = 16


class Predictor:
    """Applies the method of `run` to `cases`, whose masks it never sees.

    `pool` replaces the run's own knowledge pool, for instance one with the cases of another hospital.

    Raises:
        CersError: an image cannot be read.
    """

    def __init__(self, run: Run, cases: Sequence[Case], *, pool: KnowledgePool | None = None) -> None:
        self.accelerator = prediction_accelerator(run.config.train.precision)
        self.method = run.method.to(self.accelerator.device).eval()
        if pool is not None:
            self.method.pool = pool.to(self.accelerator.device)
        self.ids = [case.id for case in cases]
        self.maker = run.maker([unannotated(case) for case in cases])

    def predict(self, *, compare_without_evidence: bool = False) -> Iterator[CasePrediction]:
        """One prediction per case in order; with `compare_without_evidence` also one with retrieval switched off."""
        for batch in self._batches():
            with torch.no_grad(), self.accelerator.autocast():
                prediction = self.method.predict(batch)
                without = None
                if compare_without_evidence and prediction.evidence is not None:
                    without = self.method.predict(batch, use_evidence=False).probability
            for row, id_ in enumerate(batch.ids):
                yield self._of_case(id_, row, prediction, without)

    def compare_retrieval(self) -> dict[str, dict[str, list[str]]]:
        """For each strategy the ids it retrieves for every case; empty for a method without retrieval."""
        found: dict[str, dict[str, list[str]]] = {}
        for batch in self._batches():
            with torch.no_grad(), self.accelerator.autocast():
                for strategy, evidence in self.method.compare_retrieval(batch).items():
                    for row, id_ in enumerate(batch.ids):
                        ids = _ids(evidence, evidence.index[row], evidence.valid[row])
                        found.setdefault(strategy, {})[id_] = ids
        return found

    def _batches(self) -> Iterator[Batch]:
        for batch in evaluation_batches(self.maker, self.ids, BATCH, with_masks=False):
            yield batch.to(self.accelerator.device)

    def _of_case(self, id_: str, row: int, prediction: Prediction, without: Tensor | None) -> CasePrediction:
        size = self.maker.cache.original_size(id_)
        evidence = prediction.evidence
        return CasePrediction(
            id=id_,
            probability=_restored(prediction.probability[row], size),
            branches={name: _restored(p[row], size) for name, p in prediction.branches.items()},
            references=() if evidence is None else _references(evidence, row),
            rejected=() if evidence is None else _rejected(evidence, row),
            at_least=0.0 if evidence is None or evidence.at_least is None else float(evidence.at_least[row]),
            compared=None if evidence is None else _compared(evidence, row),
            without_evidence=None if without is None else _restored(without[row], size),
        )


def _references(evidence: Evidence, row: int) -> list[Reference]:
    attention = None if evidence.attention is None else evidence.attention[row]
    return [
        Reference(
            evidence.pool_ids[int(evidence.index[row, i])],
            float(evidence.image_similarity[row, i]),
            float(evidence.text_similarity[row, i]),
            None if attention is None else float(attention[i]),
        )
        for i in range(evidence.index.shape[1])
        if evidence.valid[row, i]
    ]


def _rejected(evidence: Evidence, row: int) -> list[Reference]:
    kept = set(_ids(evidence, evidence.index[row], evidence.valid[row]))
    return [
        Reference(
            id_,
            float(evidence.candidate_image_similarity[row, i]),
            float(evidence.candidate_text_similarity[row, i]),
        )
        for i in range(evidence.candidates.shape[1])
        if evidence.candidates_valid[row, i]
        and (id_ := evidence.pool_ids[int(evidence.candidates[row, i])]) not in kept
    ]


def _compared(evidence: Evidence, row: int) -> Compared | None:
    if evidence.candidate_text_similarity[row].isnan().all():
        return None
    return "report" if evidence.by_report[row] else "rationale"


def _ids(evidence: Evidence, index: Tensor, valid: Tensor) -> list[str]:
    return [evidence.pool_ids[i] for i, ok in zip(index.tolist(), valid.tolist(), strict=True) if ok]


def _restored(probability: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    return restore(probability[0].float().cpu().numpy(), size)
