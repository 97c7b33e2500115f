import json
import sys

import pytest

from cers.bench.measure import measure, threads
from cers.cli.main import main


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


def test_one_part_is_measured_alone(monkeypatch, tmp_path, capsys):
    cers(monkeypatch, "bench", "input", "--quick", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(figures) == {"machine", "quick", "workload", "input"}
    assert all(figures["input"][rate] > 0 for rate in ("augmented_pairs_per_s", "phantoms_per_minute"))
    assert "written:" in capsys.readouterr().out


def test_all_parts_are_measured_and_the_step_rung_by_rung(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    cers(monkeypatch, "bench", "--quick", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(figures) == {"machine", "quick", "workload", "step", "retrieval", "input", "decoders"}
    assert figures["machine"]["threads"] == 1
    assert figures["machine"]["packages"]["torch"]
    rungs = figures["step"]["rungs"]
    assert len(rungs) + len(figures["step"]["skipped"]) == 12
    gains = 1.0
    for rung in rungs:
        gains *= rung["gain"]
        assert rung["total_gain"] == pytest.approx(gains)
    assert rungs[-1]["cpu_s"] < rungs[0]["cpu_s"]
    (pool,) = figures["retrieval"]["search"]["pools"]
    assert pool["share_of_step"] == pytest.approx(pool["cpu_ms"] / 1e3 / figures["retrieval"]["search"]["step_cpu_s"])
    assert sum(row["share"] for row in figures["decoders"]["decoders"]) < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("decoders --encoder nope", "`cers bench decoders` does not use --encoder, only --pool, --repeats, --threads"),
        ("decoders --size 64", "does not use --size"),
        ("input --pool 9", "`cers bench input` does not use --pool, only --repeats, --size, --threads"),
        ("decoders --quick --encoder nope", "`cers bench decoders --quick` does not use --encoder, only --threads"),
        ("--quick --repeats 2", "`cers bench all --quick` does not use --repeats"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(arguments, said, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        cers(monkeypatch, "bench", *arguments.split())
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_memory_per_case_counts_every_table():
    from cers.bench.scene import Workload
    from cers.bench.search import bench_memory

    memory = bench_memory(Workload(encoder="tf_efficientnet_lite0", size=64, pool=10, language={"hidden_size": 32}))
    image, tokens, cot, report = 320 * 4, 4 * 320 * 2, 512 * 2, 32 * 2
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
