"""Print tables and pages of the store on the terminal. Their texts come from configs and are never read as markup."""

import os
import re
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from selfcontrast.errors import UserError
from selfcontrast.store.artifact import MANIFEST
from selfcontrast.store.catalog import ABANDONED, IN_PROGRESS, PUBLISHED, Catalog, Entry
from selfcontrast.store.difference import differences

SHOWN_KEY = 8  # digits of a key that are printed; enough to be unique in any real store
SHOWN_VALUE = 24  # characters of a setting that are printed


def print_entries(catalog: Catalog, entries: list[Entry]) -> None:
    """Print one row per entry, and the total (`ls`)."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    for head, justify in (("stage", "left"), ("key", "left"), ("size", "right"), ("age", "right"), ("used by", "left")):
        table.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("what differs within its stage", overflow="fold")
    for entry in entries:
        cells = (entry.stage, entry.key[:SHOWN_KEY], size(entry.bytes), age(entry.created), users(catalog, entry))
        table.add_row(*map(Text, cells), Text(_about(catalog, entry)))
    console = _console()
    console.print(table)
    console.print(
        f"\n{len(entries)} artifacts, {size(sum(e.bytes for e in entries))}, in {catalog.root}", soft_wrap=True
    )


def print_entry(catalog: Catalog, entry: Entry) -> None:
    """Print an entry's manifest, lineage and users (`show`)."""
    console = _console()
    console.print(Text(entry.name, "bold"))
    facts = {
        "folder": str(entry.folder),
        "state": entry.state,
        "size": size(entry.bytes),
        "created": f"{entry.manifest.get('created', '?')} ({age(entry.created)} ago)",
        "took": f"{entry.manifest.get('seconds', '?')} s" + (", resumed" if entry.manifest.get("resumed") else ""),
        "commit": entry.manifest.get("provenance", {}).get("commit", "?"),
    }
    for name, value in facts.items():
        console.print(Text(f"  {name:<9}{value}"), soft_wrap=True)
    _section(console, "key made of", entry.settings)
    _section(console, "summary", {k: str(v) for k, v in entry.manifest.get("summary", {}).items()})
    _section(console, "files", {name: size(_bytes(entry.folder / name)) for name in entry.manifest.get("files", {})})
    console.print(_lineage("made from", catalog, entry, up=True))
    console.print(_lineage("into", catalog, entry, up=False))
    runs = Tree(Text("used by runs", "bold"))
    for run in entry.runs:
        runs.add(Text(str(run)))
    console.print(runs if entry.runs else Text("used by no run"), soft_wrap=True)


def print_differences(catalog: Catalog, first: Entry, second: Entry) -> None:
    """Print how two artifacts differ (`diff`). Raises `UserError` if they are of different stages."""
    if first.stage != second.stage:
        raise UserError(
            f"{first.name} and {second.name}: cannot compare artifacts of different stages. Name two of one stage."
        )
    console, where = _console(), ""
    for difference in differences(catalog, first, second):
        if difference.where != where:
            where = difference.where
            console.print(Text(where, "bold"))
        before, after = map(_short, difference.values)
        console.print(Text(f"  {difference.what}: {before} → {after}"), soft_wrap=True)
    if not where:
        console.print("no difference: the same settings, inputs and code")


def users(catalog: Catalog, entry: Entry) -> str:
    """Return the users in words: "2 runs, 1 artifact"; empty if there are none."""
    counts = ((len(entry.runs), "run"), (len(catalog.made_from(entry)), "artifact"))
    return ", ".join(f"{n} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n)


def size(count: float) -> str:
    """Return a number of bytes in words: "15.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age(since: float) -> str:
    """Return the time since `since` in the largest unit that fits: "3 d"."""
    seconds = max(0.0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _about(catalog: Catalog, entry: Entry) -> str:
    if entry.state in (IN_PROGRESS, ABANDONED):
        return f"{entry.state}: {entry.owner}" if entry.owner else entry.state
    if entry.state != PUBLISHED:
        return f"its {MANIFEST} is damaged"
    return " ".join(
        _short(value) if name.startswith("inputs.") else f"{name}={_short(value)}"
        for name, value in catalog.differing_settings(entry).items()
    )


def _short(value: str) -> str:
    """Return a value on one line, with keys and fingerprints cut short."""
    one_line = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{12,}", r"\1", " ".join(value.split()))
    return one_line if len(one_line) <= SHOWN_VALUE else one_line[: SHOWN_VALUE - 1] + "…"


def _section(console: Console, title: str, values: dict[str, str]) -> None:
    if values:
        console.print(Text(title, "bold"))
    for name, value in values.items():
        console.print(Text(f"  {name} = {' '.join(value.split())}"), soft_wrap=True)


def _lineage(title: str, catalog: Catalog, entry: Entry, up: bool) -> Tree:
    """Return the tree of all artifacts that an entry was made from (`up`), or that were made from the entry."""
    tree = Tree(Text(title if _next(catalog, entry, up) else f"{title} nothing", "bold"))
    _grow(tree, catalog, entry, up, set())
    return tree


def _grow(tree: Tree, catalog: Catalog, entry: Entry, up: bool, expanded: set[str]) -> None:
    for label, other in _next(catalog, entry, up):
        again = other is not None and other.key in expanded and bool(_next(catalog, other, up))
        branch = tree.add(Text(f"{label} …" if again else label))  # expanded only once
        if other and not again:
            expanded.add(other.key)
            _grow(branch, catalog, other, up, expanded)


def _next(catalog: Catalog, entry: Entry, up: bool) -> list[tuple[str, Entry | None]]:
    if not up:
        return [(f"{e.stage}/{e.key[:SHOWN_KEY]}", e) for e in catalog.made_from(entry)]
    inputs = catalog.inputs_of(entry)
    return [
        (f"{role}: {e.stage}/{e.key[:SHOWN_KEY]}" if e else f"{role}: {entry.inputs[role][:SHOWN_KEY]} (gone)", e)
        for role, e in inputs.items()
    ]


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _console() -> Console:
    """Return a console as wide as the terminal; in a file or a pipe, wide enough for a row to stay on one line."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:  # rich's is_terminal is also true under FORCE_COLOR
        console.width = 200
    return console
