"""Run whole jobs through `python train.py`: results, cached stages, and the user's own data and models."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import SECRET, TINY, TINY_FOR_ANY_MODEL, TINY_MODEL, Finished, read_result, run_train, stages
from selfcontrast.store import MANIFEST
from selfcontrast.store.runs import all_runs
from wandb_files import OfflineRun

PREPARED = ["data", "contamination", "sft", "generate", "embed", "filter", "reference"]
USER_SHARED = [*PREPARED, "evaluate SFT", "divergence SFT"]  # shared by every K, on a user's own data
USER_STAGES = [*USER_SHARED, "align", "evaluate Self-Contrast", "divergence Self-Contrast"]
SHARED = [*USER_SHARED, "dialogues answers SFT", "dialogues SFT"]  # the built-in data has a verifier that judges
DIALOGUES = [f"dialogues {part}{name}" for part in ("answers ", "") for name in ("SFT", "Self-Contrast")]
STAGES = [*USER_STAGES, *DIALOGUES, "pairwise Self-Contrast"]

# The script cannot import this package: -I skips the working directory, and `Refuse` blocks the installed package.
LOAD = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "selfcontrast":
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
sys.modules["peft"] = None  # as if it were not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": "Name a fruit."}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
assert out.shape[1] > prompt["input_ids"].shape[1]
print(model.dtype, model.config.model_type)
"""


def load_alone(folder: str) -> str:
    """Generate with a policy folder in a process without this package, and return its output."""
    command = [sys.executable, "-I", "-c", LOAD, folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def published(store: Path) -> dict[Path, int]:
    """Return the files of a store's artifacts, with their times of writing."""
    return {
        file: file.stat().st_mtime_ns
        for manifest in store.glob(f"*/*/{MANIFEST}")
        for file in files_in(manifest.parent)
    }


# --- results


def test_job_runs_every_stage_and_writes_report_result_and_policy(finished: Finished) -> None:
    out, result = finished.folder / "out", finished.result
    assert sorted(stages(result)) == sorted(STAGES)
    assert not any(stage["cached"] or stage["resumed"] for stage in result["stages"])
    assert (out / "report.html").stat().st_size > 10_000
    assert (result["negatives"], result["config"]["max_length"]) == (2, 128)
    assert {(row["system"], row["decoding"]) for row in result["comparison"]["rows"]} == {
        (system, decoding) for system in ("SFT", "Self-Contrast") for decoding in ("T=1", "greedy")
    }
    summary = stages(result)["align"]["summary"]
    assert {"negatives_per_prompt": 2.0, **counts(result)}.items() <= summary.items()
    policy = Path(result["policy"]).relative_to(finished.folder)
    for path in (Path("out/report.html"), Path("out/result.json"), policy):
        assert str(path) in finished.stdout


def counts(result: dict[str, Any]) -> dict[str, int]:
    """Return prompts and steps of align: 4 epochs with 2 prompts per step."""
    prompts = stages(result)["align"]["summary"]["prompts"]
    assert 8 <= prompts <= 16
    return {"prompts": prompts, "steps": -(-prompts // 2) * 4}


def test_value_is_the_target_metric_of_the_first_decoding(finished: Finished) -> None:
    answers = pd.read_parquet(Path(stages(finished.result)["evaluate Self-Contrast"]["path"]) / "answers.parquet")
    first = answers[answers["decoding"] == "T=1"]
    by_dialogue = first.groupby(["id", "sample"])["score"].mean()
    assert finished.result["value"] == pytest.approx(by_dialogue.groupby("id").mean().mean())


def test_policy_loads_without_this_package(finished: Finished) -> None:
    assert load_alone(finished.result["policy"]) == "torch.float32 llama"
    assert (Path(finished.result["policy"]) / "README.md").is_file()


def test_policy_differs_from_the_sft_model(finished: Finished) -> None:
    sft = Path(stages(finished.result)["sft"]["path"]) / "model" / "model.safetensors"
    assert sft.read_bytes() != (Path(finished.result["policy"]) / "model.safetensors").read_bytes()


def test_wandb_api_key_is_in_no_file(finished: Finished) -> None:
    files = files_in(finished.folder)
    assert len(files) > 40
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


# --- iterations


@pytest.mark.slow  # two jobs
def test_iterations_draw_disjoint_prompts_or_gather_all_negatives(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    store = {"SELFCONTRAST_STORE": str(tmp_path / "store")}
    by_run = {}
    for name, settings in {
        "disjoint": ("reference_over_iterations=initial", "prompts_over_iterations=disjoint"),
        "all": ("negatives_over_iterations=all", "trainer.lr=1e-9"),
    }.items():
        (tmp_path / name).mkdir()
        ended = run_train(*TINY, "iterations=2", "tracking=none", *settings, cwd=tmp_path / name, env=store)
        assert ended.returncode == 0, ended.stderr
        by_run[name] = stages(read_result(tmp_path / name / "out"))
    ids = {
        label: set(pd.read_parquet(Path(by_run["disjoint"][label]["path"]) / "candidates.parquet")["id"])
        for label in ("iteration-1/generate", "generate")
    }
    assert len(ids["generate"]) == len(ids["iteration-1/generate"]) == 16
    assert not ids["generate"] & ids["iteration-1/generate"]
    manifest = json.loads((Path(by_run["disjoint"]["reference"]["path"]) / MANIFEST).read_text())
    assert manifest["inputs"]["model"] == by_run["disjoint"]["sft"]["key"]
    parts = [
        pd.read_parquet(Path(by_run["all"][label]["path"]) / "candidates.parquet")
        for label in ("iteration-1/generate", "generate", "gather")
    ]
    assert list(parts[2].groupby("id").size()) == [12] * 16
    texts = [frame.groupby("id")["text"].apply(list).to_dict() for frame in parts]
    assert texts[2] == {name: [*texts[0][name], *texts[1][name]] for name in texts[0]}
    pairs = [(one, two) for name in texts[0] for one, two in zip(texts[0][name], texts[1][name], strict=True)]
    assert sum(one == two for one, two in pairs) < len(pairs) / 2  # the same policy, but other random numbers
    assert {tuple(samples) for samples in parts[2].groupby("id")["sample"].apply(list)} == {tuple(range(12))}
    drawn = pd.read_parquet(Path(by_run["all"]["filter"]["path"]) / "negatives.parquet")["sample"]
    assert drawn.min() < 6 <= drawn.max()  # samples of both iterations


def test_second_iteration_starts_from_the_first_policy(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    ended = run_train(*TINY, "iterations=2", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    after, before = stages(result), stages(finished.result)
    parts = ("generate", "embed", "filter", "reference", "align")
    for part in parts:  # the first iteration equals the job with one iteration
        assert after[f"iteration-1/{part}"]["key"] == before[part]["key"]
        assert after[f"iteration-1/{part}"]["cached"]
        assert after[part]["key"] != before[part]["key"]
        assert not after[part]["cached"]
    manifest = json.loads((tmp_path / after["generate"]["path"] / "manifest.json").read_text())
    assert manifest["inputs"] == {"model": before["align"]["key"]}
    systems = {row["system"] for row in result["comparison"]["rows"]}
    assert systems == {"SFT", "Self-Contrast iteration 1", "Self-Contrast"}
    first = after["evaluate Self-Contrast iteration 1"]
    assert (first["key"], first["cached"]) == (before["evaluate Self-Contrast"]["key"], True)
    (file,) = (tmp_path / "out").rglob("*.wandb")
    run = OfflineRun(file)
    assert run.series("iteration-1/align/loss") == [r["loss"] for r in finished.result["histories"]["align"]]
    assert len(run.series("align/loss")) == len(result["histories"]["align"])


# --- W&B


@pytest.fixture(scope="module")
def run(finished: Finished) -> OfflineRun:
    (file,) = (finished.folder / "out").rglob("*.wandb")
    return OfflineRun(file)


def test_wandb_has_config_and_exit_code_0(run: OfflineRun, finished: Finished) -> None:
    assert run.exit_code == 0
    config = {k: v for k, v in run.config.items() if k != "_wandb"}
    assert config.pop("provenance")["commit"] == finished.result["provenance"]["commit"]
    assert config == {k: v for k, v in finished.result["config"].items() if k not in ("name", "output")}


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_wandb_has_the_training_curves(run: OfflineRun, finished: Finished, stage: str) -> None:
    history = finished.result["histories"][stage]
    logged = [record["loss"] for record in history if "loss" in record]
    assert len(logged) > 1
    assert run.series(f"{stage}/loss") == pytest.approx(logged)
    assert run.series(f"{stage}/step") == [record["step"] for record in history]


def test_wandb_has_the_main_numbers(run: OfflineRun, finished: Finished) -> None:
    rows = finished.result["comparison"]["rows"]
    for row in rows:
        prefix = f"evaluate/{row['system']}/{row['decoding']}"
        assert run.summary[f"{prefix}/mean/estimate"] == pytest.approx(row["mean"]["estimate"])
    assert run.summary["evaluate/Self-Contrast/T=1/win_rate/low"] == pytest.approx(
        next(row for row in rows if "win_rate" in row)["win_rate"]["low"]
    )
    assert run.summary["value"] == pytest.approx(finished.result["value"])
    points = finished.result["against_kl"]["points"]
    assert [point["system"] for point in points] == ["SFT", "Self-Contrast"]
    for point in points:
        for measure in ("kl", "entropy"):
            value = run.summary[f"divergence/{point['system']}/{measure}/estimate"]
            assert value == pytest.approx(point[measure]["estimate"])
    assert run.series("tables/against_kl.nrows") == [2]


def test_wandb_has_the_tables_and_every_artifact_with_its_key(run: OfflineRun, finished: Finished) -> None:
    (samples,) = run.series("tables/samples.nrows")
    assert samples == len(finished.result["samples"])
    assert run.series("tables/negatives.nrows") == [len(finished.result["negatives_shown"])]
    assert run.series("tables/candidates.nrows") == [8 * 6]  # 8 prompts with 6 candidates
    assert run.series("tables/judgments/pairwise.nrows") == [16 * 2 * 2]  # 16 prompts, two samples, both orders
    mirrored = {artifact.name: list(artifact.aliases) for artifact in run.artifacts}
    for stage in finished.result["stages"]:
        assert stage["key"] in mirrored[f"{Path(stage['path']).parent.name}-{stage['key']}"]
    assert any(artifact.type == "report" for artifact in run.artifacts)
    (data,) = (name for name in mirrored if name.startswith("data-"))
    made_from = {a.name: json.loads(a.metadata)["made_from"] for a in run.artifacts if "made_from" in a.metadata}
    keys = {name: stage["key"] for name, stage in stages(finished.result).items()}
    assert data in made_from[f"sft-{keys['sft']}"]
    assert made_from[f"generate-{keys['generate']}"] == [f"sft-{keys['sft']}"]


# --- checkpoints


def test_checkpoints_are_scored_and_do_not_change_the_policy(finished: Finished, tmp_path: Path) -> None:
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    ended = run_train(*TINY, "evaluation.checkpoints=4", cwd=tmp_path, env=store)
    assert ended.returncode == 0, ended.stderr
    result, before = read_result(tmp_path / "out"), finished.result
    assert {name for name, stage in stages(result).items() if stage["cached"]} == set(SHARED)
    sft, *checkpoints, policy = result["against_kl"]["points"]
    assert [point["system"] for point in checkpoints] == [f"Self-Contrast {i}/4" for i in (1, 2, 3)]
    assert [point["step"] for point in (sft, *checkpoints, policy)] == [0, 8, 16, 24, 32]
    assert [point["checkpoint"] for point in (sft, *checkpoints, policy)] == [False, True, True, True, False]
    assert [sft, policy] == before["against_kl"]["points"]
    assert result["comparison"] == before["comparison"]
    assert len({point["kl"]["estimate"] for point in (sft, *checkpoints, policy)}) == 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Better, sharper, or farther?" in page
    assert "Self-Contrast 3/4" in page


def test_more_checkpoints_than_steps_are_refused_before_the_reference_is_scored(
    finished: Finished, tmp_path: Path
) -> None:
    """With a budget of tokens the number of steps is known only after filtering. Another seed draws other negatives."""
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    references = {folder.name for folder in (tmp_path / "store" / "reference").iterdir()}
    settings = ("evaluation.checkpoints=4", "trainer.tokens=50", "filter.seed=7", "tracking=none")
    ended = run_train(*TINY, *settings, cwd=tmp_path)
    assert ended.returncode == 1
    assert "evaluation.checkpoints=4, but preference training has 1 steps. Lower it to 1." in ended.stderr
    after = {folder.name for folder in (tmp_path / "store" / "reference").iterdir()}
    assert {name for name in after if not name.endswith(".partial")} == references


# --- cached stages


def test_same_command_again_is_cached_with_equal_numbers(finished: Finished, tmp_path: Path) -> None:
    before = published(finished.folder / "store")
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    again = run_train(*TINY, cwd=tmp_path, env=store)
    assert again.returncode == 0, again.stderr
    result = read_result(tmp_path / "out")
    assert all(stage["cached"] for stage in result["stages"])
    assert {n: s["key"] for n, s in stages(result).items()} == {n: s["key"] for n, s in stages(finished.result).items()}
    for part in ("value", "comparison", "histories", "samples", "negatives_shown", "similarities", "policy"):
        assert result[part] == finished.result[part]
    assert published(finished.folder / "store") == before
    used = {run.folder: set(run.artifacts) for run in all_runs(finished.folder / "store")}
    assert used[tmp_path / "out"] == {f"{Path(s['path']).parent.name}/{s['key']}" for s in result["stages"]}


def test_lora_shares_all_stages_before_align_and_saves_a_plain_policy(finished: Finished, tmp_path: Path) -> None:
    """The stored reference scores are valid: they are scores of the adapters' base model."""
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    settings = ("adapter=lora", "adapter.dropout=0", "trainer.lr=1e-3")
    ended = run_train(*TINY, *settings, cwd=tmp_path, env=store)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    assert {name for name, stage in stages(result).items() if stage["cached"]} == set(SHARED)
    first, *_, last = result["histories"]["align"]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["loss"] < 0.6
    assert load_alone(result["policy"]) == "torch.float32 llama"
    sft, policy = Path(stages(result)["sft"]["path"]) / "model", Path(result["policy"])
    assert {f.name for f in policy.iterdir()} == {f.name for f in sft.iterdir()}
    assert (policy / "config.json").read_text() == (sft / "config.json").read_text()


def test_sweep_over_negatives_shares_stages_that_do_not_depend_on_k(finished: Finished, tmp_path: Path) -> None:
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    settings = [setting for setting in TINY if not setting.startswith("negatives=")]
    ended = run_train("-m", *settings, "negatives=1,3", "hydra.sweep.dir=sweep", cwd=tmp_path, env=store)
    assert ended.returncode == 0, ended.stderr
    jobs = [read_result(tmp_path / "sweep" / number) for number in ("0", "1")]
    assert [job["negatives"] for job in jobs] == [1, 3]
    keys = {name: stage["key"] for name, stage in stages(finished.result).items()}
    for job in jobs:
        assert {name for name, stage in stages(job).items() if stage["cached"]} == set(SHARED)
        assert {name for name, stage in stages(job).items() if stage["key"] == keys[name]} == set(SHARED)
        aligned = stages(job)["align"]["summary"]
        assert {"negatives_per_prompt": float(job["negatives"]), **counts(finished.result)}.items() <= aligned.items()
    negatives = pd.read_parquet(Path(stages(jobs[0])["filter"]["path"]) / "negatives.parquet")
    for _, ranked in negatives.groupby("id"):
        assert sorted(ranked["rank"]) == [0, 1, 2, 3]  # K takes the first ranks of one pool
    runs = [OfflineRun(file) for file in (tmp_path / "sweep").rglob("*.wandb")]
    assert sorted(run.config["negatives"] for run in runs if run.fields["job_type"] == "train") == [1, 3]
    assert [run.fields["job_type"] for run in runs].count("sweep report") == 1


# --- the user's own data and models

QUESTIONS = [f"What is {a} plus {b}?" for a in range(8) for b in range(8)]
ANSWERS = [f"{a} plus {b} makes {a + b}, as every child knows." for a in range(8) for b in range(8)]
USER_SETTINGS = ("data=jsonl", *TINY_FOR_ANY_MODEL, "trainer.epochs=1", "sft.batch_size=8")


def finish(folder: Path, *overrides: str) -> dict[str, Any]:
    ended = run_train(*USER_SETTINGS, *overrides, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    result = read_result(folder / "out")
    assert result["comparison"]["measure"] == "similarity"  # the fallback without a verifier
    assert sorted(stages(result)) == sorted(USER_STAGES)
    assert all(-1 <= row["mean"]["estimate"] <= 1 for row in result["comparison"]["rows"])
    return result


def test_job_on_alpaca_json_finishes_with_lm_eval_accuracies(tmp_path: Path) -> None:
    rows = [{"instruction": q, "input": "", "output": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    tasks = ("evaluation.lm_eval.tasks=[target_choice]", "evaluation.lm_eval.limit=8")
    result = finish(tmp_path, "data.path=alpaca.json", *TINY_MODEL, *tasks)
    for system in ("SFT", "Self-Contrast"):
        accuracy = result["lm_eval"][system]["target_choice"]["acc"]
        assert accuracy * 8 == pytest.approx(round(accuracy * 8))
        assert 0 <= accuracy <= 1
    assert {sample["target"] for sample in result["samples"]} <= set(ANSWERS)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random Llama with tokenizer and chat template, as another tool would save it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfcontrast.models.loading import train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([*QUESTIONS, *ANSWERS], 320, 256)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def test_job_on_messages_in_jsonl_keeps_dtype_and_template_of_the_model(tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = finish(tmp_path, "data.path=chat.jsonl", "model=hf", f"model.path={model_folder}")
    policy = Path(result["policy"])
    assert json.loads((policy / "config.json").read_text())["dtype"] == "float32"
    assert (policy / "chat_template.jinja").read_text() == (model_folder / "chat_template.jinja").read_text()


def test_job_on_parquet_in_bfloat16_saves_a_bfloat16_policy(tmp_path: Path, model_folder: Path) -> None:
    frame = pd.DataFrame({"prompt": QUESTIONS, "completion": ANSWERS})
    frame.to_parquet(tmp_path / "data.parquet")
    bfloat16 = ("model.dtype=bfloat16", "sft.lr=1e-3")
    result = finish(tmp_path, "data.path=data.parquet", "model=hf", f"model.path={model_folder}", *bfloat16)
    assert load_alone(result["policy"]) == "torch.bfloat16 llama"
