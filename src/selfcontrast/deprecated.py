"""Accept old names of settings and classes until 0.3.0: on the command line, in `compose`, in users' YAML, in results.

The old names are in the three tables `RENAMED…`; two keys of results are in `_current_values`. Delete this module, and
the lines that call it, when 0.3.0 is released.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from selfcontrast.errors import UserError
from selfcontrast.files import CONF

UNTIL = "0.3.0"
RENAMED_GROUPS = {"arm": "method"}
RENAMED_CLASSES = {
    "selfcontrast.training.recipe.Recipe": "selfcontrast.training.optim.OptimConfig",
    "selfcontrast.generators.imported.Import": "selfcontrast.generators.importer.Import",
    "selfcontrast.evaluation.judges.reading.Reading": "selfcontrast.evaluation.judges.replies.ReplySettings",
    "selfcontrast.evaluation.benchmarks.judging.Calibration": (
        "selfcontrast.evaluation.benchmarks.judge_quality.Calibration"
    ),
    "selfcontrast.evaluation.benchmarks.judging.Probes": "selfcontrast.evaluation.benchmarks.judge_quality.Probes",
}
RENAMED: tuple[tuple[str, str, str], ...] = (  # pattern of the key's section ("" is the root), old name, new name
    ("", "method", "label"),  # `method=` may also choose the group: see `_chooses`
    ("", "rounds", "iterations"),
    ("", "reference_over_rounds", "reference_over_iterations"),
    ("", "prompts_over_rounds", "prompts_over_iterations"),
    ("", "negatives_over_rounds", "negatives_over_iterations"),
    ("", "share", "fraction"),
    ("", "share_of", "fraction_of"),
    ("sft|trainer", "prompts_per_step", "batch_size"),
    ("sft|trainer", "cutoff", "max_length"),
    ("sft|trainer", "warmup", "warmup_ratio"),
    ("sft|trainer", "clip_norm", "max_grad_norm"),
    ("hardware", "tokens_per_pass", "max_tokens_per_microbatch"),
    ("model", "max_positions", "max_length"),
    (r"model|(.+\.)?(backend|encoder|judge|judges\.\w+|reward_model)", "precision", "dtype"),
    (r"(.+\.)?backend", "rows", "batch_size"),
    (r"(.+\.)?backend", "max_model_len", "max_length"),
    (r".+\.(backend|servers)", "urls", "base_urls"),
    (r".+\.(backend|servers)", "wait", "initial_backoff"),
    (r".+\.(backend|servers)", "key_variable", "api_key_env"),
    (r".+\.(judge|judges\.\w+|lm_eval)", "batch", "batch_size"),
    (r"filter\.selector", "share", "fraction"),
    (r"filter\.selector", "bar", "threshold"),
    ("generator", "max_failed_share", "max_failed_fraction"),
    ("data", "test_share", "test_fraction"),
    ("evaluation|theory", "level", "confidence"),
    ("evaluation", "resamples", "n_bootstrap"),
    ("evaluation", "cap", "max_cost"),
)
RESULT_VALUES = ("comparison", "benchmarks", "published", "against_kl")  # the parts of a result that hold intervals
ARGUMENT = re.compile(
    r"(?P<sign>~|\+{0,2})(?P<params>(?:hydra\.sweeper\.params\.)?)(?P<key>\w[\w.]*)(?P<rest>[@=].*|$)", re.DOTALL
)
TWO_WORDS = re.compile(r"\w\s+\w")
REFERENCE = re.compile(r"\$\{(\.*)(\w[\w.]*)\}")  # the leading dots of a relative reference, and the name
log = logging.getLogger("selfcontrast")
_logged: set[str] = set()


def new_name(key: str) -> str:
    """Return the whole key with its present name."""
    parent, _, last = key.rpartition(".")
    for section, old, new in RENAMED:
        if last == old and re.fullmatch(section, parent):
            return f"{parent}.{new}" if parent else new
    return key


def current_arguments(arguments: Sequence[str]) -> list[str]:
    """Return Hydra's arguments with the present names, and log one line for each old one.

    Raises:
        UserError: if a setting is given by both of its names.
    """
    groups = _options(arguments)
    beside_old_group = any(
        (match := ARGUMENT.fullmatch(argument)) and match["key"] in RENAMED_GROUPS for argument in arguments
    )
    renamed, new_keys, old_keys = [], set(), dict[str, str]()
    for argument in arguments:
        match = ARGUMENT.fullmatch(argument)
        if match is None or (not match["rest"] and match["sign"] != "~"):  # a flag, or the value of one
            renamed.append(argument)
            continue
        key = match["key"]
        new = RENAMED_GROUPS.get(key) or (
            key if _chooses(match["rest"], key, groups, beside_old_group) else new_name(key)
        )
        if new == key:
            new_keys.add(key)
        else:
            old_keys[key] = new
        renamed.append(f"{match['sign']}{match['params']}{new}{match['rest']}")
    for old, new in old_keys.items():
        if new in new_keys:
            raise UserError(f"{old} is the old name of {new}, and both are given. Leave {old} out.")
        _log_once(old, new)
    return renamed


def current_config(config: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """Return a composed config with the present names, and log one line for each old one that a YAML file has.

    Args:
        overrides: overrides of the command line, by present names.

    Raises:
        UserError: if a file uses an old name, and an override sets the new one.
    """
    content = OmegaConf.to_container(config)
    old = dict(_old_names(content, ""))
    if not old:
        return config
    override_keys = {match["key"] for match in map(ARGUMENT.fullmatch, overrides) if match}
    for key, new in old.items():
        if new in override_keys:
            raise UserError(
                f"{key}, in a YAML file, is the old name of {new}, and both are given. Rename it in the file."
            )
        _log_once(key, new)
    current = DictConfig(_renamed(content, ""))
    OmegaConf.set_struct(current, bool(OmegaConf.is_struct(config)))
    return current


def current_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """Rename old keys in the content of a `result.json` that an earlier version may have written."""
    values = {key: _current_values(content[key]) for key in RESULT_VALUES if key in content}
    if "config" in content:
        values["config"] = _renamed(content["config"], "")
    return {**content, **values}


def _current_values(node: Any) -> Any:
    if isinstance(node, list):
        return [_current_values(value) for value in node]
    if not isinstance(node, dict):
        return node
    names = {"surprise": "nll"} | ({"level": "confidence"} if "estimate" in node else {})  # `level` of an interval
    return {names.get(key, key): _current_values(value) for key, value in node.items()}


def _old_names(node: Any, section: str) -> Iterator[tuple[str, str]]:
    """Yield every old name in the config, with its present name."""
    for key, value in _items(node):
        path = f"{section}.{key}" if section else str(key)
        if isinstance(node, dict) and new_name(path) != path:
            yield path, new_name(path)
        if isinstance(value, str):
            if value in RENAMED_CLASSES:
                yield value, RENAMED_CLASSES[value]
            for dots, name in REFERENCE.findall(value):
                if (new := _new_reference(dots, name, path)) != dots + name:
                    yield dots + name, new
        yield from _old_names(value, path)


def _renamed(node: Any, path: str) -> Any:
    """Return the node with present names. A user's value under an old name replaces the default of the new one."""
    if isinstance(node, str):
        return REFERENCE.sub(
            lambda match: f"${{{_new_reference(match[1], match[2], path)}}}", RENAMED_CLASSES.get(node, node)
        )
    if not isinstance(node, dict | list):
        return node
    values = {key: _renamed(value, f"{path}.{key}" if path else str(key)) for key, value in _items(node)}
    if isinstance(node, list):
        return list(values.values())
    paths = {key: f"{path}.{key}" if path else str(key) for key in values}
    names = {key: key if new_name(p) == p else new_name(p).rpartition(".")[2] for key, p in paths.items()}
    kept = {key: value for key, value in values.items() if names[key] == key}
    return kept | {names[key]: value for key, value in values.items() if names[key] != key}


def _new_reference(dots: str, name: str, path: str) -> str:
    """Return a reference with its present name. `path` is the key of the value that holds it."""
    section = path.split(".")[: -len(dots)] if dots else []  # a relative reference starts there
    return (
        dots + name.rpartition(".")[0] + "." * ("." in name) + new_name(".".join([*section, name])).rpartition(".")[2]
    )


def _items(node: Any) -> list[tuple[Any, Any]]:
    """Return the (key, value) pairs of a dict or the (index, value) pairs of a list; [] for anything else."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _chooses(rest: str, key: str, options: dict[str, set[str] | None], beside_old_group: bool) -> bool:
    """Return whether `method=VALUE` chooses options of the group, rather than being the old name of `label`.

    It is the label if VALUE has several words or, beside `arm=`, is no option of the group. Otherwise it is a choice,
    and Hydra refuses unknown options. If these were labels, a typo or a sweep such as `choice(spin,sft)` would train
    the default method under the name of another one.

    Args:
        beside_old_group: whether the arguments also contain `arm=`.
    """
    if key not in options:
        return False
    known = options[key]
    if known is None or rest[:1] == "@":
        return True
    return (
        all(word.strip() in known for word in rest[1:].split(",")) if beside_old_group else not TWO_WORDS.search(rest)
    )


def _options(arguments: Sequence[str]) -> dict[str, set[str] | None]:
    """Return, for each group whose name is also an old key, its options here and in users' folders; None if unknown."""
    text = "\n".join(arguments)
    if "pkg://" in text:
        return dict.fromkeys(RENAMED_GROUPS.values())
    paths = re.findall(r"(?:^--config-dir[=\n]|^-cd[=\n]|file://)([^\n,\]'\"]+)", text, re.M)
    folders = [CONF, *map(Path, paths)]
    groups = RENAMED_GROUPS.values()
    return {group: {file.stem for folder in folders for file in (folder / group).glob("*.yaml")} for group in groups}


def _log_once(old: str, new: str) -> None:
    """Log the new name, once per process."""
    if old not in _logged:
        _logged.add(old)
        log.warning("`%s` is now `%s`; the old name works until %s.", old, new, UNTIL)
