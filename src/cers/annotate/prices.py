"""What a call costs: a price table that users can edit, and estimates of tokens that no server has counted yet."""

import math
from importlib import resources
from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from cers.config import Section
from cers.errors import CersError, nearest

_CHARACTERS_PER_TOKEN = 4.0  # English text; fewer means more tokens


class ImageTokens(Section):
    """Tokens of a picture: `base` + `tile` per 512 px square, or `factor` per `patch` px square up to `limit`."""

    base: int = Field(0, ge=0)
    tile: int = Field(0, ge=0)
    patch: int | None = Field(None, ge=1)
    factor: float = Field(1.0, gt=0)
    limit: int = Field(16384, ge=1)

    def count(self, height: int, width: int) -> int:
        """Tokens of a picture of `height` x `width` pixels."""
        if self.patch:
            return math.ceil(
                self.factor * min(self.limit, math.ceil(height / self.patch) * math.ceil(width / self.patch))
            )
        scale = min(1.0, 2048 / max(height, width))
        scale = min(scale, 768 / min(height, width))
        return self.base + self.tile * math.ceil(height * scale / 512) * math.ceil(width * scale / 512)


class Price(Section):
    """US dollars per million tokens; `batch` is the factor for batches, `seconds` the typical time of an answer."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    batch: float = Field(1.0, ge=0, le=1)
    seconds: float = Field(6.0, ge=0)
    image: ImageTokens = ImageTokens(patch=28)

    def cost(self, tokens_in: int, tokens_out: int, *, batch: bool = False) -> float:
        """US dollars for so many tokens."""
        return (tokens_in * self.input + tokens_out * self.output) * (self.batch if batch else 1.0) / 1e6


FREE = Price(input=0, output=0)


def load_prices(path: Path | None = None) -> dict[str, Price]:
    """The price of each model in the table at `path`, or in the one shipped.

    Raises:
        CersError: unreadable, or not such a table.
    """
    source = path or resources.files("cers.annotate") / "prices.yaml"
    try:
        return TypeAdapter(dict[str, Price]).validate_python(yaml.safe_load(source.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        mistake = error.errors()[0]
        raise CersError(f"{source}: {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CersError(f"{source}: cannot be read as price table: {' '.join(str(error).split())}") from None


def price_of(model: str, prices: dict[str, Price], *, local: bool) -> Price | None:
    """The price of `model`, also under a dated name; nothing on this machine; None where the table does not know it."""
    known = [name for name in prices if model == name or model.startswith(f"{name}-20")]
    if known:
        return prices[max(known, key=len)]
    return FREE if local else None


def price_to_pay(model: str, table: Path | None, *, local: bool, bounded: bool) -> Price:
    """The price of `model` by the table at `table`; nothing where it is not known and no cost is `bounded` by it.

    Raises:
        CersError: unreadable table, or no price where the cost is bounded.
    """
    prices = load_prices(table)
    price = price_of(model, prices, local=local)
    if price is None and bounded:
        hint = nearest(model, prices)
        raise CersError(
            f"no price for model '{model}', so no cost can be kept to; {hint} Or add it to a table: prices=FILE"
        )
    return price or FREE


def text_tokens(text: str) -> int:
    """A rough count of the tokens of `text`; beyond ASCII a character may be one, or more."""
    plain = sum(map(str.isascii, text))
    return math.ceil(plain / _CHARACTERS_PER_TOKEN) + len(text) - plain
