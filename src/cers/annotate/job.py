"""What is to be annotated: which texts of which cases, and the request for each.

Every case is asked about without its mask (role `unlabelled`), and only cases of the labelled share also with it (role
`labelled`). The mask file of any other case is never opened, so that no pixel of it can be in a request.
"""

import base64
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cers.annotate.pictures import draw, encode, sent_size
from cers.annotate.prices import Price, text_tokens
from cers.annotate.prompts import Prompt, load_prompts
from cers.annotate.redact import redact_image, redact_report
from cers.annotate.settings import AnnotateConfig
from cers.cot.records import ROLES, Key, Role, Task
from cers.data.case import Case
from cers.data.images import image_size, read_image, read_mask_at
from cers.errors import CersError

Message = dict[str, Any]
_REPLY_TOKENS = 190  # what 128 words under four keys come to
_NO_LESION = "negative"


@dataclass(frozen=True)
class Job:
    """Cases by id, the ids whose mask may be shown, and how the model is asked. Make one with `Job.of`."""

    cases: Mapping[str, Case]
    labelled: frozenset[str]
    config: AnnotateConfig
    prompts: Mapping[Role, Prompt]

    @classmethod
    def of(cls, cases: Sequence[Case], labelled_ids: Collection[str], config: AnnotateConfig) -> Self:
        """The job over `cases`, with the masks of `labelled_ids` shown.

        Raises:
            CersError: a labelled id that is no case or has no mask, or a broken prompt.
        """
        known = {case.id: case for case in cases}
        strangers = sorted(set(labelled_ids) - set(known))
        if strangers:
            raise CersError(f"{len(strangers)} labelled ids are no cases, e.g. '{strangers[0]}'; is it another split?")
        bare = sorted(id for id in labelled_ids if not known[id].annotated)
        if bare:
            raise CersError(f"{len(bare)} labelled cases have no mask, e.g. '{bare[0]}'; make the split anew")
        return cls(known, frozenset(labelled_ids), config, load_prompts(config))

    def wanted(self, roles: Collection[Role] = ROLES) -> list[Key]:
        """The texts wanted, mask-free ones first."""
        texts: list[tuple[str, Role]] = (
            [(id, "unlabelled") for id in sorted(self.cases)] if "unlabelled" in roles else []
        )
        texts += [(id, "labelled") for id in sorted(self.labelled)] if "labelled" in roles else []
        return [Key(id, role, self.prompts[role].version, self.config.model) for id, role in texts]

    def tasks(
        self, roles: Collection[Role] = ROLES, progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[Task], list[str]]:
        """The texts wanted with hashes of their inputs, and one line for each case whose files cannot be read."""
        tasks: list[Task] = []
        problems: list[str] = []
        keys = self.wanted(roles)
        with ThreadPoolExecutor(4) as pool:
            for done, found in enumerate(pool.map(self._task, keys), start=1):
                tasks.append(found) if isinstance(found, Task) else problems.append(found)
                if progress is not None:
                    progress(done, len(keys))
        return tasks, problems

    def request(self, key: Key) -> list[Message]:
        """The messages that ask for `key`: its prompt, and its picture as a data URL. Safe to call from threads.

        Raises:
            CersError: the image or mask cannot be read, or their sizes differ.
        """
        config, case = self.config, self.cases[key.image]
        image = read_image(case.image)
        if config.redact:
            image = redact_image(image)
        mask = self._mask(case, image.shape[:2]) if key.role == "labelled" else None
        picture = draw(image, mask, max_side=config.max_side, overlay=config.overlay, target=config.target)
        data = base64.b64encode(encode(picture, config.image_format)).decode("ascii")
        text = self.prompts[key.role].render(config, self._report(case), marked=mask is not None and bool(mask.any()))
        content = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": f"data:image/{config.image_format};base64,{data}"}},
        ]
        return [{"role": "user", "content": content}]

    def tokens(self, key: Key, price: Price | None) -> tuple[int, int]:
        """About how many tokens `key` sends and gets back; reads no more than the header of the image.

        Raises:
            CersError: the image cannot be read.
        """
        case = self.cases[key.image]
        marked = key.role == "labelled" and case.mask is not None
        height, width = sent_size(*image_size(case.image), self.config.max_side, legend=marked)
        text = self.prompts[key.role].render(self.config, self._report(case), marked=marked)
        pictured = (price or Price(input=0, output=0)).image.count(height, width)
        return pictured + text_tokens(text) + 10, min(_REPLY_TOKENS, self.config.max_tokens)

    def _report(self, case: Case) -> str | None:
        return redact_report(case.report) if case.report and self.config.redact else case.report

    def _mask(self, case: Case, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The mask at the image's resolution; None where the lesion is known to be absent."""
        if case.id not in self.labelled:
            raise CersError(f"{case.id} is not labelled: its mask is not to be shown")
        if case.mask is None:
            return None
        return read_mask_at(case.mask, shape, self.config.mask)

    def _task(self, key: Key) -> Task | str:
        case = self.cases[key.image]
        try:
            seen = None
            if key.role == "labelled":
                seen = _hash(case.mask.read_bytes()) if case.mask else _NO_LESION
            report = _hash(case.report.encode("utf-8")) if case.report else None
            return Task(key, _hash(case.image.read_bytes()), seen, report)
        except OSError as error:
            return f"{case.id}: no {key.role} rationale: {error.filename}: {error.strerror}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def most_dollars(job: Job, key: Key, price: Price, *, batch: bool = False) -> float:
    """The most that asking for `key` can cost: a longest answer, and half as much input again as is estimated."""
    tokens_in, _ = job.tokens(key, price)
    return price.cost(3 * tokens_in // 2 + 400, job.config.max_tokens, batch=batch)
