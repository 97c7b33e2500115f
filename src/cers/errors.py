"""The one exception that users are meant to see."""

from collections.abc import Iterable
from difflib import get_close_matches


class CersError(Exception):
    """A mistake the user can mend: one line saying what, where, the nearest valid value and what to run next.

    The command line prints it without a traceback and exits with status 2.
    """


class Interrupted(BaseException):
    """Ctrl-C after which everything is saved; the message says how to go on.

    Like KeyboardInterrupt it passes `except Exception`. The command line prints it and exits with status 130.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest of `known`, or all of them when none is close."""
    options = sorted(set(known))
    close = get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(options[:12]) + (" …" if len(options) > 12 else "")
    return f"choose from: {shown}" if options else "none is known"
