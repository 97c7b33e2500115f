"""Retrieval: how long a search takes beside a training step, and how much memory a case of the pool takes."""

from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from cers.bench.measure import Advance, measure
from cers.bench.scene import Workload, make_method
from cers.bench.step import Rung, optimiser_step, random_scene
from cers.data.case import Batch
from cers.methods.evidence import Retriever
from cers.retrieval.pool import KnowledgePool, PoolEntry, PoolShape

QUERIES = 16
IMAGE_WIDTH, COT_WIDTH = 768, 512
SEARCHES = 20  # a search is short: its median needs more of them


def bench_search(workload: Workload, sizes: tuple[int, ...], repeats: int, done: Advance) -> dict[str, Any]:
    """Milliseconds of CPU for 16 queries in pools of `sizes`, and their share of a step on 16 images."""
    step = measure(optimiser_step(random_scene(replace(workload, images=QUERIES // 2)), Rung("ours", None)), repeats)
    done("step of 16 images")
    rows = []
    for cases in sizes:
        timing = measure(_search(cases), repeats * SEARCHES)
        rows.append(
            {
                "cases": cases,
                "cpu_ms": 1e3 * timing.cpu_s,
                "wall_ms": 1e3 * timing.wall_s,
                "share_of_step": timing.cpu_s / step.cpu_s,
            }
        )
        done(f"{cases} cases")
    return {"queries": QUERIES, "step_cpu_s": step.cpu_s, "pools": rows}


def bench_memory(workload: Workload) -> dict[str, Any]:
    """Bytes per case of each of the pool's tables."""
    pool = make_method(workload).pool
    tables = {name: table.nbytes // len(pool) for name, table in pool.named_buffers()}
    return {"grid": pool.shape.grid, "bytes": tables, "total": sum(tables.values())}


def _search(cases: int) -> Any:
    """A whole two-stage search, image then rationale, of 16 queries that are themselves in the pool."""
    torch.manual_seed(0)
    entries = [PoolEntry(f"case {i:07d}", f"patient {i // 3}") for i in range(cases)]
    # Tokens are not searched: the smallest grid spares their memory.
    pool = KnowledgePool(entries, PoolShape(IMAGE_WIDTH, 1, COT_WIDTH))
    pool.image.copy_(F.normalize(torch.randn(cases, IMAGE_WIDTH), dim=-1))
    pool.cot.copy_(F.normalize(torch.randn(cases, COT_WIDTH), dim=-1))
    pool.filled.fill_(True)
    pool.cot_known.fill_(True)
    queries = entries[:QUERIES]
    batch = Batch(
        tuple(entry.id for entry in queries),
        torch.empty(len(queries), 3, 0, 0),
        cot_known=torch.ones(len(queries), dtype=torch.bool),
        groups=tuple(entry.group for entry in queries),
    )
    image, cot = torch.randn(len(queries), IMAGE_WIDTH), torch.randn(len(queries), COT_WIDTH)
    retriever = Retriever("image+cot", candidates=50, k=5, exclude_group=True)
    return lambda: retriever(pool, batch, image, cot, fresh=True)
