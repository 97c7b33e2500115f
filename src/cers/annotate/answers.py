"""What a server's reply comes to: a rationale, a refusal, or nothing that can be used."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cers.cot.rationale import MalformedRationale, Rationale, RefusalError, parse_rationale
from cers.cot.records import Outcome, State

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class Answer(BaseModel):
    """The shape that servers with structured output are asked for."""

    model_config = ConfigDict(extra="forbid", title="rationale")

    texture: str = Field(description="brightness, homogeneity and inner structure")
    boundary: str = Field(description="shape and sharpness of the border, and what makes it hard to draw")
    context: str = Field(description="neighbouring structures and look-alikes")
    summary: str = Field(description="one sentence")


@cache
def json_schema() -> dict[str, Any]:
    """The value of `response_format` that asks for an `Answer`."""
    schema = Answer.model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "rationale", "strict": True, "schema": schema}}


@dataclass(frozen=True)
class Reply:
    """An answer of the server: its `text` or `refusal`, why it ended, tokens as the server counted them, seconds."""

    text: str
    refusal: str | None
    finish: str | None
    tokens_in: int
    tokens_out: int
    seconds: float

    @property
    def counted(self) -> bool:
        """Whether the server said how many tokens it took."""
        return self.tokens_in > 0


@dataclass(frozen=True)
class Reading:
    """What a reply says: `ok` with a rationale, or `refused` or `invalid` with a reason."""

    state: State
    rationale: Rationale | None = None
    reason: str | None = None


def read_reply(reply: Reply) -> Reading:
    """The four aspects in `reply`, as JSON or under headings, or why there are none."""
    if reply.refusal:
        return Reading("refused", reason=_line(reply.refusal))
    if reply.finish == "content_filter":
        return Reading("refused", reason="stopped by the server's content filter")
    try:
        return Reading("ok", parse_rationale(_THOUGHTS.sub("", reply.text)))
    except RefusalError as error:
        return Reading("refused", reason=str(error))
    except MalformedRationale as error:
        cut = f"cut off after {reply.tokens_out} tokens (see max_tokens): " if reply.finish == "length" else ""
        return Reading("invalid", reason=f"{cut}{error}")


def outcome_of(reply: Reply, reading: Reading) -> Outcome:
    """What is written down of a `reply` that says `reading`."""
    return Outcome(reading.state, reply.text, reading.rationale, reading.reason)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
