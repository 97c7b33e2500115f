"""How fast `cers annotate run` can be: images through a server on loopback that answers at once, as its own process.

    python bench/annotate_speed.py 2000

Prints texts per second of wall time and of processor time, and the memory in the middle and at the end.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "annotate"))

from llm_cases import job, write_cases  # noqa: E402

from cers.annotate.run import run_annotation  # noqa: E402
from cers.cot.store import AnnotationStore  # noqa: E402


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "annotate" / "llm_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder, AnnotationStore(Path(folder) / "s.db") as store:
        cases = write_cases(Path(folder) / "images", n, size=256)
        asked = job(cases, f"http://127.0.0.1:{port}/v1", timeout=30)
        begun, processor = time.monotonic(), time.process_time()

        def note(done: int, *_: float) -> None:
            if done % max(1, n // 10) == 0:
                memory.append(_resident())

        summary = run_annotation(asked, store, progress=note)
        wall, processor = time.monotonic() - begun, time.process_time() - processor
        assert summary.done["ok"] == n
    counts = json.loads(server.communicate()[0])
    print(f"{n} texts: {n / wall:.0f}/s wall, {n / processor:.0f} per processor second")  # noqa: T201
    print(f"server: {counts['requests']} requests, {counts['cpu']:.1f} processor seconds")  # noqa: T201
    print("memory MiB at each tenth:", *(f"{m:.0f}" for m in memory))  # noqa: T201
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")  # noqa: T201


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
