"""Format a sweep's table for pasting: Markdown for an issue or a README, LaTeX (booktabs) for a paper."""

import re
from collections.abc import Iterable, Sequence

MARKDOWN = re.compile(r"([\\\\|`*_<>])")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with escaped cells."""
    lines = [[MARKDOWN.sub(r"\\\1", str(cell)) for cell in row] for row in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a LaTeX table with escaped cells. It needs `\\usepackage{booktabs}`."""
    head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in (heads, *rows))
    lines = [rf"\begin{{tabular}}{{{'l' * len(heads)}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def _latex(cell: object) -> str:
    return "".join(LATEX.get(character, character) for character in str(cell))
