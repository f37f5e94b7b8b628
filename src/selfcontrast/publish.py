"""Publish the policy of a finished run on the Hugging Face Hub, with a model card made from its result.json."""

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfcontrast.config import method_name
from selfcontrast.credentials import secrets_in
from selfcontrast.errors import UserError, printable
from selfcontrast.evaluation.compare import BASELINE
from selfcontrast.models.hub import is_hub_name, local_folder
from selfcontrast.results import RESULT, Evaluated, Result

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TOKEN = "HF_TOKEN"  # environment variable with the Hub's token
UNKNOWN = "unknown"  # also the Hub's name for an unknown license
CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Publication:
    """The settings of an upload to the Hub.

    Attributes:
        repository: OWNER/NAME on the Hub.
        license: the Hub's identifier of a license, such as apache-2.0; None for the base model's.
        private: whether a new repository is private.
        update: whether an existing repository may get a new commit.
    """

    repository: str
    license: str | None
    private: bool
    update: bool

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repository):
            raise UserError(f"push_to_hub={self.repository} is not a repository name. Use OWNER/NAME.")


def prepare(run: Path, publication: Publication, folder: Path) -> list[Path]:
    """Copy a run's policy to `folder`, write its model card there, and return the files, sorted by name.

    Raises:
        UserError: if the run has no policy, its files are gone, or `folder` holds other files.
    """
    if not (run / RESULT).is_file() or Evaluated.is_in(run):
        raise UserError(f"{run} has no policy. Give the folder of a finished training run.")
    result = Result.read(run)
    if not Path(result.policy).is_dir():
        raise UserError(f"{result.policy} is gone from the store. Run the job again, then export it.")
    card = model_card(result, run, publication)
    names = {path.relative_to(result.policy) for path in Path(result.policy).rglob("*") if path.is_file()} | {
        Path(CARD)
    }
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
    if foreign := sorted(files - names):
        raise UserError(f"{folder} holds {foreign[0]}, which is not a file of the policy. Give another --output.")
    shutil.copytree(result.policy, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
    card.save(folder / CARD)  # replaces the policy's own card, which has no scores
    return [folder / name for name in sorted(names)]


def push(folder: Path, publication: Publication) -> str:
    """Create the repository, upload the folder in one commit, and return the repository's address.

    Raises:
        UserError: if no token is set, the Hub refuses it, or the repository exists and may not be updated.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not (token := os.environ.get(TOKEN)):
        raise UserError(f"{TOKEN} is not set. Set it to a token of the Hub with write access, then run this again.")
    api = HfApi(token=token, library_name="selfcontrast")
    name = publication.repository
    try:
        url = api.create_repo(name, private=publication.private, exist_ok=publication.update)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a policy trained by selfcontrast")
    except HfHubHTTPError as error:
        raise UserError(_explain(error.response.status_code, str(error.server_message or ""), name)) from None
    except Exception as error:
        # huggingface_hub's releases use different HTTP libraries. HfHubHTTPError inherits from the library's error.
        library_errors = tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)
        if not isinstance(error, (*library_errors, ConnectionError, TimeoutError)):
            raise
        raise UserError(f"The Hub cannot be reached: {printable(str(error))}. Run this again later.") from None
    return str(url)


def _explain(status: int, message: str, name: str) -> str:
    if status == 401:
        return f"The Hub does not know the token in {TOKEN}. Create one with write access, and set it."
    if status == 403:
        return f"The token in {TOKEN} may not write {name}. Give it write access, or choose another owner."
    if status == 409:
        return f"{name} exists. Choose another name, or add update=true for a new commit there."
    return f"The Hub refused the upload to {name} ({status}): {printable(message)[:300]}"


def model_card(result: Result, run: Path, publication: Publication) -> "ModelCard":
    """Return the card: metadata, scores with their intervals, and the command. Unrecorded facts are left out.

    Raises `UserError` if the command holds a credential.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base, data = base_model(result.config), datasets(result.config)
    license = publication.license or base_license(result.config)
    metadata = ModelCardData(
        base_model=base,
        datasets=data or None,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["self-contrast", "selfcontrast", "preference-optimization", "arxiv:2404.00604"],
        metrics=[result.comparison["measure"]],
        model_name=publication.repository,
        eval_results=eval_results(result, data),
    )
    card: ModelCard = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        name=publication.repository.partition("/")[2],
        base=base or _base_description(result.config["model"]),
        datasets=data,
        license=license,
        license_given=publication.license is not None,
        command=command(run),
        result=result,
        method=method_name(result.config),
        rows=result.comparison["rows"],
        baseline=BASELINE,
        versions=result.provenance.get("packages", {}),
    )
    return card


def eval_results(result: Result, data: list[str]) -> list[Any]:
    """Return the policy's scores as the Hub's `EvalResult`, one per decoding, each with n and its interval."""
    from huggingface_hub import EvalResult

    measure = result.comparison["measure"]
    dataset = data[0] if data else UNKNOWN
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=f"held-out prompts of {dataset}" if data else "held-out prompts",
            metric_type=measure,
            metric_name=f"{measure} at {row['decoding']}",
            metric_value=row["mean"]["estimate"],
            metric_args={
                "n": row["mean"]["n"],
                "prompts": row["mean"]["clusters"],
                "confidence": row["mean"]["confidence"],
                "low": row["mean"]["low"],
                "high": row["mean"]["high"],
            },
        )
        for row in result.comparison["rows"]
        if row["system"] != BASELINE
    ]


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the base model's name on the Hub; None for a folder, and for a model trained from scratch."""
    path = config["model"].get("path")
    return str(path) if path and is_hub_name(str(path)) else None


def _base_description(model: Mapping[str, Any]) -> str:
    if "path" in model:
        return "a model in a local folder, whose name on the Hub is not recorded"
    kind = str(model.get("_target_", UNKNOWN)).rpartition(".")[2]
    return "none: the weights were initialised at random" if kind == "FromScratch" else kind


def datasets(config: Mapping[str, Any]) -> list[str]:
    """Return the names on the Hub of the data that the model was trained on; none for files and the built-in data."""
    part = config["data"].get("train")
    path = part.get("path") if isinstance(part, Mapping) else None
    return [str(path)] if path and "/" in str(path) and is_hub_name(str(path)) else []


def base_license(config: Mapping[str, Any]) -> str | None:
    """Return the license in the base model's card; None if the card is not on this machine or names none."""
    from huggingface_hub import ModelCard

    path = config["model"].get("path")
    folder = local_folder(str(path), config["model"].get("revision")) if path else None
    if folder is None or not (folder / CARD).is_file():
        return None
    try:
        license = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.license
    except (ValueError, yaml.YAMLError):
        return None
    return str(license) if license and license != UNKNOWN else None


def license_known(folder: Path) -> bool:
    """Return whether the card in `folder` names a license."""
    from huggingface_hub import ModelCard

    return bool(ModelCard.load(folder / CARD).data.license)


def command(run: Path) -> str | None:
    """Return the command that trained the run, from Hydra's record; None without a record."""
    try:
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError):
        return None
    line = shlex.join(["python", "train.py", *map(str, overrides)])
    if secrets_in(line):
        raise UserError(f"{run}/.hydra/overrides.yaml has a URL with a credential. Remove it, then export again.")
    return line
