"""Compare two artifacts: settings, code and, recursively, the inputs that differ."""

from collections.abc import Iterator
from dataclasses import dataclass

from selfcontrast.store.catalog import Catalog, Entry
from selfcontrast.store.code import changed

NOTHING = "—"


@dataclass(frozen=True)
class Difference:
    """One difference between two artifacts.

    Attributes:
        where: the stage, then the roles of the inputs that lead to the difference: "align > negatives > candidates".
        what: the name of a setting, an input or a source file.
        values: its value in each artifact.
    """

    where: str
    what: str
    values: tuple[str, str]


def differences(catalog: Catalog, first: Entry, second: Entry, where: str = "") -> Iterator[Difference]:
    """Yield the differences of two artifacts of one stage, then the differences of inputs that are not the same."""
    where = where or first.stage
    for name in sorted(first.settings.keys() | second.settings.keys()):
        values = (first.settings.get(name, NOTHING), second.settings.get(name, NOTHING))
        if values[0] != values[1]:
            yield Difference(where, name, values)
    codes = (first.manifest.get("code", {}), second.manifest.get("code", {}))
    for file in changed(*codes):
        yield Difference(where, f"code {file}", (codes[0].get(file, NOTHING), codes[1].get(file, NOTHING)))
    inputs = (catalog.inputs_of(first), catalog.inputs_of(second))
    for role in sorted(first.inputs.keys() | second.inputs.keys()):
        keys = (first.inputs.get(role, NOTHING), second.inputs.get(role, NOTHING))
        if keys[0] == keys[1]:
            continue
        yield Difference(where, f"input {role}", keys)
        before, after = inputs[0].get(role), inputs[1].get(role)
        if before and after:
            yield from differences(catalog, before, after, f"{where} > {role}")
