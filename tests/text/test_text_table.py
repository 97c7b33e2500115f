from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cers.data.case import Batch, Case
from cers.text.base import TextEncoder
from cers.text.table import TextTable
from cers.text.tfidf import TfidfEncoder

REPORTS = {
    "a": "one large lesion in the left lung",
    "b": "two lesions",
    "c": None,
    "d": "  ",
    "e": "zzz",
    "f": "two lesions",
}
SECRET = "the hidden mask shows seventeen lesions"
FIT = [r for r in REPORTS.values() if r and r != "zzz"] + ["texture smooth", "boundary sharp", SECRET]


def render(rationale: str) -> str:
    if "sorry" in rationale:
        raise ValueError("refusal")
    return rationale.lower()


def cases() -> list[Case]:
    return [
        Case(i, Path(i), report=report, rationale="Texture Smooth", mask_rationale=SECRET, mask=Path(i))
        for i, report in REPORTS.items()
    ]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TfidfEncoder.fit(FIT, width=5)


@pytest.fixture
def table(tmp_path: Path, encoder: TextEncoder) -> TextTable:
    changed = cases()
    changed[1] = Case("b", Path("b"), report=REPORTS["b"], rationale="I am sorry", mask_rationale="sorry again")
    changed[2] = Case("c", Path("c"))
    return TextTable(
        changed, report=encoder, cot=encoder, render=render, cache_folder=tmp_path, labelled=["a", "b", "c"]
    )


def test_fields_are_those_of_a_batch(table: TextTable) -> None:
    ids = ("a", "b", "c", "d", "e")
    fields = table.fields(ids)
    batch = Batch(ids=ids, images=torch.zeros(5, 3, 4, 4), **fields)
    assert batch.report_tokens is not None
    assert batch.report_tokens.shape[0] == 5
    assert batch.report_tokens.shape[2] == table.report_width == 5
    assert fields["report"].shape == fields["cot"].shape == fields["mask_cot"].shape == (5, 5)
    assert {name for name, value in fields.items() if value.dtype == torch.float32} == {
        "report_tokens",
        "report",
        "cot",
        "mask_cot",
    }
    assert fields["report_known"].tolist() == [True, True, False, False, False]
    assert fields["cot_known"].tolist() == [True, False, False, True, True]


def test_tokens_are_padded_to_the_longest_of_the_batch(table: TextTable, encoder: TextEncoder) -> None:
    long, short = encoder.encode([str(REPORTS["a"]), str(REPORTS["b"])])
    fields = table.fields(["b", "a", "c"])
    assert fields["report_tokens"].shape[1] == len(long.tokens) > len(short.tokens)
    assert torch.equal(fields["report_tokens"][0, : len(short.tokens)], torch.from_numpy(short.tokens))
    assert not fields["report_tokens"][fields["report_padding"]].any()
    assert (~fields["report_padding"]).sum(1).tolist() == [len(short.tokens), len(long.tokens), 0]
    assert table.fields(["b"])["report_tokens"].shape[1] == len(short.tokens)


def test_batch_without_any_report_has_one_padded_token(table: TextTable) -> None:
    fields = table.fields(["c", "d", "e"])
    assert fields["report_tokens"].shape == (3, 1, 5)
    assert fields["report_padding"].all()


def test_mask_informed_rationales_of_unlabelled_cases_are_never_embedded(table: TextTable) -> None:
    assert table.fields("abcdef")["mask_cot_known"].tolist() == [True, False, False, False, False, False]
    assert not table.fields("bcdef")["mask_cot"].any()


def test_mask_informed_text_of_unlabelled_cases_is_not_even_read(tmp_path: Path, encoder: TextEncoder) -> None:
    read: list[str] = []

    def spy(rationale: str) -> str:
        read.append(rationale)
        return rationale

    TextTable(cases(), report=None, cot=encoder, render=spy, cache_folder=tmp_path, labelled=[])
    assert read
    assert SECRET not in read


def test_case_that_is_not_in_the_table_is_refused(table: TextTable) -> None:
    with pytest.raises(KeyError, match="stranger"):
        table.fields(["a", "stranger"])


def test_malformed_rationales_are_unknown(table: TextTable) -> None:
    assert not table.fields(["b"])["cot"].any()


@pytest.mark.parametrize(("report", "cot"), [(False, False), (True, False), (False, True)])
def test_fields_of_an_absent_encoder_are_absent(tmp_path: Path, encoder: TextEncoder, report: bool, cot: bool) -> None:
    table = TextTable(
        cases(),
        report=encoder if report else None,
        cot=encoder if cot else None,
        render=render,
        cache_folder=tmp_path,
        labelled=["a"],
    )
    prefixes = {name.removeprefix("mask_").split("_")[0] for name in table.fields(["a", "b"])}
    assert prefixes == {name for name, wanted in (("report", report), ("cot", cot)) if wanted}
    assert (table.report_width is not None, table.cot_width is not None) == (report, cot)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> TextTable:
    folder = tmp_path_factory.mktemp("cache")
    return TextTable(cases(), report=encoder, cot=encoder, render=render, cache_folder=folder, labelled=["a", "f"])


@settings(max_examples=30)
@given(ids=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8))
def test_a_case_has_the_same_text_in_every_batch(shared: TextTable, ids: list[str]) -> None:
    together = shared.fields(ids)
    for b, case_id in enumerate(ids):
        alone = shared.fields([case_id])
        length = alone["report_tokens"].shape[1]
        for name in ("report", "report_known", "cot", "cot_known", "mask_cot", "mask_cot_known"):
            assert torch.equal(together[name][b], alone[name][0])
        assert torch.equal(together["report_tokens"][b, :length], alone["report_tokens"][0])
        assert torch.equal(together["report_padding"][b, :length], alone["report_padding"][0])
        assert together["report_padding"][b, length:].all()


def test_a_mirrored_case_is_told_in_the_words_of_its_mirror_image(tmp_path: Path) -> None:
    said, of_the_mirrored = "one large lesion in the left lung", "one large lesion in the right lung"
    encoder = TfidfEncoder.fit([said, of_the_mirrored, "two lesions", SECRET], width=4)
    told = [
        Case("a", Path("a"), report=said, rationale=said, mask_rationale=said, mask=Path("a")),
        Case("b", Path("b"), report=of_the_mirrored, rationale=of_the_mirrored),
        Case("c", Path("c"), report="two lesions"),
        Case("d", Path("d")),
    ]
    known = {"report": encoder, "cot": encoder, "render": str, "labelled": ["a"], "cache_folder": tmp_path}
    table = TextTable(told, **known, cot_states=True, mirrors=True)
    plain, mirror = table.fields("abcd"), table.fields("abcd", [True] * 4)
    assert not torch.equal(plain["report"][0], plain["report"][1])
    for name in ("report", "report_tokens", "cot", "cot_tokens"):
        assert torch.equal(mirror[name][:2], plain[name][:2].flip(0)), name
        assert torch.equal(mirror[name][2:], plain[name][2:]), name
    for name in ("mask_cot", "mask_cot_tokens"):
        assert torch.equal(mirror[name][0], mirror[name.removeprefix("mask_")][0]), name
    assert torch.equal(
        table.fields("ac", [True, False])["report"], torch.stack([mirror["report"][0], plain["report"][2]])
    )
    with pytest.raises(KeyError, match="a"):
        TextTable(told, **known).fields("a", [True])
