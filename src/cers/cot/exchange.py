"""Rationales out of a store into the CSV that training reads, and out of any CSV into a store."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cers.cot.rationale import MalformedRationale, parse_rationale, render
from cers.cot.records import Role
from cers.cot.store import AnnotationStore
from cers.cot.texts import COLUMNS, read_texts, repeats
from cers.data.tables import read_table
from cers.errors import CersError
from cers.files import write_atomic


@dataclass(frozen=True)
class Exchange:
    """How many texts went over by role, and one line for each that did not."""

    labelled: int
    unlabelled: int
    problems: list[str]


def export_texts(store: Path, out: Path, model: str | None = None, *, overwrite: bool = False) -> Exchange:
    """Write the newest good answer for each image and role of `store` into a CSV `image,role,cot`.

    Training reads it by `data.rationales`: rows of role `labelled` are mask-informed and used for labelled cases only.

    Raises:
        CersError: no such store, nothing good in it, or `out` cannot be written, is there without `overwrite`, or is
            no such CSV.
    """
    if out.exists():
        _require_replaceable(out, overwrite)
    with AnnotationStore(store, create=False) as opened:
        good = opened.newest(model=model)
        rest = {(row.image, row.role): row for row in opened.rows(model=model) if (row.image, row.role) not in good}
    if not good:
        of = f" by model '{model}'" if model else ""
        raise CersError(f"{store} has no good answer{of}; `cers annotate status` says what it has")
    rows = [(image, role, render(row.rationale)) for (image, role), row in sorted(good.items()) if row.rationale]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([COLUMNS, *rows])
    write_atomic(out, buffer.getvalue())
    problems = [
        f"{image} {role}: {row.state}" + (f": {row.reason}" if row.reason else "")
        for (image, role), row in sorted(rest.items())
    ]
    return _exchange([role for _, role, _ in rows], problems)


def _require_replaceable(out: Path, overwrite: bool) -> None:
    try:
        ours = read_table(out).columns == COLUMNS
    except CersError:
        ours = False
    if not ours:
        raise CersError(f"{out} exists and is no CSV {','.join(COLUMNS)}; delete it, or write elsewhere with --out")
    if not overwrite:
        raise CersError(f"{out} exists; add --overwrite to replace it, or write elsewhere with --out")


def import_texts(paths: Sequence[Path], store: Path, *, model: str, role: Role | None = None) -> Exchange:
    """Take the texts of CSVs over into `store`, as written by `model`; `role` as for `read_texts`.

    Left out, and named: malformed texts, and any but the first well-formed one for an image and role.

    Raises:
        CersError: a file cannot be read, or no text is well-formed; the store is then not touched.
    """
    texts = read_texts(paths, role)
    problems, sound = [], []
    for text in texts:
        try:
            parse_rationale(text.text)
            sound.append(text)
        except MalformedRationale as error:
            problems.append(f"{text.where}: {text.image} {text.role}: malformed: {error}")
    again = repeats(sound)
    problems += [f"{sound[i].where}: {sound[i].image} {sound[i].role}: {why}" for i, why in again.items()]
    taken = [text for i, text in enumerate(sound) if i not in again]
    if not taken:
        raise CersError(f"{paths[0]} holds no well-formed rationale; `cers annotate audit` says what is wrong")
    with AnnotationStore(store) as opened:
        opened.import_rows([(text.image, text.role, text.text) for text in taken], model)
    return _exchange([text.role for text in taken], problems)


def _exchange(roles: Sequence[str], problems: list[str]) -> Exchange:
    return Exchange(sum(role == "labelled" for role in roles), sum(role == "unlabelled" for role in roles), problems)
