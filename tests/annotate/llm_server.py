"""A server on loopback that speaks OpenAI's chat completions, files and batches as documented, and can fail like one.

`LlmServer` runs it in a thread of the test; `python llm_server.py` runs it as a process of its own and prints its port.
Faults are taken from `faults` in order, one per chat request, then all is well:

429 (with Retry-After), limit (x-ratelimit headers), quota, 500, 503, slow (no answer), cut (half an answer), drop (no
answer, connection closed), half (JSON of the answer ends early), garbage, prose (headings instead of JSON), refuse,
policy, 400, 401, 404, redirect, empty (no choices), 504, now (429 that asks for no wait), long (max_tokens is
not liked), surrogate (text that is no UTF-8), deep (endless brackets), parts (text in parts), uncounted (no tokens).
"""

import asyncio
import base64
import hashlib
import json
import sys
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

ASPECTS = ("texture", "boundary", "context", "summary")
TOKENS_OUT = 40


@dataclass
class Seen:
    """One chat request as it arrived, what was answered, and whether the answer was sent whole."""

    body: dict[str, Any]
    headers: dict[str, str]
    fault: str | None
    delivered: bool = False

    @property
    def texts(self) -> list[str]:
        return [
            p["text"]
            for m in self.body["messages"]
            if isinstance(m["content"], list)
            for p in m["content"]
            if "text" in p
        ]

    @property
    def images(self) -> list[bytes]:
        parts = [p for m in self.body["messages"] if isinstance(m["content"], list) for p in m["content"]]
        urls = [p["image_url"]["url"] for p in parts if "image_url" in p]
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    @property
    def subject(self) -> str:
        """Names what was asked, the same for a repeated or repaired request."""
        return hashlib.sha256(json.dumps(self.body["messages"][0]).encode()).hexdigest()


@dataclass
class LlmServer:
    faults: deque[str] = field(default_factory=deque)
    schema: bool = True  # whether response_format is understood
    retry_after: float = 0.05
    delay: float = 0.0
    limit_field: str | None = None  # the only field for the length of an answer that is understood
    keep: bool = True  # remember requests; not for long runs
    seen: list[Seen] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    polls_until_done: int = 1
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "LlmServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def kill(self) -> None:
        """Stop at once: open connections are cut, whatever they wait for."""
        self._loop.call_soon_threadsafe(self._dead.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._dead = asyncio.get_running_loop(), asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 20, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._dead.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, _, rest = head.partition(b"\r\n")
                method, target, _ = line.decode().split(" ")
                headers = {
                    k.lower(): v for k, v in (h.split(": ", 1) for h in rest.decode().strip().split("\r\n") if h)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if "chunked" in headers.get("transfer-encoding", ""):
                    body = await _chunks(reader)
                if not await self._answer(writer, method, target.partition("?")[0], headers, body):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        if path == "/v1/chat/completions":
            return await self._chat(writer, headers, json.loads(body))
        if path == "/v1/files":
            id = f"file-{uuid.uuid4().hex}"
            self.files[id] = _uploaded(headers["content-type"], body)
            return await _send(
                writer,
                200,
                {
                    "id": id,
                    "object": "file",
                    "purpose": "batch",
                    "bytes": len(body),
                    "created_at": 0,
                    "filename": "f",
                    "status": "processed",
                },
            )
        if path.startswith("/v1/files/"):
            id = path.split("/")[3]
            return (
                await _send(writer, 200, self.files[id])
                if id in self.files
                else await _error(writer, 404, "no such file")
            )
        if path == "/v1/batches" and method == "POST":
            asked = json.loads(body)
            id = f"batch_{uuid.uuid4().hex}"
            total = len(self.files[asked["input_file_id"]].splitlines())
            self.batches[id] = {
                **asked,
                "id": id,
                "object": "batch",
                "status": "validating",
                "created_at": 0,
                "polls": 0,
                "request_counts": {"total": total, "completed": 0, "failed": 0},
            }
            return await _send(writer, 200, self.batches[id])
        if path == "/v1/batches":
            return await _send(writer, 200, {"object": "list", "data": list(self.batches.values()), "has_more": False})
        if path.startswith("/v1/batches/"):
            batch = self.batches.get(path.split("/")[3])
            return (
                await _error(writer, 404, "no such batch")
                if batch is None
                else await _send(writer, 200, self._polled(batch))
            )
        return await _error(writer, 404, f"no such path {path}")

    async def _chat(self, writer: asyncio.StreamWriter, headers: dict[str, str], body: dict[str, Any]) -> bool:
        fault = self.faults.popleft() if self.faults else None
        seen = Seen(body, headers, fault)
        self.counts["requests"] += 1
        if self.keep:
            self.seen.append(seen)
        if self.delay:
            await asyncio.sleep(self.delay)
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}.get(
            self.limit_field or ""
        )
        if not self.schema and "response_format" in body:
            return await _error(writer, 400, "response_format json_schema is not supported", param="response_format")
        if other in body:
            return await _error(
                writer, 400, f"Unsupported parameter: '{other}'. Use '{self.limit_field}' instead.", param=other
            )
        if fault in _ERRORS:
            asked = {"429": self.retry_after, "503": self.retry_after, "now": 0}
            extra = {"Retry-After": str(asked[fault])} if fault in asked else {}
            status, message, code = _ERRORS[fault]
            return await _error(writer, status, message, code=code, headers=extra)
        if fault == "slow":
            await self._dead.wait()
            return False
        if fault == "drop":
            return False
        answer = completion(body, fault)
        extra = (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"} if fault == "limit" else {}
        )
        if fault == "cut":
            await _send(writer, 200, answer, cut=True)
            return False
        self.counts["delivered"] += 1
        self.counts["tokens_in"] += (answer["usage"] or {}).get("prompt_tokens", 0)
        seen.delivered = await _send(writer, 200, answer, headers=extra)
        return True

    def _polled(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["polls"] += 1
        if batch["polls"] < self.polls_until_done or batch["status"] in ("completed", "expired", "failed"):
            if batch["status"] == "validating":
                batch["status"] = "in_progress"
            return batch
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            asked = json.loads(line)
            fault = self.faults.popleft() if self.faults else None
            if fault == "expire":
                batch["status"] = "expired"
                continue
            if fault in _ERRORS:
                status, message, code = _ERRORS[fault]
                reply = {"status_code": status, "body": {"error": {"message": message, "code": code}}}
            else:
                reply = {"status_code": 200, "body": completion(asked["body"], fault)}
            (good if reply["status_code"] == 200 else bad).append(
                {"custom_id": asked["custom_id"], "response": reply, "error": None}
            )
        batch["status"] = "expired" if batch["status"] == "expired" else "completed"
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[name] = f"file-{uuid.uuid4().hex}"
                self.files[batch[name]] = "\n".join(map(json.dumps, lines)).encode()
        batch["request_counts"] = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
        return batch


_ERRORS = {
    "429": (429, "Rate limit reached for requests", "rate_limit_exceeded"),
    "quota": (429, "You exceeded your current quota", "insufficient_quota"),
    "now": (429, "Rate limit reached for requests", "rate_limit_exceeded"),
    "long": (400, "max_tokens or max_completion_tokens is too large: 500", "invalid_value"),
    "504": (504, "Gateway Timeout", None),
    "500": (500, "The server had an error", None),
    "503": (503, "Overloaded", None),
    "policy": (400, "The prompt violates the content policy", "content_policy_violation"),
    "400": (400, "Invalid image", "invalid_image"),
    "401": (401, "Incorrect API key provided: sk-very-secret-key", "invalid_api_key"),
    "404": (404, "The model does not exist", "model_not_found"),
    "redirect": (307, "elsewhere", None),
}


def completion(body: dict[str, Any], fault: str | None) -> dict[str, Any]:
    """A chat completion about the request, a different one for each."""
    mark = hashlib.sha256(json.dumps(body["messages"][0]).encode()).hexdigest()[:12]
    aspects = {aspect: f"the {aspect} of {mark} is plain." for aspect in ASPECTS}
    text = json.dumps(aspects)
    if fault == "prose" or (fault is None and "exactly four lines" in str(body["messages"][-1]["content"])):
        text = "\n".join(f"**{name.title()}:** {value}" for name, value in aspects.items())
    text = {
        "half": text[: len(text) // 2],
        "garbage": "lorem ipsum",
        "surrogate": text.replace("plain", "plain \ud83d"),
        "deep": '{"texture": ' + "[" * 200_000 + "}",
    }.get(fault or "", text)
    message = {"role": "assistant", "content": None if fault == "refuse" else text}
    if fault == "parts":
        message["content"] = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    message["refusal"] = "I'm sorry, I can't assist with that." if fault == "refuse" else None
    choices = [{"index": 0, "message": message, "finish_reason": "length" if fault == "half" else "stop"}]
    usage = {"prompt_tokens": 100, "completion_tokens": TOKENS_OUT, "total_tokens": 100 + TOKENS_OUT}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [] if fault == "empty" else choices,
        "usage": None if fault == "uncounted" else usage,
    }


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    content: dict[str, Any] | bytes,
    *,
    headers: dict[str, str] | None = None,
    cut: bool = False,
) -> bool:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + (data[: len(data) // 2] if cut else data))
    await writer.drain()
    return True


async def _error(
    writer: asyncio.StreamWriter,
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> bool:
    location = {"Location": "http://192.0.2.1/v1/chat/completions"} if status == 307 else {}
    error = {"error": {"message": message, "type": "error", "code": code, "param": param}}
    return await _send(writer, status, error, headers={**location, **(headers or {})})


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    data = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return data


def _uploaded(content_type: str, body: bytes) -> bytes:
    """The part named `file` of a form."""
    form = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
    return parts["file"].get_payload(decode=True)


def main() -> None:
    """Serve until stdin closes; then print what was counted."""
    server = LlmServer(keep=False, delay=float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
    with server:
        print(server.port, flush=True)  # noqa: T201
        sys.stdin.read()
        print(json.dumps({**server.counts, "cpu": time.process_time()}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
