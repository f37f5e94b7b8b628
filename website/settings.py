"""Render every YAML file under `conf/` as one Markdown page: all groups, options, keys, defaults and comments."""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

PAGE = "settings.md"
GLOBAL = "# @package _global_"
CHOICE_ELSEWHERE = re.compile(r"\s*# - (\w+: .*?)(?=\s+#|$)")  # "# - group: VALUE   # comment" in a defaults list
ANYWHERE = "WHERE"  # stands for the place of a group that fits in several, such as a benchmark's judge

INTRO = f"""# All settings

This page is generated from the files in `conf/`. `group=option` on the command line chooses a file, and `key=value`
overrides one key. `python train.py --cfg job` prints the composed config.

`${{…}}` takes the value of another key. `???` means that you must give a value. `{ANYWHERE}` stands for the place of a
group that fits in several places, as in `judge@evaluation.benchmarks.pairwise.judge=openai`. Class names link to the
[API reference](reference/index.md).
"""


@dataclass(frozen=True)
class Setting:
    """One key of a YAML file, with its value and comment as written in the file."""

    key: str
    value: str
    comment: str


@dataclass(frozen=True)
class Option:
    """One file under `conf/`.

    Attributes:
        group: its folder below `conf/`; empty for `conf/config.yaml`.
        comment: the lines at the top of the file.
        settings: all keys in the order of the file, dotted, without the group's own prefix.
    """

    group: str
    name: str
    is_global: bool
    comment: str
    settings: tuple[Setting, ...]


def read_option(conf: Path, file: Path) -> Option:
    """Read one file with its comments.

    Raises:
        ValueError: if it is not a mapping.
    """
    text = file.read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{file} is not a mapping of keys to values. Write `key: value` lines.")
    header = list(takewhile(lambda line: line.startswith("#"), text.splitlines()))
    group = file.parent.relative_to(conf).as_posix()
    return Option(
        group="" if group == "." else group,
        name=file.stem,
        is_global=GLOBAL in header or group == ".",
        comment=_plain(line for line in header if line != GLOBAL),
        settings=tuple(_Reader(text, len(header)).settings(root)) if root else (),
    )


class _Reader:
    """Read the keys of one file in order, each with the comments above, next to and below it."""

    def __init__(self, text: str, header: int) -> None:
        self.text = text
        self.lines = text.splitlines()
        self.read = set(range(header))  # lines whose comment belongs to an earlier key

    def settings(self, node: yaml.MappingNode, prefix: str = "") -> Iterator[Setting]:
        for key, value in node.value:
            name = prefix + key.value
            is_block = isinstance(value, yaml.CollectionNode) and value.value and not value.flow_style
            if not is_block:
                yield Setting(name, self._source(value), self._comments(key, value.end_mark))
            elif isinstance(value, yaml.MappingNode):
                if comment := self._comments(key, key.end_mark):
                    yield Setting(name, "", comment)
                yield from self.settings(value, f"{name}.")
            elif key.value == "defaults":
                for item in value.value:
                    yield from self._choices_above(name, item)
                    yield Setting(name, self._source(item), self._comments(item, item.end_mark))
            else:
                yield Setting(name, "", self._comments(key, key.end_mark))
                for number, item in enumerate(value.value):
                    yield Setting(f"{name}.{number}", self._source(item), self._comments(item, item.end_mark))

    def _source(self, node: yaml.Node) -> str:
        """Return a value as written; of a text of several lines return the first line."""
        written = self.text[node.start_mark.index : node.end_mark.index].strip()
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            return str(node.value).strip().splitlines()[0] + " …"
        return written if isinstance(node, yaml.ScalarNode) else re.sub(r"\s+#.*", "", written)

    def _comments(self, node: yaml.Node, end: yaml.Mark) -> str:
        """Return the comments of the entry that starts with `node` and whose value ends at `end`."""
        first, last, column = node.start_mark.line, end.line, end.column
        while last > first and (last >= len(self.lines) or not self.lines[last][:column].strip()):
            last -= 1  # the mark of a block is at the next token
            column = 0
        above = _plain(self.lines[number] for number in self._above(first))
        return "\n".join(filter(None, [above, self._beside(last, column, node.start_mark.column)]))

    def _choices_above(self, name: str, item: yaml.Node) -> Iterator[Setting]:
        """Yield the choices in the comments above an item of the defaults list, which another file makes."""
        for number in self._above(item.start_mark.line):
            if choice := CHOICE_ELSEWHERE.match(self.lines[number]):
                yield Setting(name, choice[1], self._beside(number, choice.end(1), item.start_mark.column))

    def _above(self, first: int) -> range:
        """Return the numbers of the comment lines directly above a line that belong to no earlier key."""
        above = first
        while above and above - 1 not in self.read and self.lines[above - 1].lstrip().startswith("#"):
            above -= 1
        return range(above, first)

    def _beside(self, number: int, column: int, indent: int) -> str:
        """Return the comment behind `column` of a line, with the lines below that continue it (further right)."""
        line = self.lines[number]
        begin = line.find(" #", max(column - 1, 0)) + 1
        if not begin:
            return ""
        below = takewhile(
            lambda other: other.lstrip().startswith("#") and other.index("#") > indent + 2, self.lines[number + 1 :]
        )
        comment = [line[begin:], *below]
        self.read.update(range(number, number + len(comment)))
        return _plain(comment)


def _plain(comments: Iterable[str]) -> str:
    return "\n".join(line.strip().removeprefix("#").removeprefix(" ") for line in comments)


def read_options(conf: Path) -> list[Option]:
    """Read all files below `conf/`: `config.yaml` first, then group by group."""
    options = [read_option(conf, file) for file in sorted(conf.rglob("*.yaml"))]
    return sorted(options, key=lambda option: (option.group, option.name))


def settings_page(conf: Path) -> str:
    """Return the page's Markdown. Tables are HTML, so that no character of a comment is read as markup."""
    options = read_options(conf)
    chosen = {
        s.value.split(":")[0].split()[-1] for o in options if not o.group for s in o.settings if s.key == "defaults"
    }
    parts, group = [INTRO], None
    for option in options:
        if option.group != group:
            group = option.group
            parts.append(f"## {group or 'config.yaml'}\n")
        if group:
            parts.append(f"### {_choice(option)} {{: #{option.group.replace('/', '-')}-{option.name} }}\n")
        parts.append(_body(option, chosen))
    return "\n".join(parts)


def _choice(option: Option) -> str:
    first = option.group.split("/")[0]
    if option.group == "experiment":
        return f"`+experiment={option.name}`"
    if first == "experiment":
        _, group, experiment = option.group.split("/")
        return f"`+experiment={experiment} {group}={option.name}`"
    if first == "debug":
        return f"`+debug={option.name}`"
    return f"`{option.group}={option.name}`"


def _body(option: Option, chosen: set[str]) -> str:
    top = option.group.split("/")[0]
    if option.is_global:
        prefix = ""
    elif top == "hydra":
        prefix = f"{option.group.replace('/', '.')}."
    else:
        prefix = f"{option.group}." if option.group in chosen else f"{ANYWHERE}."
    out = []
    if option.comment:
        out.append(f'<p class="comment">{_text(option.comment)}</p>')
    rows = []
    for setting in option.settings:
        if setting.key == "_target_":
            out.append(f"<p>Class: {_class(setting.value)}</p>")
            continue
        name, value = prefix + setting.key, setting.value
        if setting.key == "defaults":
            group, _, choice = value.partition(": ")
            is_choice = not option.group and group.isidentifier()
            name, value = (group, choice) if is_choice and choice else ("defaults", value)
        value = _class(value) if name.endswith("._target_") else _code(value)
        rows.append(
            f"<tr><td><code>{html.escape(name)}</code></td><td>{value}</td><td>{_text(setting.comment)}</td></tr>"
        )
    if rows:
        head = "<thead><tr><th>key</th><th>default</th><th>comment</th></tr></thead>"
        out.append(f'<div class="settings"><table>{head}<tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>")
    return "\n\n".join(out) + "\n"


def _class(name: str) -> str:
    if not name.startswith("selfcontrast."):
        return _code(name)
    return f'<autoref identifier="{name}"><code>{name}</code></autoref>'


def _code(value: str) -> str:
    return f"<code>{html.escape(value)}</code>" if value else ""


def _text(comment: str) -> str:
    """Return a comment as HTML: lines flow together, except indented ones; pages and papers become links."""
    lines = ["<br>" + line.strip() if line.startswith("  ") else line for line in html.escape(comment).splitlines()]
    text = re.sub(r" {3,}", "&emsp;", "\n".join(lines))
    text = re.sub(r"docs/(\w+)\.md", r'<a href="\1.html">\1</a>', text)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r'<a href="papers.html">arXiv \1</a>', text)
