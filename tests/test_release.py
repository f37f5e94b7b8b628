"""Check release files that tests cannot run: they must name only existing files, extras and targets."""

import re
import shlex
import tomllib
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[list[str]]:
    """Return the words of each instruction of the Dockerfile, without comments and with continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    return [shlex.split(line) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def test_dockerfile_copies_only_existing_files_of_the_build_context() -> None:
    build_context = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [words[1:-1] for words in instructions() if words[0] == "COPY" and not words[1].startswith("--from")]
    sources = [source for words in copied for source in words]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in build_context, source
    # The image must have all sources of the wheel.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {path.partition("/")[0] for path in build["only-include"]} <= set(sources)


def test_dockerfile_installs_extras_that_exist() -> None:
    extras = re.findall(r'"/src\[([\w,]+)\]"', DOCKERFILE) + re.findall(
        r'optional-dependencies"\]\["(\w+)"\]', DOCKERFILE
    )
    names = {name for extra in extras for name in extra.split(",")}
    assert {"vllm", "peft"} <= names
    assert names <= set(PROJECT["optional-dependencies"])


def test_dockerfile_images_are_pinned_and_the_user_is_not_root() -> None:
    images = [words[1] for words in instructions() if words[0] == "FROM"]
    assert images
    for image in images:
        assert re.fullmatch(r"[\w/]+:\d[\w.-]+", image), image
    last = [words for words in instructions() if words[0] in ("USER", "ENTRYPOINT")]
    assert last[0][0] == "USER"
    assert last[0][1] not in ("root", "0")


def test_dockerfile_cuda_version_is_that_of_torch() -> None:
    """FlashInfer in vLLM compiles with the image's nvcc, for a torch that must be built for the same CUDA version."""
    torch_cuda = re.findall(r"(?m)^cuda-toolkit==(\d+\.\d+)\.", (ROOT / "requirements" / "lock.txt").read_text())
    images = [words[1] for words in instructions() if words[0] == "FROM"]
    versions = [re.findall(r"^nvidia/cuda:(\d+\.\d+)\.\d+-devel-", image) for image in images]
    assert len(torch_cuda) == 1
    assert versions == [torch_cuda] * len(images)


def test_dockerfile_final_stage_installs_compiler_and_headers() -> None:
    """nvcc needs the C++ compiler, and Triton's launchers need Python's headers."""
    all_instructions = instructions()
    start = max(i for i, instruction in enumerate(all_instructions) if instruction[0] == "FROM")
    installed = {word for instruction in all_instructions[start:] if instruction[0] == "RUN" for word in instruction}
    assert {"g++", "python3-dev"} <= installed


def test_dockerfile_user_owns_the_volume_which_is_its_home() -> None:
    """Compiled kernels are cached in the user's home. The header says how a folder of the host gets this owner."""
    (user,) = re.findall(r"useradd --home-dir /runs --uid (\d+) (\w+) ", DOCKERFILE)
    all_instructions = instructions()
    assert ["WORKDIR", "/runs"] in all_instructions
    assert ["USER", user[1]] in all_instructions
    assert f"chown {user[1]}: /runs\n" in DOCKERFILE
    assert f"install --directory --owner {user[0]} runs" in DOCKERFILE
    assert '--volume "$PWD/runs:/runs"' in DOCKERFILE


def test_dockerfile_copies_only_pyproject_before_it_installs_vllm() -> None:
    """A change of README.md or of the code must not install vLLM's 10 GB again."""
    all_instructions = instructions()
    vllm = next(
        i for i, instruction in enumerate(all_instructions) if instruction[0] == "RUN" and "/srv/vllm" in instruction
    )
    assert [instruction[1:] for instruction in all_instructions[:vllm] if instruction[0] == "COPY"] == [
        ["pyproject.toml", "/src/"]
    ]


def test_version_is_in_one_place() -> None:
    """The citation has no version, and the changelog begins with the project's version."""
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    headings = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == PROJECT["version"]


def test_citation_has_the_keys_that_its_schema_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for authors in (citation["authors"], *(reference["authors"] for reference in citation["references"])):
        assert all({"name"} == set(author) or "family-names" in author for author in authors)


def test_workflow_runs_targets_that_the_makefile_has() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"].values()
    commands = [step["run"].split() for step in job["steps"] if "run" in step]
    assert [words[:2] for words in commands] == [["make", "lint"], ["make", "test"], ["make", "docs"]]
    makefile = (ROOT / "Makefile").read_text()
    for _, target, *_ in commands:
        assert re.search(rf"(?m)^{target}:", makefile), target
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest in job["strategy"]["matrix"]["python"]


def test_lock_pins_every_dependency_within_its_bounds() -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements" / "lock.txt").read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line]
    versions = {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry in pinned}
    extras = PROJECT["optional-dependencies"]
    dev = [Requirement(line) for line in extras["dev"]]
    project_extras = {extra for entry in dev if entry.name == PROJECT["name"] for extra in entry.extras}
    needed = [*map(Requirement, PROJECT["dependencies"]), *dev]
    needed += [Requirement(line) for extra in project_extras for line in extras[extra]]
    for entry in needed:
        if entry.name != PROJECT["name"] and (entry.marker is None or entry.marker.evaluate()):
            assert entry.specifier.contains(versions[canonicalize_name(entry.name)]), entry
