"""The code that an artifact is made by: the source files that its stage imports, each by the hash of its text.

It is no part of the key, because most changes of code change no result. It is recorded, so that a recalled artifact
can be said to be made by other code.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Code = dict[str, str]
"""Per source file, by its path below the folder of the top-level package, a hash."""


def code_of(modules: Iterable[str]) -> Code:
    """The files of these modules, and of all that they import inside their own top-level packages.

    Imports inside of functions count too. Modules without a source file, such as `__main__`, are left out.
    """
    found: Code = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if (file := _file(module)) is None or (name := _name(module, file)) in found:
            continue
        found[name], imported = _read(file, name, file.stat().st_mtime_ns)
        waiting += imported
    return dict(sorted(found.items()))


def changed(before: Code, now: Code) -> list[str]:
    """The files that differ, are gone or are new."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _file(module: str) -> Path | None:
    """Where a module's source is. Nothing is imported for that."""
    top, *below = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # `__main__`
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    if not below:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*below)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _name(module: str, file: Path) -> str:
    """`selfcontrast/store/code.py`, from the folder that holds the top-level package."""
    depth = module.count(".") + (2 if file.name == "__init__.py" else 1)
    return "/".join(file.parts[-depth:])


@cache
def _read(file: Path, name: str, changed_at: int) -> tuple[str, tuple[str, ...]]:
    """The hash of a file's text, and the modules of its package that it imports."""
    text = file.read_bytes()
    package = name.split("/")[:-1]
    names = {found for found in _imports(ast.parse(text), package) if package and found.split(".")[0] == package[0]}
    return hashlib.sha256(text).hexdigest()[:16], tuple(sorted(names))


def _imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """All names that a module may import as modules; of `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
