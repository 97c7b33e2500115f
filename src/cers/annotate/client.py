"""One client for every server that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, llama.cpp …

Servers differ in what they take: whether they hold an answer to a JSON schema, and how its length is limited. The
client begins with what is best and steps back when a server says no.
"""

import json
import os
import re
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

from cers.annotate.answers import Reply, json_schema
from cers.annotate.hosts import host_of, is_this_machine
from cers.annotate.job import Message
from cers.annotate.settings import AnnotateConfig
from cers.errors import CersError

try:
    import openai
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
except ModuleNotFoundError:
    raise CersError("asking a language model needs the package openai: pip install 'cers[llm]'") from None

_MODERN = ("openai.com", "azure.com")  # hosts that limit answers by max_completion_tokens
POLICY = ("content_filter", "content_policy_violation", "moderation_blocked")
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_BEHIND_GATEWAYS = (408, 502, 504, 520, 522, 524)  # the model may have answered, and only a gateway lost patience
_SECRET = re.compile(r"\b(?:sk|key|api)-[\w*\-]{6,}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class BusyError(Exception):
    """The server gave no answer this time; ask again after `wait` seconds, or after an own guess if None.

    `lost`: the request may have reached it all the same, and been charged. `limited`: everybody is to wait.
    """

    def __init__(self, reason: str, *, wait: float | None = None, lost: bool = False, limited: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.lost, self.limited = wait, lost, limited


class AgainError(Exception):
    """The server did not take the form of the request; the client has changed it: ask again at once."""


class DeclinedError(Exception):
    """The server's content policy does not allow this request."""


class UnfitError(Exception):
    """The server cannot answer this request, and will not if it is asked again."""


@dataclass
class Dialect:
    """How this server is asked."""

    schema: bool = True
    limit: str = "max_tokens"
    settled: bool = False  # whether the server has said how it wants the length limited


class Client:
    """Asks the model of `config` on the server at `url`; use it as an async context manager.

    Raises:
        CersError: a remote server and no key in the environment.
    """

    def __init__(self, config: AnnotateConfig, url: str) -> None:
        host = host_of(url)
        local = is_this_machine(host)
        key = os.environ.get(config.key_variable, "").strip()
        if not key and not local:
            raise CersError(f"no key for {host}: set the environment variable {config.key_variable}")
        if not (key.isascii() and key.isprintable()):
            raise CersError(f"the key in {config.key_variable} holds characters that no key has; set it anew")
        self.config = config
        self.pause = 0.0  # seconds that the last reply asked everybody to wait
        self._key = key
        self._dialect = Dialect(limit="max_completion_tokens" if host.endswith(_MODERN) else "max_tokens")
        self.api = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=url,
            max_retries=0,  # every call is counted, so nobody else may repeat one
            timeout=self.config.timeout,
            # Images go to the host that was allowed: not on to where a redirect points, nor from here to here by proxy.
            http_client=DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not local),
        )
        if self.api.base_url.host != host:
            raise CersError(f"base_url names '{host}' or '{self.api.base_url.host}', as one reads it; write it plainly")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.api.close()

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """The fields of a request, as this server takes them."""
        body: dict[str, Any] = {"model": self.config.model, "messages": messages, **self.config.extra}
        body[self._dialect.limit] = self.config.max_tokens
        if self._dialect.schema:
            body["response_format"] = json_schema()
        return body

    async def ask(self, messages: list[Message]) -> Reply:
        """The model's reply to `messages`: exactly one HTTP request.

        Raises:
            BusyError, AgainError, DeclinedError, UnfitError: no answer, for the reasons these classes name.
            CersError: nothing can be asked this way: key, model, quota, or a model that sees no images.
        """
        sent = self.body(messages)
        begun = time.monotonic()
        try:
            # What is in extra_body goes out as it is; anything else the SDK would walk through, megabytes of image too.
            raw = await self.api.chat.completions.with_raw_response.create(
                model=self.config.model, messages=(), extra_body=sent
            )
            completion = json.loads(raw.text)
        except openai.APIStatusError as error:
            raise self._refusal_of(error, sent) from None
        except openai.APITimeoutError:
            raise BusyError(f"no answer within {self.config.timeout:g} s", lost=True) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            lost = type(cause).__name__ != "ConnectError"  # which comes before anything was sent
            raise BusyError(f"no connection: {self.clean(str(cause))}", lost=lost) from None
        except (ValueError, openai.APIError) as error:
            raise BusyError(f"an answer that is no JSON: {self.clean(str(error))}", lost=True) from None
        self.pause = _pause(raw.headers)
        return reply_of(completion, time.monotonic() - begun)

    def clean(self, text: str) -> str:
        """`text` on one line, short, and without anything that looks like a key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(_SECRET.sub("***", text).split())[:300]

    def _refusal_of(self, error: openai.APIStatusError, sent: dict[str, Any]) -> Exception:
        """What an error status means for the request that was `sent`."""
        said = self.clean(error.message)
        lower = f"{said} {error.code} {error.param}".lower()
        if isinstance(error, _FATAL):
            return CersError(f"the server refuses: {said}; check base_url, model and {self.config.key_variable}")
        if error.code in _NO_QUOTA or error.status_code == 402:
            return CersError(f"the account's quota is used up: {said}; top it up and run the same command again")
        if error.code in POLICY or "content management policy" in lower:
            return DeclinedError(said)
        if "image" in lower and re.search(r"mmproj|not support|unsupported|multimodal|vision", lower):
            return CersError(
                f"model '{self.config.model}' takes no images on this server ({said}); choose one that sees"
            )
        if error.status_code in (400, 422) and self._step_back(sent, lower):
            return AgainError(said)
        if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
            return BusyError(
                f"{error.status_code}: {said}",
                wait=_retry_after(error.response.headers),
                lost=error.status_code in _BEHIND_GATEWAYS,
                limited=error.status_code in (429, 503),
            )
        if error.status_code < 400:
            return CersError(
                f"the server at {error.response.url.host} redirects elsewhere; set base_url to the final address"
            )
        return UnfitError(f"{error.status_code}: {said}")

    def _step_back(self, sent: dict[str, Any], complaint: str) -> bool:
        """Whether the request can be put in another way. It may have been, by another call in the meantime."""
        if "response_format" in sent and re.search(r"response_format|schema|structured|grammar|json", complaint):
            self._dialect.schema = False
            return True
        for limit, other in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
            if limit in sent and re.search(rf"\b{limit}\b", complaint):
                if self._dialect.limit == limit and self._dialect.settled:
                    return False  # it is the value that the server does not like
                self._dialect = replace(self._dialect, limit=other, settled=True)
                return True
        return False


def reply_of(completion: Any, seconds: float) -> Reply:
    """The first choice of a chat completion, as decoded from JSON.

    Raises:
        BusyError: it has none, as some gateways answer under load.
    """
    try:
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        message = choice["message"]
        return Reply(
            text=_text(message.get("content")),
            refusal=_text(message.get("refusal")) or None,
            finish=choice.get("finish_reason"),
            tokens_in=int(usage.get("prompt_tokens") or 0),
            tokens_out=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
        )
    except (LookupError, TypeError, AttributeError, ValueError):
        raise BusyError("an answer that is no chat completion", lost=True) from None


def _text(content: Any) -> str:
    """Text of a message, whole or in parts, fit for UTF-8 whatever the model put together."""
    parts = content if isinstance(content, list) else [content]
    said = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(str(part) for part in said if part).encode("utf-8", "replace").decode("utf-8")


def _retry_after(headers: Any) -> float | None:
    """Seconds the server asks to wait, in milliseconds, seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers.get(name, "")) * unit)
        except ValueError:
            continue
    return _until(headers.get("retry-after"))


def _until(date: str | None) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date or "").timestamp() - time.time())
    except ValueError:
        return None


def _pause(headers: Any) -> float:
    """Seconds until the rate limit allows another request, according to the headers of a reply; 0 if it does."""
    waits = [0.0]
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}") == "0":
            reset = _DURATION.findall(headers.get(f"x-ratelimit-reset-{what}", ""))
            waits.append(sum(float(count) * _SECONDS[unit] for count, unit in reset))
    return max(waits)
