"""Record the code that computed an artifact: a hash per source file that its stage imports.

Code is not part of the key, because most code changes change no result. It is recorded, so that the log can say when a
cached artifact was computed by other code.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

Code = dict[str, str]
"""Hashes of source files, by path relative to the folder of the top-level package."""


def code_of(modules: Iterable[str]) -> Code:
    """Return the files of these modules and of everything that they import from their own top-level packages.

    Imports inside functions count, too. Modules without a source file, such as `__main__`, are left out.
    """
    code: Code = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if (file := _file(module)) is None or (name := _name(module, file)) in code:
            continue
        code[name], imported = _read(file, name)
        pending += imported
    return dict(sorted(code.items()))


def changed(before: Code, now: Code) -> list[str]:
    """Return the files that differ, were deleted or are new."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def remember(package: str) -> None:
    """Read all source files of a package now, so that later edits do not enter the record.

    A process runs the code that it has imported, even if the files change afterwards.
    """
    for folder in _folders(package):
        for file in folder.rglob("*.py"):
            _text(file)


@cache
def _text(file: Path) -> bytes:
    return file.read_bytes()


def _folders(package: str) -> list[Path]:
    """Return the folders of a top-level package; empty for a single-file module."""
    spec = _spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name) if name != "__main__" else None
    except ValueError:  # a module created at run time
        return None


def _file(module: str) -> Path | None:
    """Find a module's source file without importing it."""
    top, *submodules = module.split(".")
    if not submodules and not _folders(top):
        spec = _spec(top)
        origin = spec.origin if spec else None
        return Path(origin) if origin and origin.endswith(".py") else None
    for folder in _folders(top):
        path = folder.joinpath(*submodules)
        for file in (path.with_suffix(".py"), path / "__init__.py") if submodules else (path / "__init__.py",):
            if file.is_file():
                return file
    return None


def _name(module: str, file: Path) -> str:
    """Return the path relative to the folder of the top-level package: `selfcontrast/store/code.py`."""
    depth = module.count(".") + (2 if file.name == "__init__.py" else 1)
    return "/".join(file.parts[-depth:])


@cache
def _read(file: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a file's text, and the modules of its own package that it imports."""
    text = _text(file)
    package = name.split("/")[:-1]
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # someone is editing the file; the running code was imported earlier
        return _hash(text), ()
    names = {name for name in _imports(tree, package) if package and name.split(".")[0] == package[0]}
    return _hash(text), tuple(sorted(names))


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the names of the modules that a module imports; for `from a import b`, a.b if it is a module, else a.

    Imports under TYPE_CHECKING are left out, since they never run. A `Lazy` module counts as imported.
    """
    pending = [tree]
    while pending:
        node = pending.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pending += node.orelse
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                parents = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*parents, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield f"{base}.{alias.name}" if _file(f"{base}.{alias.name}") else base
            case ast.Call(func=ast.Name(id="Lazy"), args=[ast.Constant(value=str(name))]):
                yield name
        pending += ast.iter_child_nodes(node)
