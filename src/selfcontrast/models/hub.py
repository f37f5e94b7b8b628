"""Models of the Hugging Face hub: the commit that a name stands for, and where its files lie on this machine."""

import logging
import re
from functools import lru_cache
from pathlib import Path

from selfcontrast.errors import UserError

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")  # OWNER/MODEL; old ones have no owner
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # of a model: config, weights, tokenizer
PATIENCE = 10.0  # seconds that the hub has to say which commit it has


@lru_cache(maxsize=64)
def pinned(
    name: str, revision: str | None, setting: str, local_only: bool = False, revision_setting: str = ""
) -> str | None:
    """Return the commit that a model's name and revision stand for, so that a key holds it and it alone is loaded.

    The hub is asked first, and what was downloaded before where the hub cannot be asked. Ask once, before any compute:
    a name without a commit may mean another model an hour later.

    Args:
        name: on the hub; for a folder `revision` is returned.
        setting: of the name, such as "model"; a warning names it where nobody knows the commit.
        local_only: whether the hub must not be asked.
        revision_setting: of the revision, where it is not called so beside a path; `setting` is then the name's whole.
    """
    if not is_on_hub(name) or COMMIT.fullmatch(revision or ""):
        return revision
    if commit := (None if local_only else _asked(name, revision)) or _cached(name, revision):
        return commit
    log.warning(
        "%s=%s: neither the hub nor its cache says which commit this is, so a change there goes unnoticed: "
        "give %s=COMMIT",
        setting if revision_setting else f"{setting}.path",
        name,
        revision_setting or f"{setting}.revision",
    )
    return revision


def local_folder(name: str, revision: str | None) -> Path | None:
    """The folder that a model's files lie in: its own, or its snapshot in the cache; None where it is not here."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    if not is_on_hub(name):
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def downloaded(name: str, revision: str | None, setting: str, local_only: bool = False) -> Path:
    """Return the folder that a model's files lie in, downloaded before where it is a name on the hub.

    Args:
        setting: of the name, such as "model.path".

    Raises:
        UserError: where the files cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, local_files_only=local_only, allow_patterns=FILES)
    except Exception as error:  # the hub's, the network's, or a name that is none
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{setting}={name}: cannot be downloaded ({first}); name a folder") from error
    return Path(found)


def is_on_hub(name: str) -> bool:
    """Whether it is no folder, and has the form of a model's name on the hub."""
    return bool(NAME.fullmatch(name)) and not Path(name).is_dir()


def _asked(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return None
    try:
        return HfApi().model_info(name, revision=revision, timeout=PATIENCE).sha
    except Exception:  # of the hub, the network, or a name that is none: loading it tells which
        return None


def _cached(name: str, revision: str | None) -> str | None:
    folder = local_folder(name, revision)
    return folder.name if folder and COMMIT.fullmatch(folder.name) else None
