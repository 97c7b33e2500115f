"""A run is a folder: how it is started, resumed and read back."""

import json
import platform
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any, Self

import torch

from cers import __version__
from cers.config import FREE, MaskReading, RunConfig, dump_config, load_config
from cers.data.case import Case
from cers.data.duplicates import file_hash
from cers.data.loaders import BatchMaker
from cers.data.splits import Split, dataset_hash, load_split, make_split, save_split
from cers.engine.checkpoint import load_checkpoint, require_same_run, restore_method
from cers.engine.device import actual_precision, device_name
from cers.engine.log import OnRow, read_log
from cers.engine.trainer import Streams, Trainer
from cers.engine.weights import build_encoder, fingerprint
from cers.errors import CersError
from cers.files import LOCK, AnyPath, alone, write_atomic
from cers.material import Decoding, dataset_cases, fit_texts, load_dataset, make_batches, training_cases, with_groups
from cers.methods.base import Method, Setup
from cers.methods.registry import create_method, method_settings
from cers.nets.encoder import PyramidEncoder
from cers.text.encoders import TextEncoders

# What a folder holds before it can be resumed, and what every run holds from then on.
BEGUN = {"split.json", "text"}
COMPLETE = {"config.yaml", *BEGUN}


# What the state of a finished run says of its price, for `run.json`.
COSTS = (
    "seconds",
    "wall_seconds",
    "optimiser_steps",
    "labelled_images",
    "unlabelled_images",
    "image_passes",
    "peak_memory",
)


@dataclass(frozen=True)
class Run:
    """A trained run read back: its settings, split, encoders, and the method with its best weights."""

    folder: Path
    config: RunConfig
    split: Split
    texts: TextEncoders
    method: Method
    facts: Mapping[str, Any]

    def cases(self) -> dict[str, Case]:
        """The dataset of the run by id, with groups as its split knows them.

        Raises:
            CersError: the dataset has moved or changed.
        """
        return {case.id: case for case in dataset_cases(self.config, self.split)}

    def cases_at_hand(self) -> dict[str, Case]:
        """The same, none where the dataset has moved or changed: other data can be scored without it."""
        try:
            return self.cases()
        except CersError:
            return {}

    def shown_by(
        self, cases: Sequence[Case], ids: Collection[str], known_by: Callable[[Path], str] = file_hash
    ) -> set[str]:
        """Ids of `cases` whose image is that of one of the run's own `ids`; none where its data are not at hand.

        Images are `known_by` the bytes of their files, or by their pixels (`pixel_hash`), which takes longer and also
        knows one that was saved anew. Names tell nothing: two hospitals may both have an image 001.
        """
        own = {known_by(case.image) for id_, case in self.cases_at_hand().items() if id_ in ids}
        return {case.id for case in cases if own and known_by(case.image) in own}

    def grouped(self, cases: Sequence[Case]) -> list[Case]:
        """Cases of any dataset, with groups as the run's split knows them where they are its own images."""
        own = self.shown_by(cases, self.split.ids)
        known = {case.id: case for case in with_groups([c for c in cases if c.id in own], self.split)}
        return [known.get(case.id, case) for case in cases]

    def costs(self) -> dict[str, Any]:
        """What its training took, by the names in `COSTS`; nothing of one that was cut short."""
        path = self.folder / "run.json"
        facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: facts[name] for name in COSTS if name in facts}

    def reading_masks(self, mask: MaskReading | None) -> Self:
        """The same run beside another dataset, whose masks are read by `mask`, or must leave no doubt."""
        data = self.config.data.model_copy(update={"mask": mask or MaskReading()})
        return replace(self, config=self.config.model_copy(update={"data": data}))

    def maker(
        self, cases: Sequence[Case], labelled: Collection[str] = (), on_decode: Decoding | None = None
    ) -> BatchMaker:
        """Batches of `cases`; masks and mask-informed rationales only of those in `labelled`."""
        return make_batches(self.config, cases, self.texts, labelled, on_decode)


@dataclass(frozen=True)
class NewRun:
    """A run that has not begun: its loop, and what its folder must hold first."""

    trainer: Trainer
    split: Split
    texts: TextEncoders


def train(
    config: RunConfig,
    folder: AnyPath,
    *,
    overwrite: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_row: OnRow | None = None,
    on_decode: Decoding | None = None,
) -> Path:
    """Train a new run into `folder` and return it.

    `on_note` is told what was decided for want of a setting, `on_row` every row of the log, `on_decode` how many files
    of how many are decoded.

    Raises:
        CersError: bad settings or data, an existing run without `overwrite`, a full disk, a loss that is not finite.
        Interrupted: Ctrl-C; `resume(folder)` goes on.
    """
    folder = Path(folder)
    _require_free(folder, overwrite)
    # Everything is read before an older run is deleted.
    new = prepare(config, folder, on_note=on_note, on_row=on_row, on_decode=on_decode)
    with alone(folder):
        _require_free(folder, overwrite)  # another process may have been faster
        if overwrite:
            _clear(folder)
        save_split(new.split, folder / "split.json")
        new.texts.save(folder / "text")
        write_atomic(folder / "config.yaml", dump_config(new.trainer.config))
        return _run(new.trainer)


def prepare(
    config: RunConfig,
    folder: Path,
    *,
    on_note: Callable[[str], None] | None = None,
    on_row: OnRow | None = None,
    on_decode: Decoding | None = None,
) -> NewRun:
    """All that a new run in `folder` needs, with every file read; nothing is written there yet.

    Raises:
        CersError: bad settings or data.
    """
    settings = method_settings(config.method.name, config.method.settings).model_dump(mode="json")
    config = config.resolved(actual_precision(config.train.precision), settings)
    # With a split of the user's own, `cers data split` has told it.
    cases = load_dataset(config, on_note if config.data.split is None else None)
    if config.data.split is None and on_note is not None:
        on_note(f"data.split is not set: making a grouped split, 8:1:1, kept as {folder / 'split.json'}")
    split = _split(config, cases)
    texts = fit_texts(config, training_cases(cases, split), split, on_note)
    trainer = _trainer(config, folder, cases, split, texts, on_row, on_decode)
    if on_note is not None and trainer.method.may_read_text and (absent := _absent_texts(config, texts)):
        on_note(f"no training image has {' or '.join(absent)}: {config.method.name} does without")
    return NewRun(trainer, split, texts)


def _absent_texts(config: RunConfig, texts: TextEncoders) -> list[str]:
    kinds = (("a report", config.text.report, texts.report), ("a rationale", config.text.cot, texts.cot))
    return [kind for kind, wanted, encoder in kinds if wanted not in (None, "none") and encoder is None]


def resume(
    folder: AnyPath,
    overrides: Sequence[str] = (),
    *,
    on_row: OnRow | None = None,
    on_decode: Decoding | None = None,
) -> Path:
    """Go on with a run from its last checkpoint; it ends with the weights of an uninterrupted one.

    Raises:
        CersError: no run there, or an override would change what it computes.
    """
    folder = Path(folder)
    config = read_config(folder, overrides)
    split = _own_split(folder)
    cases = dataset_cases(config, split)
    texts = TextEncoders.load(folder / "text", config.text)
    with alone(folder):
        return _run(_trainer(config, folder, cases, split, texts, on_row, on_decode))


def load_run(folder: AnyPath, overrides: Sequence[str] = ()) -> Run:
    """The run in `folder` with its best weights, ready to predict; `overrides` say e.g. where its data are now.

    Raises:
        CersError: no run there, not trained yet, its files do not fit each other, or an override would change it.
    """
    folder = Path(folder)
    config = read_config(folder, overrides)
    split = _own_split(folder)
    path = folder / "checkpoints" / "best.safetensors"
    checkpoint = load_checkpoint(path)
    require_same_run(checkpoint, config, split.hash, path)
    texts = TextEncoders.load(folder / "text", config.text)
    config = config.model_copy(update={"model": config.model.model_copy(update={"weights": "none"})})
    entries = [(id_, group, label) for id_, group, label in checkpoint.facts["entries"]]
    method, _ = _create_method(config, entries, split.unlabelled, texts)
    restore_method(method, checkpoint, path)
    return Run(folder, config, split, texts, method.eval(), checkpoint.facts)


def require_other_data(data: Path | None, mask: MaskReading | None) -> None:
    """Refuse a reading of masks where no other dataset is given.

    Raises:
        CersError: there is none to be read by it.
    """
    if data is None and mask not in (None, MaskReading()):
        raise CersError("how masks are read can be said of --data only; the run's own are read as in training")


def read_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved configuration of a run; `overrides` may change how it computes and where its files are.

    Raises:
        CersError: `folder` holds no run, or an override would change what it computes.
    """
    if not (folder / "config.yaml").is_file():
        raise CersError(
            f"{folder} holds no run (config.yaml is missing); train one with `cers train --out {quote(str(folder))}`"
        )
    stored = load_config(folder / "config.yaml")
    changed = stored.with_values(overrides)
    _refuse_changes(stored, changed)
    return changed


def unfinished(folder: Path) -> str | None:
    """What to say of a run whose training was cut short, None of one that has ended or of which nothing is known."""
    last = folder / "checkpoints" / "last.safetensors"
    if (folder / "run.json").is_file() or not last.is_file():
        return None
    facts = load_checkpoint(last).facts
    step, steps = facts["state"]["step"], facts["steps"]
    return f"{folder} stopped at step {step} of {steps}; go on with `cers train --resume {quote(str(folder))}`"


def _own_split(folder: Path) -> Split:
    """The split that the run was trained on; a new one would test what it was trained on."""
    path = folder / "split.json"
    if not path.is_file():
        raise CersError(f"{path} is missing; restore it from a copy, or train again: no other split can take its place")
    return load_split(path)


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CersError(f"{folder} is a file; name another folder with --out")
    held = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if held <= BEGUN or (overwrite and held >= COMPLETE):
        return
    if held >= COMPLETE:
        again = f"cers train --resume {quote(str(folder))}"
        raise CersError(f"{folder} holds a run; go on with `{again}`, or pass --overwrite")
    raise CersError(f"{folder} is not empty and holds no run; delete it, or name another folder with --out")


def _clear(folder: Path) -> None:
    """Delete what an older run left, but for the lock that is held."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _trainer(
    config: RunConfig,
    folder: Path,
    cases: Sequence[Case],
    split: Split,
    texts: TextEncoders,
    on_row: OnRow | None,
    on_decode: Decoding | None,
) -> Trainer:
    """All that a run needs, with every file read; nothing is written into `folder` yet."""
    seen = training_cases(cases, split)
    by_id = {case.id: case for case in seen}
    entries = [(id_, by_id[id_].group, by_id[id_].label) for id_ in split.labelled]
    method, weights = _create_method(config, entries, split.unlabelled, texts)
    facts = {**_facts(config, seen, split, texts), "encoder_weights": weights, "entries": entries}
    facts |= {"reads_text": method.reads_text, "parameters": _trained_parameters(method)}
    if not weights:  # the method has networks of its own
        facts |= {"encoder": None}
    maker = make_batches(config, seen, texts, split.labelled, on_decode, mirrors=config.data.flips)
    streams = Streams(split.labelled, split.unlabelled, split.val)
    return Trainer(method, maker, streams, config, folder, facts=facts, on_row=on_row)


def _run(trainer: Trainer) -> Path:
    folder = trainer.folder
    trainer.resume()
    state = trainer.run()
    run = load_run(folder)
    if run.method.pool is not None:
        run.method.pool.save(folder / "pool", encoder=fingerprint(run.method.encoder))
    costs = {name: getattr(state, name) for name in COSTS}
    costs["step_seconds"] = _step_seconds(folder)
    facts = {**trainer.facts, **costs, "steps": state.step, "device": device_name(), "best_step": state.best_step}
    write_atomic(folder / "run.json", json.dumps(facts, indent=1))  # last: where it is, the run is whole
    return folder


def _step_seconds(folder: Path) -> float | None:
    """Median time of a step of the last stage, in which a method does all that it does."""
    rows = [row for row in read_log(folder / "log.jsonl") if row["kind"] == "step"]
    return median(row["seconds"] for row in rows if row["stage"] == rows[-1]["stage"]) if rows else None


def _trained_parameters(method: Method) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def _create_method(
    config: RunConfig,
    entries: Sequence[tuple[str, str | None, str | None]],
    unlabelled: Sequence[str],
    texts: TextEncoders,
) -> tuple[Method, str]:
    origin = ""

    def encoder() -> PyramidEncoder:
        nonlocal origin
        made, origin = build_encoder(config.model.encoder, config.model.drop_path, config.model.weights)
        return made

    setup = Setup(
        encoder=encoder,
        labelled=entries,
        image_size=config.data.image_size,
        report_width=texts.report.width if texts.report else None,
        cot_width=texts.cot.width if texts.cot else None,
        cot_upper=texts.cot_upper,
        seed=config.seed,
        unlabelled=unlabelled,
    )
    return create_method(config.method.name, config.method.settings, setup), origin


def _split(config: RunConfig, cases: Sequence[Case]) -> Split:
    split = load_split(config.data.split, cases) if config.data.split else make_split(cases)
    return split if config.data.labelled is None else split.with_labelled(config.data.labelled)


def _facts(config: RunConfig, cases: Sequence[Case], split: Split, texts: TextEncoders) -> dict[str, Any]:
    return {
        "cers": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "method": config.method.name,
        "encoder": config.model.encoder,
        "report_encoder": texts.report.fingerprint if texts.report else None,
        "cot_encoder": texts.cot.fingerprint if texts.cot else None,
        "dataset": dataset_hash([case.id for case in cases]),
        "split": split.hash,
        "labelled": len(split.labelled),
        "unlabelled": len(split.unlabelled),
        "validation": len(split.val),
        "test": len(split.test),
        "seed": config.seed,
    }


def _refuse_changes(stored: RunConfig, changed: RunConfig) -> None:
    before, after = stored.flat(), changed.flat()
    broken = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    for key in broken:
        if key not in FREE:
            raise CersError(
                f"{key} was {before.get(key)!r} when the run started and cannot become {after.get(key)!r} now; "
                "start a new run with --out, or leave it out"
            )
