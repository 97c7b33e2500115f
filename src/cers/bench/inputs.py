"""The way of an image into a batch: drawn, decoded into the cache, augmented."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cers.bench.measure import Advance, measure
from cers.config import MaskReading
from cers.data.augment import augment
from cers.data.cache import ImageCache
from cers.data.layouts import load_cases
from cers.data.loaders import BatchMaker
from cers.data.phantom import write_phantoms

BATCH = 16


def bench_input(size: int, images: int, repeats: int, done: Advance) -> dict[str, Any]:
    """Per CPU second: weak views with their masks, the same as tensors, and files decoded; phantoms per CPU minute."""
    with TemporaryDirectory() as folder:
        return _bench(Path(folder), size, images, repeats, done)


def _bench(folder: Path, size: int, images: int, repeats: int, done: Advance) -> dict[str, Any]:
    dataset = folder / "phantom-0"
    made = iter(range(repeats + 1))
    drawn = measure(lambda: write_phantoms(folder / f"phantom-{next(made)}", n=images, size=size), repeats)
    done("phantoms")
    cases = load_cases(dataset)
    ids = [case.id for case in cases]
    built = iter(range(repeats + 1))

    def build() -> ImageCache:
        return ImageCache.build(cases, size, folder / f"cache-{next(built)}", MaskReading())

    decoded = measure(build, repeats)
    done("cache")
    cache = ImageCache.build(cases, size, folder / "cache-0", MaskReading())
    views = measure(lambda: _augment_all(cache, ids), repeats)
    maker = BatchMaker(cache, {case.id: case for case in cases})
    batches = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
    tensors = measure(lambda: [_batch(maker, batch) for batch in batches], repeats)
    done("views")
    return {
        "size": size,
        "images": images,
        "augmented_pairs_per_s": images / views.cpu_s,
        "batched_pairs_per_s": images / tensors.cpu_s,
        "cached_pairs_per_s": images / decoded.cpu_s,
        "phantoms_per_minute": 60 * images / drawn.cpu_s,
    }


def _augment_all(cache: ImageCache, ids: list[str]) -> None:
    for i in ids:
        augment(cache.image(i), cache.mask(i), seed=0, draw=0, case_id=i, flips=True, strong_views=0)


def _batch(maker: BatchMaker, ids: list[str]) -> object:
    return maker.augmented(ids, seed=0, draws=[0] * len(ids), flips=True, strong_views=0)
