"""The bar of `cers train` on rows of a real log."""

import pytest

from cers.cli.train import training_progress

STEP = {"kind": "step", "steps": 3, "stage": "semi", "lr": 1e-3, "seconds": 0.1, "loss": 0.5, "alignment": None}


def test_rows_bring_their_total_and_the_last_validation(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress() as on_row:
        on_row({**STEP, "step": 2})
        on_row({"kind": "validation", "step": 2, "declared": 0.25, "best": True, "stage": "semi", "dice": {}})
        on_row({**STEP, "step": 3})
    assert capsys.readouterr().err.splitlines() == [
        "step 2: validation Dice 0.2500 (best so far)",
        "training 3/3 semi: loss 0.500 val Dice 0.2500",
    ]


def test_validation_may_come_first_after_resuming(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress() as on_row:
        on_row({"kind": "validation", "step": 2, "declared": 0.25, "best": False, "stage": "semi", "dice": {}})
    assert capsys.readouterr().err == "step 2: validation Dice 0.2500\n"
