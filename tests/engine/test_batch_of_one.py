"""A batch too small for BatchNorm is refused in one line."""

from pathlib import Path

from cers_command import refused, succeeds

ONE = ["train.batch_labelled=1", "train.batch_unlabelled=0", "train.steps=1", "model.encoder=tf_efficientnet_lite0"]


def test_one_image_of_a_single_cell_is_refused_and_a_larger_one_learned(settings: list[str], tmp_path: Path) -> None:
    arguments = [*settings, *ONE, "method.name=supervised"]
    said = refused("train", "--out", tmp_path / "small", *arguments)
    assert "a batch of one image of 32 px leaves BatchNorm a single value a channel" in said
    assert "raise train.batch_labelled to 2 or data.image_size to 64" in said
    succeeds("train", "--out", tmp_path / "larger", *arguments, "data.image_size=64")
    succeeds("train", "--out", tmp_path / "two", *arguments, "train.batch_labelled=2")
