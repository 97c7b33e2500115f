"""`cers methods` by the real command."""

import json

import pytest

from cers.methods.registry import METHODS
from cers_command import refused, succeeds


@pytest.fixture(scope="module")
def listed() -> dict[str, dict]:
    rows = json.loads(succeeds("methods", "--json").stdout)
    return {row["name"]: row for row in rows}


def test_every_method_is_listed_with_its_source(listed):
    assert list(listed) == list(METHODS)
    for row in listed.values():
        assert any(known in row["paper"] for known in ("arXiv", "control")), row["paper"]
        assert sum(row["stages"].values()) == pytest.approx(1)


def test_networks_are_as_large_as_the_specification_counts(listed):
    base = 34_480_393
    counts = {name: row["parameters"] for name, row in listed.items()}
    assert counts["supervised"] == counts["mean-teacher"] == counts["bcp"] == counts["unimatch-v2"] == base
    assert counts["cps"] == counts["ucmt"] == 2 * base
    assert counts["unet-text"] == base + 3_370_212
    assert counts["ducisc"] == base + (384 + 1) + (192 + 1) + (96 + 1)


def test_who_reads_text_and_who_steps_more_than_once_is_said(listed):
    assert {name for name, row in listed.items() if row["reads_text"]} == {"cers", "unet-text", "lvit"}
    several = {name: row["optimiser_steps"] for name, row in listed.items() if row["optimiser_steps"] > 1}
    assert several == {"ucmt": 2, "lefed": 3}


def test_another_encoder_is_counted_and_an_unknown_one_is_one_line():
    said = succeeds("methods", "--encoder", "tf_efficientnet_lite0").stdout
    assert "Methods on tf_efficientnet_lite0" in said
    assert "cers train" in said
    assert "did you mean 'convnext_tiny'" in refused("methods", "--encoder", "convnext_tin")
