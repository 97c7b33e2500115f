"""Written rationales as they lie on disk: tables `image,cot[,role]` and annotation stores."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cers.cot.rationale import MalformedRationale, Rationale, parse_rationale, render
from cers.cot.records import ROLES, Annotation, Role
from cers.cot.store import AnnotationStore
from cers.data.names import key
from cers.data.tables import read_table, role_of_table
from cers.errors import CersError, nearest

COLUMNS = ("image", "role", "cot")  # of the tables that we write
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class Written:
    """One text: `labelled` ones were written with the mask in sight, `unlabelled` ones without; `where` it stands."""

    image: str
    role: Role
    text: str
    where: str


def read_texts(paths: Sequence[Path], role: Role | None = None) -> list[Written]:
    """The texts of CSV or Excel tables and of stores, in order.

    The role of a table's row is what its column `role` says, else `role`, else what the file's name says: `mask`
    without `no` before it means that the mask was in sight. Of a store, the newest good answer for each image and role
    counts, else the newest that is none; rows without answer are left to `cers annotate status`.

    Raises:
        CersError: no such file, no table `image,cot`, more cells than columns, or an unknown role.
    """
    return [text for path in paths for text in (_stored(path) if is_store(path) else _tabled(path, role))]


def is_store(path: Path) -> bool:
    """Whether the file at `path` is an SQLite database."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def role_named(name: str | None) -> Role | None:
    """The role called `name`, None for None.

    Raises:
        CersError: there is no such role.
    """
    found = next((role for role in ROLES if role == name), None)
    if name is not None and found is None:
        raise CersError(f"no role '{name}'; {nearest(name, ROLES)}")
    return found


def usable(texts: Iterable[Written], role: Role) -> dict[str, Rationale]:
    """The well-formed rationales of one role by image; of several for one image the first."""
    found: dict[str, Rationale] = {}
    for text in texts:
        if text.role == role and text.image not in found:
            try:
                found[text.image] = parse_rationale(text.text)
            except MalformedRationale:
                continue
    return found


def repeats(texts: Sequence[Written]) -> dict[int, str]:
    """By position in `texts`: what is wrong with a text whose image has another of its role before it."""
    first: dict[tuple[str, str], Written] = {}
    found = {}
    for i, text in enumerate(texts):
        earlier = first.setdefault((text.image, text.role), text)
        if earlier is not text:
            same = earlier.text.strip() == text.text.strip()
            found[i] = f"{'repeats' if same else 'contradicts'} {earlier.where}"
    return found


def counted(texts: Iterable[Written]) -> Mapping[str, int]:
    """How many texts there are of each role."""
    counts = Counter(text.role for text in texts)
    return {role: counts[role] for role in ROLES}


def _tabled(path: Path, role: Role | None) -> list[Written]:
    if not path.is_file():
        raise CersError(f"no file {path}; give a CSV with the columns image,cot or an annotation store")
    table = read_table(path)
    if not {"image", "cot"} <= set(table.columns):
        raise CersError(f"{path} needs the columns image,cot; found {','.join(table.columns)}")
    if table.ragged:
        lines = ", ".join(map(str, table.ragged[:5]))
        raise CersError(
            f"{path}: more cells than columns in line {lines}; put texts that hold a comma in double quotes"
        )
    default = role or role_of_table(path)
    return [
        Written(key(row["image"]), _role(row, default, path, line), row["cot"], f"{path.name}:{line}")
        for line, row in table.rows
    ]


def _role(row: Mapping[str, str], default: Role, path: Path, line: int) -> Role:
    stated = row.get("role", "").strip()
    found = next((role for role in ROLES if role == (stated or default)), None)
    if found is None:
        raise CersError(f"{path}:{line}: unknown role '{stated}'; {nearest(stated, ROLES)}")
    return found


def _stored(path: Path) -> list[Written]:
    with AnnotationStore(path, create=False) as store:
        rows = sorted(store.rows(), key=lambda row: (row.state == "ok", row.updated))
    answered = {(row.image, row.role): row for row in rows if row.state in ("ok", "invalid", "refused")}
    return [
        Written(r.image, r.role, _answer(r), f"{path.name} {r.model}/{r.prompt}") for _, r in sorted(answered.items())
    ]


def _answer(row: Annotation) -> str:
    """What the model said; what was taken over without its words is put into ours."""
    if row.raw is not None:
        return row.raw
    return render(row.rationale) if row.rationale else row.reason or ""
