"""Write the API reference's pages: the public names first, then a page per package, from docstrings by mkdocstrings."""

import ast
from pathlib import Path

INDEX = "reference/index.md"
MODULES = "reference/modules.md"
PUBLIC = "reference/public.md"
PACKAGE = "selfcontrast"


def public_names(package: Path) -> dict[str, list[str]]:
    """Return the names that `__init__.py` exports, by the module that defines them."""
    tree = ast.parse((package / "__init__.py").read_text())
    names: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            names.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    return names


def modules(package: Path) -> list[str]:
    """Return the dotted names of all modules below the package, without those that only mark a folder."""
    files = sorted(package.rglob("*.py"))
    return [_dotted(file, package) for file in files if file.stem != "__main__" and not _is_marker(file)]


def _dotted(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_marker(file: Path) -> bool:
    """Tell whether a file is an `__init__.py` with nothing but a docstring."""
    return file.stem == "__init__" and len(ast.parse(file.read_text()).body) <= 1


def summary(package: Path, folder: str) -> str:
    """Return the first line of a package's docstring."""
    text = ast.get_docstring(ast.parse((package / folder / "__init__.py").read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def page_of(module: str, package: Path) -> str:
    """Return the page, below the site's root, on which a module is documented."""
    parts = module.split(".")
    top = parts[1] if len(parts) > 1 else ""
    return f"reference/{top}.md" if (package / top).is_dir() and top else MODULES


def reference_pages(package: Path) -> dict[str, str]:
    """Return the Markdown of every page of the reference, by its path below the site's root."""
    public = public_names(package)
    by_page: dict[str, list[str]] = {}
    for module in modules(package):
        if module != PACKAGE:
            by_page.setdefault(page_of(module, package), []).append(module)
    pages = {page: _page(page, page_modules, public, package) for page, page_modules in sorted(by_page.items())}
    return {INDEX: _index(pages, package), PUBLIC: _public(public), **pages}


def _index(pages: dict[str, str], package: Path) -> str:
    rows = [
        f"| [`{PACKAGE}.{Path(page).stem}`]({Path(page).name}) | {summary(package, Path(page).stem)} |"
        for page in pages
        if page != MODULES
    ]
    head = [
        "# API reference",
        "",
        "[The public API](public.md) is what `from selfcontrast import …` gives.",
        "[From Python](../api.md) has examples.",
        "Everything else may change between releases. This reference is generated from docstrings.",
        "",
        "| package | |",
        "|---|---|",
    ]
    return "\n".join(
        [
            *head,
            *rows,
            f"| [modules at the top level]({Path(MODULES).name}) | the pipeline, the config, the losses, the results |",
            "",
        ]
    )


def _public(public: dict[str, list[str]]) -> str:
    parts = ["# Public API", "", "Import these names from `selfcontrast`. A name is loaded when it is first used.", ""]
    for module, names in public.items():
        for name in names:
            parts += [*_block(f"{module}.{name}", 2), "      show_root_full_path: false", ""]
    return "\n".join(parts)


def _page(page: str, page_modules: list[str], public: dict[str, list[str]], package: Path) -> str:
    top = Path(page).stem
    title = "Modules at the top level" if page == MODULES else f"{PACKAGE}.{top}"
    parts = [f"# {title}", ""]
    if page != MODULES:
        parts += [summary(package, top), ""]
    for module in page_modules:
        elsewhere = public.get(module, [])
        if elsewhere:
            links = ", ".join(f"[`{name}`][{module}.{name}]" for name in elsewhere)
            parts += [f"On the page of the public API: {links} of `{module}`.", ""]
        parts += [*_block(module, 2, without=elsewhere), ""]
    return "\n".join(parts)


def _block(identifier: str, level: int, without: list[str] | tuple[()] = ()) -> list[str]:
    filters = ['"!^_"', *(f'"!^{name}$"' for name in without)]
    options = [f"heading_level: {level}", f"filters: [{', '.join(filters)}]"]
    return [f"::: {identifier}", "    options:", *(f"      {option}" for option in options)]
