from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cers.data.case import Batch, Case, SemiBatch


def test_a_case_is_annotated_with_a_mask_or_as_lesion_free():
    assert Case("a", Path("a.png"), mask=Path("m.png")).annotated
    assert Case("a", Path("a.png"), negative=True).annotated
    assert not Case("a", Path("a.png")).annotated


def batch(ids: tuple[str, ...], words: int, value: float, *, masks: bool) -> Batch:
    """Every tensor is full of `value`, so that it shows where a row came from."""
    n = len(ids)
    padding = torch.zeros(n, words, dtype=torch.bool)
    padding[:, -1] = True
    known = torch.ones(n, dtype=torch.bool)
    return Batch(
        ids=ids,
        images=torch.full((n, 3, 4, 6), value),
        masks=torch.ones(n, 1, 4, 6) if masks else None,
        strong=torch.full((n, 2, 3, 4, 6), value),
        report_tokens=torch.full((n, words, 5), value),
        report_padding=padding,
        report=torch.full((n, 5), value),
        report_known=known,
        cot=torch.full((n, 7), value),
        cot_known=known,
        mask_cot=torch.full((n, 7), value),
        mask_cot_known=known if masks else ~known,
        cot_tokens=torch.full((n, words + 1, 7), value),
        cot_padding=torch.zeros(n, words + 1, dtype=torch.bool),
        groups=tuple(f"of {id_}" for id_ in ids),
    )


@pytest.mark.parametrize(("first_words", "second_words"), [(2, 4), (4, 2), (3, 3)])
def test_joined_puts_the_labelled_first_and_pads_the_shorter_texts(first_words, second_words):
    first, second = batch(("a", "b"), first_words, 1.0, masks=True), batch(("c",), second_words, 2.0, masks=False)
    joined = SemiBatch(first, second).joined()
    assert joined.ids == ("a", "b", "c")
    assert joined.groups == ("of a", "of b", "of c")
    assert joined.masks is None
    assert joined.size == (4, 6)
    for name in ("images", "strong", "report", "cot", "mask_cot"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(first, name), getattr(second, name)])), name
    assert joined.mask_cot_known.tolist() == [True, True, False]
    longest = max(first_words, second_words)
    assert joined.report_tokens.shape == (3, longest, 5)
    assert joined.cot_tokens.shape == (3, longest + 1, 7)
    for row, words, value in ((0, first_words, 1.0), (2, second_words, 2.0)):
        assert (joined.report_tokens[row, :words] == value).all()
        assert not joined.report_tokens[row, words:].any()
        assert joined.report_padding[row].tolist() == [False] * (words - 1) + [True] * (longest - words + 1)
        assert joined.cot_padding[row].tolist() == [False] * (words + 1) + [True] * (longest - words)
    assert joined.mask_cot_tokens is None


def test_joined_hides_masks_that_both_sides_carry():
    first, second = batch(("a",), 2, 1.0, masks=True), batch(("c",), 2, 2.0, masks=True)
    assert SemiBatch(first, second).joined().masks is None


def test_joined_without_unlabelled_images_hides_the_masks():
    first = batch(("a", "b"), 2, 1.0, masks=True)
    joined = SemiBatch(first).joined()
    assert joined.masks is None
    assert joined.ids == ("a", "b")
    assert joined.images is first.images


def test_joined_drops_texts_that_one_side_lacks():
    first, second = batch(("a",), 2, 1.0, masks=True), Batch(("c",), torch.zeros(1, 3, 4, 6), groups=(None,))
    joined = SemiBatch(first, second).joined()
    assert joined.report_tokens is None
    assert joined.cot is None
    assert joined.groups == ("of a", None)


def test_to_moves_every_tensor_and_keeps_the_rest():
    pair = SemiBatch(batch(("a", "b"), 2, 1.0, masks=True), batch(("c",), 3, 2.0, masks=False))
    moved = pair.to(torch.device("meta"))
    for before, after in ((pair.labelled, moved.labelled), (pair.unlabelled, moved.unlabelled)):
        assert (after.ids, after.groups) == (before.ids, before.groups)
        for field in fields(Batch):
            was, now = getattr(before, field.name), getattr(after, field.name)
            assert (was is None) == (now is None), field.name
            if isinstance(was, torch.Tensor):
                assert now.device.type == "meta", field.name
                assert now.shape == was.shape
                assert was.device.type == "cpu"
    assert SemiBatch(pair.labelled).to(torch.device("meta")).unlabelled is None


def test_tensors_name_what_a_replay_needs():
    pair = SemiBatch(batch(("a", "b"), 2, 1.0, masks=True), batch(("c",), 3, 2.0, masks=False))
    found = pair.tensors()
    assert torch.equal(found["labelled.masks"], pair.labelled.masks)
    assert torch.equal(found["unlabelled.images"], pair.unlabelled.images)
    assert "unlabelled.masks" not in found
    assert all(tensor.is_contiguous() for tensor in found.values())


def test_required_masks_refuse_the_wrong_stream():
    labelled = batch(("a",), 2, 1.0, masks=True)
    assert labelled.required_masks is labelled.masks
    with pytest.raises(ValueError, match=r"\('c',\) carries no masks"):
        _ = batch(("c",), 2, 1.0, masks=False).required_masks
