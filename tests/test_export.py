"""Test the export of negatives: other trainers read their formats, and a file can be imported as candidates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from selfcontrast.data.builtin import Builtin
from selfcontrast.data.candidates import CHOSEN, POSITIVES, TARGET, Negative, read_negatives
from selfcontrast.data.example import Example
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.export import dataset_info, export, main
from selfcontrast.filters.filter import FILE
from selfcontrast.generators.importer import Import
from selfcontrast.store import Artifact, Stage, Store
from tiny import llama, tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
ROWS = [
    {
        "messages": [
            *([SYSTEM] if i % 3 == 0 else []),
            *([{"role": "user", "content": "猫?"}, {"role": "assistant", "content": "🙂"}] if i % 2 else []),
            {"role": "user", "content": f"the cat {i}"},
            {"role": "assistant", "content": f"a cat {i}"},
        ]
    }
    for i in range(12)
]


def negative(name: str, rank: int) -> Negative:
    return Negative(name, rank, 7 - rank, f"a dog {rank} 狗", [1, 2], 0.5)


def negatives_artifact(store: Store, data: Any, examples: list[Example], ranks: int = 3) -> Artifact:
    """Return an artifact of the filter stage with negatives for all examples except the first."""

    def write(folder: Path) -> None:
        rows = [vars(negative(e.id, rank)) for rank in reversed(range(ranks)) for e in examples[1:]]
        pq.write_table(pa.Table.from_pylist(rows), folder / FILE)

    sft = store.get(Stage("sft", 1, {"data": data.fingerprint()}, {}, lambda folder: None))
    candidates = store.get(Stage("generate", 1, {}, {"sft": sft}, lambda folder: None))
    return store.get(Stage("filter", 1, {}, {"candidates": candidates}, write))


@pytest.fixture
def data(tmp_path: Path) -> Jsonl:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Jsonl(str(file), 0.1, 0.1, None, None, "required")


@pytest.fixture
def examples(data: Jsonl) -> list[Example]:
    return data.load()["train"]


@pytest.fixture
def artifact(tmp_path: Path, data: Jsonl, examples: list[Example]) -> Path:
    return negatives_artifact(Store(tmp_path / "store"), data, examples).path


def export_rows(artifact: Path, form: str, data: Jsonl, count: int | None = None) -> tuple[Path, list[dict[str, Any]]]:
    output = artifact.parents[2] / "new" / f"{form}.jsonl"
    row_count = export(artifact, form, count, output, data.path)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == row_count
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    return output, rows


def test_export_of_a_chosen_candidate_replaces_the_target(artifact: Path, data: Jsonl) -> None:
    """If the target and a candidate are chosen, the file has rows for both."""
    ids = sorted(read_negatives(artifact / FILE))
    rows = [{"id": name, "sample": 5, "text": f" own {name} ", "token_ids": [3], "score": 1.0} for name in ids]
    target = {"id": ids[0], "sample": TARGET, "text": "the target", "token_ids": [], "score": None}
    pq.write_table(pa.Table.from_pylist([target, *rows], schema=POSITIVES), artifact / CHOSEN)
    _, exported = export_rows(artifact, "jsonl", data)
    assert [row["target"] for row in exported if row["id"] == ids[0]] == ["the target", f"own {ids[0]}"]
    assert {row["target"] for row in exported if row["id"] == ids[1]} == {f"own {ids[1]}"}
    assert len(exported) == len(ids) + 1


def test_jsonl_lists_all_negatives_of_a_prompt_in_rank_order(
    artifact: Path, data: Jsonl, examples: list[Example]
) -> None:
    _, rows = export_rows(artifact, "jsonl", data)
    assert rows == [
        {"id": e.id, "prompt": e.prompt, "target": e.target, "negatives": [f"a dog {rank} 狗" for rank in range(3)]}
        for e in examples[1:]
    ]


def test_trl_file_gives_the_token_ids_of_the_renderer(
    artifact: Path, data: Jsonl, examples: list[Example], tmp_path: Path
) -> None:
    from trl import DPOConfig, DPOTrainer

    output, rows = export_rows(artifact, "trl", data, 2)
    assert len(rows) == 2 * len(examples[1:])
    chat_tokenizer = tokenizer()
    chat_tokenizer.model_max_length = 10**6
    settings: Any = {"use_cpu": True, "bf16": False, "report_to": [], "precompute_ref_log_probs": True}
    trainer = DPOTrainer(
        model=llama(),
        args=DPOConfig(output_dir=str(tmp_path / "trl"), **settings),
        train_dataset=load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache")),
        processing_class=chat_tokenizer,
    )
    renderer = Renderer(chat_tokenizer)
    expected = [
        (*renderer.example(e), renderer.response(e.prompt, f"a dog {rank} 狗"))
        for e in examples[1:]
        for rank in range(2)
    ]
    tokens = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    assert tokens == expected


def test_llamafactory_rows_have_its_ranking_format(
    artifact: Path, data: Jsonl, examples: list[Example], tmp_path: Path
) -> None:
    """This package also reads the ranking format, so it can read the exported file."""
    output, rows = export_rows(artifact, "llamafactory", data, 1)
    assert {tuple(row) for row in rows} == {("system", "conversations", "chosen", "rejected")}
    assert any(row["system"] == "Be brief." for row in rows)
    assert all(turn["from"] in ("human", "gpt") for row in rows for turn in row["conversations"])
    read = [e for split in Jsonl(str(output), 0.1, 0.1, None, None, "required").load().values() for e in split]
    assert sorted((len(e.prompt), e.target, e.rejected) for e in read) == sorted(
        (len(e.prompt), e.target, "a dog 0 狗") for e in examples[1:]
    )
    load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    (entry,) = dataset_info(output).values()
    assert set(entry["columns"].values()) == set(rows[0])
    assert (entry["file_name"], entry["formatting"], entry["ranking"]) == ("llamafactory.jsonl", "sharegpt", True)


def test_exported_file_is_imported_as_candidates(artifact: Path, data: Jsonl, examples: list[Example]) -> None:
    output, _ = export_rows(artifact, "jsonl", data, 2)
    imported = Import(None, 100, 0, path=str(output))
    imported.check(examples)
    assert list(imported._responses.values()) == [["a dog 0 狗", "a dog 1 狗"]] * len(examples[1:])
    assert imported.samples == 2
    # The file can also be read as data, with the same ids.
    reread = [e for split in Jsonl(str(output), 0.1, 0.1, None, None, "required").load().values() for e in split]
    assert {(e.id, e.target) for e in reread} == {(e.id, e.target) for e in examples[1:]}


def test_export_of_builtin_data_needs_no_file(tmp_path: Path) -> None:
    data = Builtin(train=16, validation=8, test=8, noise=0.1, rejected_noise=0.3, two_turn=0.5, seed=3)
    artifact = negatives_artifact(Store(tmp_path / "store"), data, data.load()["train"]).path
    assert export(artifact, "jsonl", 1, tmp_path / "out.jsonl", None) == 15


def test_export_with_wrong_arguments_or_changed_data_is_refused(artifact: Path, data: Jsonl, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for count in (0, 4):
        with pytest.raises(UserError, match=rf"--negatives {count} .*3"):
            export(artifact, "trl", count, output, data.path)
    with pytest.raises(UserError, match="--data FILE"):
        export(artifact, "trl", 1, output, None)
    with pytest.raises(UserError, match="finished run"):
        export(tmp_path, "trl", 1, output, None)
    Path(data.path).write_text("".join(json.dumps(row) + "\n" for row in ROWS[1:]))
    with pytest.raises(UserError, match="data has changed"):
        export(artifact, "trl", 1, output, data.path)
    assert not output.exists()


def test_command_prints_rows_and_dataset_info(
    artifact: Path, data: Jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--format", "llamafactory", "--negatives", "1", "--output", str(tmp_path / "pairs.jsonl")]
    main([str(artifact), *args, "--data", data.path])
    out = capsys.readouterr().out
    assert f"rows in {tmp_path / 'pairs.jsonl'}" in out
    assert json.loads(out.partition("dataset_info.json: ")[2]) == dataset_info(tmp_path / "pairs.jsonl")
    failed = subprocess.run(
        [sys.executable, "-m", "selfcontrast.export", str(tmp_path), *args], capture_output=True, text=True, timeout=300
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
