import json
import sys

import pytest

from cers.bench.measure import measure, threads
from cers.cli.main import main

QUICK = ("bench", "--quick")


def cers(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cers", *arguments])
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise


def test_a_timing_counts_work_and_not_the_warm_up():
    calls = []
    timing = measure(lambda: calls.append(sum(range(200_000))), repeats=3)
    assert len(calls) == 4
    assert timing.repeats == 3
    assert 0 < timing.cpu_s < 1


def test_waiting_is_no_cpu_time():
    import time

    timing = measure(lambda: time.sleep(0.05), repeats=2)
    assert timing.wall_s >= 0.05
    assert timing.cpu_s < 0.02


def test_threads_are_set_and_put_back():
    import torch

    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("what", ["retrieval", "input", "decoders"])
def test_a_part_is_measured_and_written(what, monkeypatch, tmp_path, capsys):
    cers(monkeypatch, "bench", what, "--quick", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"machine", "workload", what} == set(figures) - {"quick"}
    assert figures["machine"]["threads"] == 1
    assert figures["machine"]["packages"]["torch"]
    out = capsys.readouterr().out
    assert "written:" in out


def test_the_step_is_measured_rung_by_rung(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    cers(monkeypatch, "bench", "step", "--quick", "--json", str(tmp_path / "figures.json"))
    step = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["step"]
    rungs = step["rungs"]
    assert len(rungs) + len(step["skipped"]) == 12
    gains = 1.0
    for rung in rungs:
        gains *= rung["gain"]
        assert rung["total_gain"] == pytest.approx(gains)
    assert rungs[-1]["cpu_s"] < rungs[0]["cpu_s"]


def test_memory_per_case_counts_every_table(monkeypatch):
    from cers.bench.scene import Workload
    from cers.bench.search import bench_memory

    memory = bench_memory(Workload(encoder="tf_efficientnet_lite0", size=64, pool=10, language={"hidden_size": 32}))
    image, tokens, cot, report = 320 * 4, 4 * 320 * 2, 512 * 4, 32 * 4
    assert memory["total"] >= image + tokens + cot + report
    assert memory["bytes"]["tokens"] == tokens


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(("--encoder", "convnext_tinny"), "convnext_tiny"), (("--pool", "7"), "--pool")],
)
def test_a_mistake_is_one_line(arguments, hint, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        cers(monkeypatch, "bench", "retrieval", "--size", "32", *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert hint in error
    assert "Traceback" not in error
