"""The knowledge pool: one row per labelled case, keyed by id."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from cers.errors import CersError, nearest
from cers.files import AnyPath, write_atomic


class PoolEntry(NamedTuple):
    """Who a row of the pool is: its case, its patient or volume, its class."""

    id: str
    group: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class PoolShape:
    """Widths of a pool: image channels, side of the token grid, CoT and report embeddings, prototypes (0: none).

    `areas` says whether it keeps how large each lesion is.
    """

    channels: int
    grid: int
    cot: int = 0
    report: int = 0
    prototypes: int = 0
    areas: bool = False


class KnowledgePool(nn.Module):
    """Embeddings of N labelled cases, in order of id.

    `image` (N,C), `cot` (N,E) and `report` (N,R) are of unit length; `tokens` (N,T,C), T = grid², are features of the
    reference itself; `prototypes` (N,3,D), where wanted, of its lesion, its background and its look-alike; `area` (N,),
    where wanted, is the share of its image that the lesion covers. All but `area` and
    `image`, which moves in small steps (Eq. 5), are kept in half precision. `filled`, `cot_known` and `report_known`
    (N,) say which rows hold something.
    All are buffers, so a pool travels in its method's state_dict; none ever carries a gradient.
    """

    image: Tensor
    tokens: Tensor
    cot: Tensor
    report: Tensor
    prototypes: Tensor
    area: Tensor
    filled: Tensor
    cot_known: Tensor
    report_known: Tensor
    group_code: Tensor

    def __init__(self, entries: Sequence[PoolEntry], shape: PoolShape) -> None:
        super().__init__()
        self.entries = tuple(sorted(PoolEntry(*entry) for entry in entries))
        self.shape = shape
        self.ids = tuple(entry.id for entry in self.entries)
        self._row = {id_: row for row, id_ in enumerate(self.ids)}
        self._code = {g: c for c, g in enumerate(sorted({e.group for e in self.entries if e.group is not None}))}
        n = len(self.entries)
        self.register_buffer("image", torch.zeros(n, shape.channels))
        self.register_buffer("tokens", torch.zeros(n, shape.grid**2, shape.channels, dtype=torch.float16))
        self.register_buffer("cot", torch.zeros(n, shape.cot, dtype=torch.float16))
        self.register_buffer("report", torch.zeros(n, shape.report, dtype=torch.float16))
        if shape.prototypes:
            self.register_buffer("prototypes", torch.zeros(n, 3, shape.prototypes, dtype=torch.float16))
        if shape.areas:
            self.register_buffer("area", torch.zeros(n))
        for name in ("filled", "cot_known", "report_known"):
            self.register_buffer(name, torch.zeros(n, dtype=torch.bool))
        self.register_buffer("group_code", torch.tensor([self._group(e.group) for e in self.entries]), persistent=False)

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self, ids: Sequence[str]) -> Int[Tensor, " b"]:
        """The row of each id, -1 for cases that are not in the pool."""
        return torch.tensor([self._row.get(id_, -1) for id_ in ids], device=self.image.device)

    def summarise(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b t c"]]:
        """The pooled vector and the token grid by which the pool remembers the encoder's last features."""
        features = features.detach().float()
        grid = F.adaptive_avg_pool2d(features, self.shape.grid)
        return features.mean(dim=(2, 3)), grid.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def fill(
        self,
        ids: Sequence[str],
        features: Tensor,
        *,
        cot: Tensor | None = None,
        cot_known: Tensor | None = None,
        report: Tensor | None = None,
        report_known: Tensor | None = None,
        prototypes: Tensor | None = None,
        area: Tensor | None = None,
    ) -> None:
        """Write rows afresh from last features (B,C,h,w), text embeddings (B,E), (B,R), prototypes (B,3,D), area (B,).

        Raises:
            KeyError: an id is not an entry of this pool.
        """
        rows = torch.tensor([self._row[id_] for id_ in ids], device=self.image.device)
        pooled, tokens = self.summarise(features)
        self.image[rows] = F.normalize(pooled, dim=-1)
        self.tokens[rows] = tokens.half()
        self.filled[rows] = True
        if cot is not None and cot_known is not None:
            self.cot[rows] = F.normalize(cot.float(), dim=-1).half()
            self.cot_known[rows] = cot_known
        if report is not None and report_known is not None:
            self.report[rows] = F.normalize(report.float(), dim=-1).half()
            self.report_known[rows] = report_known
        if prototypes is not None:
            self.prototypes[rows] = prototypes.half()
        if area is not None:
            self.area[rows] = area

    @torch.no_grad()
    def update(
        self,
        ids: Sequence[str],
        features: Float[Tensor, "b c h w"],
        momentum: float,
        prototypes: Float[Tensor, "b 3 d"] | None = None,
    ) -> None:
        """Eq. 5: v <- momentum v + (1 - momentum) f with f of unit length, then back onto the unit sphere.

        `features` come from the training pass itself. Cases outside the pool are passed over, of a case that occurs
        twice the last view counts; texts stay as they are.
        """
        last = {self._row[id_]: place for place, id_ in enumerate(ids) if id_ in self._row}
        rows, places = (torch.tensor(list(i), dtype=torch.long, device=features.device) for i in (last, last.values()))
        pooled, tokens = self.summarise(features[places])
        mixed = momentum * self.image[rows] + (1 - momentum) * F.normalize(pooled, dim=-1)
        self.image[rows] = F.normalize(mixed, dim=-1)
        self.tokens[rows] = _half_by_chance(torch.lerp(tokens, self.tokens[rows].float(), momentum))
        if prototypes is not None:
            mixed = torch.lerp(prototypes[places].float(), self.prototypes[rows].float(), momentum)
            self.prototypes[rows] = _half_by_chance(mixed)

    def allowed(
        self,
        ids: Sequence[str],
        groups: Sequence[str | None],
        *,
        exclude_group: bool = True,
        exclude_self: bool = True,
    ) -> Bool[Tensor, "b n"]:
        """Which rows each query may retrieve: filled ones, by default never itself nor, if known, its own group."""
        allowed = self.filled[None].expand(len(ids), -1)
        if exclude_self:
            rows = torch.arange(len(self), device=self.image.device)
            allowed = allowed & (rows[None] != self.rows(ids)[:, None])
        if exclude_group and groups:
            code = torch.tensor([self._group(group) for group in groups], device=self.image.device)
            same = (code[:, None] >= 0) & (code[:, None] == self.group_code[None])
            allowed = allowed & ~same
        return allowed

    def save(self, folder: AnyPath, encoder: str) -> None:
        """Write `pool.safetensors` and `manifest.json`; `encoder` is the fingerprint of the network that filled it."""
        folder = Path(folder)
        manifest = {
            "encoder": encoder,
            "shape": asdict(self.shape),
            "entries": [list(entry) for entry in self.entries],
        }
        write_atomic(folder / "pool.safetensors", save({k: v.contiguous() for k, v in self.state_dict().items()}))
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, folder: AnyPath, encoder: str | None = None) -> Self:
        """Read a saved pool.

        Raises:
            CersError: it is missing, broken, or was built with another encoder than `encoder`.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            pool = cls([PoolEntry(*entry) for entry in manifest["entries"]], PoolShape(**manifest["shape"]))
            pool.load_state_dict(load_file(folder / "pool.safetensors"))
            built_with = manifest["encoder"]
        except FileNotFoundError:
            raise CersError(
                f"{folder} holds no knowledge pool (manifest.json and pool.safetensors); "
                "build one with `cers pool build`"
            ) from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError, OSError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise CersError(
                f"{folder}: not a readable pool ({reason}); build it again with `cers pool build`"
            ) from None
        if encoder is not None and built_with != encoder:
            raise CersError(
                f"{folder} was built with encoder {built_with}, this run has {encoder}; "
                "similarities would mean nothing: build it again with `cers pool build`"
            )
        return pool

    def row_of(self, id_: str) -> int:
        """The row of one case.

        Raises:
            CersError: it is not in the pool; names the nearest id.
        """
        if id_ not in self._row:
            raise CersError(f"'{id_}' is not in the pool of {len(self)} cases; {nearest(id_, self.ids)}")
        return self._row[id_]

    def _group(self, group: str | None) -> int:
        return -1 if group is None else self._code.get(group, -1)


def _half_by_chance(values: Tensor) -> Tensor:
    """`values` in half precision, up or down by chance so that the mean stays.

    The nearest would be the old value again: a step of Eq. 5 with momentum 0.99 is mostly less than half a last digit.
    """
    dropped = 23 - 10  # bits of the mantissa that a half lacks
    noise = torch.randint_like(values, 1 << dropped, dtype=torch.int32)
    return ((values.view(torch.int32) + noise) >> dropped << dropped).view(torch.float32).half()
