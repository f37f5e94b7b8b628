"""Models on the Hugging Face hub: resolve a name to a commit, and find its files on this machine."""

import logging
import re
from functools import lru_cache
from pathlib import Path

from selfcontrast.errors import UserError

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")  # OWNER/MODEL; old models have no owner
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # a model's config, weights and tokenizer
TIMEOUT = 10.0  # seconds to wait for the hub's answer


@lru_cache(maxsize=64)
def resolve_commit(
    name: str, revision: str | None, setting: str, local_only: bool = False, revision_setting: str = ""
) -> str | None:
    """Return the commit of a hub model's revision. The commit enters the key, and the files of this commit are loaded.

    The hub is queried first, then its local cache. The result is cached for the process: a branch may move while a job
    runs.

    Args:
        name: the model's name on the hub. For a folder, `revision` is returned.
        setting: name of the setting, such as "model", for the warning about an unknown commit.
        local_only: True to never query the hub.
        revision_setting: name of the revision's setting. If it is empty, the warning names `setting`.path and
            `setting`.revision.
    """
    if not is_hub_name(name) or COMMIT.fullmatch(revision or ""):
        return revision
    if commit := (None if local_only else _hub_commit(name, revision)) or _cached_commit(name, revision):
        return commit
    log.warning(
        "%s=%s: its commit is unknown to the hub and the local cache, so a change on the hub goes unnoticed. "
        "Pin it with %s=COMMIT.",
        setting if revision_setting else f"{setting}.path",
        name,
        revision_setting or f"{setting}.revision",
    )
    return revision


def local_folder(name: str, revision: str | None) -> Path | None:
    """Return a model's folder, or its snapshot in the hub's cache; None if it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    if not is_hub_name(name):
        return None
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def download_model(name: str, revision: str | None, setting: str, local_only: bool = False) -> Path:
    """Return the folder of a model's files. Download them if `name` is not a folder.

    Args:
        setting: name of the setting, such as "model.path".

    Raises:
        UserError: if the files cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=local_only, allow_patterns=FILES)
    except Exception as error:  # the hub or the network fails, or the name is unknown
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{setting}={name}: cannot be downloaded ({reason}). Give a folder instead.") from error
    return Path(folder)


def is_hub_name(name: str) -> bool:
    """Return True if a model or data set on the hub may have this name, and no local folder has it."""
    return bool(NAME.fullmatch(name)) and not Path(name).is_dir()


def _hub_commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return None
    try:
        return HfApi().model_info(name, revision=revision, timeout=TIMEOUT).sha
    except Exception:  # the hub, the network or the name fails: loading the model reports it
        return None


def _cached_commit(name: str, revision: str | None) -> str | None:
    folder = local_folder(name, revision)
    return folder.name if folder and COMMIT.fullmatch(folder.name) else None
