"""The code that an artifact is made by: the source files that its stage imports, each by the hash of its text.

It is no part of the key, because most changes of code change no result. It is recorded, so that a recalled artifact
can be said to be made by other code.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
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
        found[name], imported = _read(file, name)
        waiting += imported
    return dict(sorted(found.items()))


def changed(before: Code, now: Code) -> list[str]:
    """The files that differ, are gone or are new."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def remember(package: str) -> None:
    """Reads all source files of a package: what is recorded from now on is what they are now.

    A process runs the code that it has imported, whatever becomes of the files.
    """
    for folder in _folders(package):
        for file in folder.rglob("*.py"):
            _text(file)


@cache
def _text(file: Path) -> bytes:
    return file.read_bytes()


def _folders(package: str) -> list[Path]:
    """Where a top-level package's modules are; none for a module without a folder."""
    spec = _spec(package)
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name) if name != "__main__" else None
    except ValueError:  # a module that was made by hand
        return None


def _file(module: str) -> Path | None:
    """Where a module's source is. Nothing is imported for that."""
    top, *below = module.split(".")
    if not below and not _folders(top):
        spec = _spec(top)
        origin = spec.origin if spec else None
        return Path(origin) if origin and origin.endswith(".py") else None
    for folder in _folders(top):
        place = folder.joinpath(*below)
        for file in (place.with_suffix(".py"), place / "__init__.py") if below else (place / "__init__.py",):
            if file.is_file():
                return file
    return None


def _name(module: str, file: Path) -> str:
    """`selfcontrast/store/code.py`, from the folder that holds the top-level package."""
    depth = module.count(".") + (2 if file.name == "__init__.py" else 1)
    return "/".join(file.parts[-depth:])


@cache
def _read(file: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """The hash of a file's text, and the modules of its package that it imports."""
    text = _text(file)
    package = name.split("/")[:-1]
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # saved half-way; what runs was imported before
        return _hash(text), ()
    names = {found for found in _imports(tree, package) if package and found.split(".")[0] == package[0]}
    return _hash(text), tuple(sorted(names))


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """All names that a module imports as modules; of `from a import b` a.b if that is a module, else a.

    Imports for the type checker alone are left out, since they never run. A `Lazy` module is imported.
    """
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                waiting += node.orelse
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield f"{base}.{alias.name}" if _file(f"{base}.{alias.name}") else base
            case ast.Call(func=ast.Name(id="Lazy"), args=[ast.Constant(value=str(name))]):
                yield name
        waiting += ast.iter_child_nodes(node)
