"""Numbers and tables as people read them."""

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """`value` with a fixed number of digits, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval, or a dash where there is none."""
    return "–" if number(low) == "–" else f"[{number(low)}, {number(high)}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of `rows`, the first of which is its head."""
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def signed(value: float | None, digits: int = 3) -> str:
    """`value` with its sign, or a dash where there is none."""
    return "–" if number(value, digits) == "–" else f"{value:+z.{digits}f}".replace("-", "−")


def percent(share: float, digits: int = 0) -> str:
    """A share of 1 in percent."""
    return f"{100 * share:.{digits}f} %"


def counted(n: int, noun: str) -> str:
    """So many of what `noun` names in the singular: 1 pixel, 1,234 pixels."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def count(value: float | None) -> str:
    """A number of things, short: 950, 12.8k, 34.48M."""
    if value is None:
        return "–"
    for size, unit, digits in ((1e6, "M", 2), (1e4, "k", 1)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.{digits}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """A time, in the unit that suits it."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 99.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(size: float | None) -> str:
    """Bytes in MiB or GiB."""
    if size is None:
        return "–"
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def latex(rows: Sequence[Sequence[str]], caption: str = "", notes: Sequence[str] = ()) -> str:
    """A LaTeX table (booktabs, graphicx) of `rows`, the first of which is its head."""
    # Braces: after a line's end `[` and `*` would be options of it.
    head, *body = ["{}" + " & ".join(map(_escaped, row)) + r" \\" for row in rows]
    columns = "l" * len(rows[0])
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}", r"\resizebox{\textwidth}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    lines += [r"\end{tabular}}", *(rf"\par\footnotesize {_escaped(note)}" for note in notes), r"\end{table}"]
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$"}
_LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "Δ": r"$\Delta$", "−": "$-$", "†": r"$\dagger$", "×": r"$\times$"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {"<": "$<$", ">": "$>$", "…": r"\dots{}"}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
