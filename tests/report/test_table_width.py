"""Check that tables fit a page of 1,000 pixels, by the widest unbreakable text of each column. No browser is needed."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfcontrast.report.page import write_report
from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]
MAX_COLUMNS = 10
# The page's content is 944 px wide at a window of 1,000 px. A digit of its tables takes 8 px (13.8 px sans-serif), so
# 118 digits fit. A gap between two columns takes 14 px and counts as 2.
MAX_CHARACTERS = 118
MIN_TEXT_WIDTH = 10  # minimum width of a `td.w` cell, in characters


@dataclass
class PageTable:
    """A table of a page: its cells, and whether it scrolls or becomes cards on a phone."""

    scrolls: bool
    cards: bool
    rows: list[list[tuple[str, dict[str, str]]]] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return max(map(len, self.rows))

    @property
    def min_width(self) -> int:
        """Return the minimum width of the table in characters, with every cell wrapped where it can be."""
        widths = [0] * self.columns
        for row in self.rows:
            for index, (text, attributes) in enumerate(row):
                pieces = re.split(r"[ \n]", text)
                wraps = "w" in attributes.get("class", "").split()
                longest = MIN_TEXT_WIDTH if wraps else max(map(len, pieces))
                widths[index] = max(widths[index], longest)
        return sum(widths) + 2 * self.columns


class TableParser(HTMLParser):
    """Collect the tables of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self.divs: list[set[str]] = []
        self.cell: tuple[str, dict[str, str]] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "div":
            self.divs.append(set(attributes.get("class", "").split()))
        elif tag == "table":
            classes = self.divs[-1] if self.divs else set()
            self.tables.append(PageTable("scroll" in classes, "cards" in classes))
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.cell = "", attributes

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self.divs.pop()
        elif tag in ("td", "th") and self.cell:
            self.tables[-1].rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.cell = self.cell[0] + data, self.cell[1]


def sweep_of_k(make: Make, write: Write, folder: Path) -> None:
    for k in (1, 4, 8, 16):
        for seed in (1, 2, 3):
            write(folder / f"multirun-{k}-{seed}", make(k=k, seed=seed, policy=0.6 + seed / 100, tokens=1_234_567))


def sweep_of_methods(make: Make, write: Write, folder: Path) -> None:
    """Write a sweep with long names and different numbers of prompts, so that every column is shown."""
    for index, method in enumerate(("self_contrast_with_a_long_name", "least-consistent", "rft")):
        for seed in (1, 2, 3)[: index + 1]:
            result = make(seed=seed, policy=0.6 + seed / 100, config={"label": method}, tokens=1_234_567)
            stages = [
                {**stage, "summary": {**stage["summary"], "prompts": 1000 + index}}
                if stage["name"] == "align"
                else stage
                for stage in result.stages
            ]
            write(folder / f"2026-11-28_12-30-00-{method}-{seed}", replace(result, stages=stages))


@pytest.fixture(params=["job", "long names", "K", "methods"])
def html(request: pytest.FixtureRequest, make: Make, write: Write, tmp_path: Path) -> str:
    if request.param == "job":
        write_report(make(), tmp_path)
    elif request.param == "long names":
        written = json.dumps(asdict(make())).replace("Self-Contrast", "a_method_with_a_rather_long_name")
        write_report(Result(**json.loads(written.replace("T=0.7", "temperature=0.7, top_p=0.95"))), tmp_path)
    else:
        {"K": sweep_of_k, "methods": sweep_of_methods}[request.param](make, write, tmp_path)
        write_sweep(read_sweep([tmp_path]))
    return (tmp_path / "report.html").read_text()


def test_every_table_fits_the_page(html: str) -> None:
    tables = TableParser(html).tables
    assert len(tables) >= 2
    for table in tables:
        heads = [text for text, _ in table.rows[0]]
        assert table.scrolls, heads
        assert table.columns <= MAX_COLUMNS, heads
        assert table.min_width <= MAX_CHARACTERS, (table.min_width, heads)


def test_wide_table_names_its_cells_for_phones(html: str) -> None:
    wide = [table for table in TableParser(html).tables if table.columns > 3 and table.rows[0][0][0] != "stage"]
    assert wide
    for table in wide:
        heads = [text for text, _ in table.rows[0]]
        if "resembles the training prompt" in heads:
            continue
        assert table.cards, heads
        for row in table.rows[1:]:
            assert [attributes["data-head"] for _, attributes in row] == heads


def test_style_lets_cells_wrap(html: str) -> None:
    assert not re.search(r"(?m)^[^{]*\b(td|th)\b[^{]*{[^}]*nowrap", html.partition("</style>")[0])


def test_parser_detects_a_table_that_is_too_wide() -> None:
    cells = "".join(f'<td class="n">0.648\xa0[0.620,\xa00.67{column}]</td>' for column in range(9))
    (table,) = TableParser(f"<div class='x'><table><tr>{cells}</tr></table></div>").tables
    assert not table.scrolls
    assert table.columns == 9
    assert table.min_width == 9 * (20 + 2)
