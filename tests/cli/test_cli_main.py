import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import cers
from cers.cli.main import VERBS, _one_line
from cers.errors import CersError

CERS = Path(sys.executable).with_name("cers")
HEAVY = {"torch", "torchvision", "monai", "timm", "transformers", "pandas", "matplotlib", "skimage", "sklearn", "scipy"}

# Adds a verb that fails in each way to the real command line.
PROBE = """
import errno, os, sys, time
import typer
from cers.cli import main as cli
from cers.errors import CersError

def probe(how: str) -> None:
    "Fail in the way asked for."
    if how == "mistake":
        raise CersError("images/a.png: no such mask;\\n  did you mean 'b.png'?")
    if how == "bug":
        raise ValueError("inner trouble")
    if how == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x")
    if how == "full":
        with open("/dev/full", "w") as f:
            f.write("x" * 100_000)
    if how == "missing-file":
        open("nowhere")
    if how == "endless":
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
    if how == "many":
        for i in range(100_000):
            print(i)

cli.VERBS["probe"] = cli.Verb("__main__:probe", "Fail.")
cli.main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CERS, *arguments], capture_output=True, text=True, timeout=120)


def probe(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROBE, "probe", how], capture_output=True, text=True, timeout=60)


def test_help_answers_within_half_a_second_of_processor_time() -> None:
    # Processor time, not wall time: other tests may be running beside this one.
    assert any(processor_seconds() < 0.5 for _ in range(5))


def processor_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cers.cli.main import main\nsys.argv = ['cers', '--help']\n"
        "try: main()\nexcept SystemExit: print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("MODULES")[2].split())
    assert "cers.cli.main" in loaded
    assert not loaded & HEAVY


def test_help_names_every_verb_in_one_line_each() -> None:
    lines = run("--help").stdout.splitlines()
    for name, verb in VERBS.items():
        assert any(line.split() == [name, *verb.help.split()] for line in lines), name


def test_version() -> None:
    assert run("--version").stdout == f"cers {cers.__version__}\n"


@pytest.mark.parametrize(("word", "hint"), [("trian", "did you mean 'train'?"), ("zzz", "choose from: annotate,")])
def test_unknown_command_gets_the_nearest(word: str, hint: str) -> None:
    done = run(word, "--some", "thing")
    assert done.returncode == 2
    assert done.stderr.startswith(f"cers: error: no command '{word}'; {hint}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_unknown_option_is_a_usage_error_without_traceback() -> None:
    done = run("doctor", "--jsno")
    assert done.returncode == 2
    assert "No such option: --jsno" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_argument_shows_the_help() -> None:
    done = run()
    assert "Commands:" in done.stdout + done.stderr


def test_help_of_a_verb_is_its_own() -> None:
    done = run("doctor", "--help")
    assert done.returncode == 0
    assert "--network" in done.stdout


def test_mistake_is_one_line_and_status_2() -> None:
    done = probe("mistake")
    assert done.returncode == 2
    assert done.stderr == "cers: error: images/a.png: no such mask; did you mean 'b.png'?\n"


@pytest.mark.parametrize(("how", "place"), [("disk", " at runs/x"), ("full", "")])
def test_full_disk_is_one_line(how: str, place: str) -> None:
    if how == "full" and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = probe(how)
    assert done.returncode == 2
    assert done.stderr == f"cers: error: no space left{place}; free some and run the same command again\n"


@pytest.mark.parametrize(
    ("how", "cause"), [("bug", "ValueError: inner trouble"), ("missing-file", "FileNotFoundError")]
)
def test_bug_keeps_its_traceback(how: str, cause: str) -> None:
    done = probe(how)
    assert done.returncode == 1
    first, second, *_, last = done.stderr.splitlines()
    assert first.startswith("cers: this is a bug in cers: please report it")
    assert second.startswith("Traceback")
    assert last.startswith(cause)


def test_interrupt_is_one_line_and_status_130() -> None:
    # A job in the background is started with Ctrl-C ignored, and so would be what it starts.
    heeding = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{PROBE}"
    with subprocess.Popen(
        [sys.executable, "-c", heeding, "probe", "endless"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "cers: interrupted\n"


@pytest.mark.parametrize("command", [[sys.executable, "-c", PROBE, "probe", "many"], [str(CERS), "doctor", "--json"]])
def test_closed_pipe_is_quiet(command: list[str]) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        os.close(reader)
        _, stderr = process.communicate(timeout=60)
    assert stderr == ""


class _Refusing(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise CersError("images/a.png: cannot be read: it is truncated; copy it again")


def test_mistake_found_in_a_loading_process_is_the_same_line() -> None:
    with pytest.raises(CersError) as caught:
        next(iter(DataLoader(_Refusing(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert _one_line(caught.value) == "images/a.png: cannot be read: it is truncated; copy it again"
