"""Models of the Hugging Face hub: the commit that a name stands for, and where its files lie on this machine."""

import logging
import re
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")  # OWNER/MODEL; old ones have no owner
PATIENCE = 10.0  # seconds that the hub has to say which commit it has


@lru_cache(maxsize=64)
def pinned(name: str, revision: str | None, setting: str, local_only: bool = False) -> str | None:
    """Return the commit that a model's name and revision stand for, so that a key holds it and it alone is loaded.

    The hub is asked first, and what was downloaded before where the hub cannot be asked. Ask once, before any compute:
    a name without a commit may mean another model an hour later.

    Args:
        name: on the hub; for a folder `revision` is returned.
        setting: of the name, such as "model"; a warning names it where nobody knows the commit.
        local_only: whether the hub must not be asked.
    """
    if not is_hub_name(name) or COMMIT.fullmatch(revision or ""):
        return revision
    if commit := (None if local_only else _asked(name, revision)) or _cached(name, revision):
        return commit
    log.warning(
        "%s.path=%s: neither the hub nor its cache says which commit this is, so a change there goes unnoticed: "
        "give %s.revision=COMMIT",
        setting,
        name,
        setting,
    )
    return revision


def local_folder(name: str, revision: str | None) -> Path | None:
    """The folder that a model's files lie in: its own, or its snapshot in the cache; None where it is not here."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    if not is_hub_name(name):
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def is_hub_name(name: str) -> bool:
    """Return whether a model's or a data set's name is one of the hub, and no folder here."""
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
