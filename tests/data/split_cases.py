"""Cases that splits are made of: no file behind them, many classes and groups."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from cers.data.case import Case

NOWHERE = Path("nowhere.png")


def many(n: int, classes: int = 1, per_group: int = 0) -> list[Case]:
    return [
        Case(
            id=f"c{i:05d}",
            image=NOWHERE,
            mask=NOWHERE,
            label=f"class{i % classes}",
            group=f"p{i // per_group}" if per_group else None,
        )
        for i in range(n)
    ]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[Case], list[list[str]]]:
    """Cases of mixed classes, groups and annotation, enough groups to fill three parts, and clusters of them."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n = draw(st.integers(30, 200))
    groups = draw(st.integers(20, 60))
    unknown, bare, negative = (draw(st.sampled_from([0.0, 0.3])) for _ in range(3))
    found = []
    for i in range(n):
        annotated = rng.random() >= bare or i < 20
        lesion_free = annotated and rng.random() < negative
        found.append(
            Case(
                id=f"c{i}",
                image=NOWHERE,
                mask=NOWHERE if annotated and not lesion_free else None,
                negative=lesion_free,
                label=str(rng.choice(["a", "a", "b", "c"])),
                group=None if rng.random() < unknown else f"p{i if i < 20 else rng.integers(groups)}",
            )
        )
    clusters = [[f"c{j}" for j in rng.choice(n, 2, replace=False)] for _ in range(draw(st.integers(0, 8)))]
    return found, clusters
