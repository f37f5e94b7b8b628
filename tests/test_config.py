"""The config as the user meets it: all of `conf` builds, and every mistake is one line before any compute.

Most mistakes go through `configure` in this process; some through the real command.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from jobs import ROOT, TINY, run_train
from selfcontrast.config import GROUPS, build, configure
from selfcontrast.errors import UserError

CONF = ROOT / "conf"
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
GIVEN = {  # the ??? of conf
    ("data", "jsonl"): "data.path=data.jsonl",
    ("data", "hub"): "data.train.path=data.jsonl",
    ("model", "hf"): "model.path=folder",
    ("filter", "oracle_reward"): "filter.reward_model.path=folder",
    ("generator", "import"): "generator.path=candidates.jsonl",
}


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_SWEEP_ID",
        "WANDB_RUN_ID",
        "SELFCONTRAST_STORE",
        "SELFCONTRAST_STORE_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed: DictConfig = compose("config", list(overrides))
    return composed


def nodes(node: Any, where: str) -> Iterator[tuple[str, DictConfig]]:
    """Every node that names a class, the nested ones too."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield where, node
        for key in map(str, node):
            if not OmegaConf.is_missing(node, key):
                yield from nodes(node[key], f"{where}.{key}")


# --- what is in conf


NESTED = {"hydra", "arm", "debug", "experiment", "backend", "benchmark", "judge"}  # not of the config itself


def test_every_folder_of_conf_is_a_group_that_is_built() -> None:
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} - NESTED == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_builds(group: str, option: str) -> None:
    overrides = [f"{group}={option}", *([GIVEN[group, option]] if (group, option) in GIVEN else [])]
    node = composed(*overrides)[group]
    part = build(node, group)
    assert type(part) is get_class(node["_target_"])
    for where, inner in nodes(node, group):
        assert set(inner) - {"_target_"} == {f.name for f in fields(get_class(inner["_target_"]))}, where


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_starts_with_a_comment_that_says_what_it_is(group: str, option: str) -> None:
    assert (CONF / group / f"{option}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_no_number_in_conf_is_read_as_a_text(file: Path) -> None:
    """YAML 1.1 reads 1e-5 as a text: it must be written 1.0e-5."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    for text in texts(yaml.safe_load(file.read_text())):
        with pytest.raises(ValueError):
            float(text)


def test_the_defaults_list_names_the_options_of_each_group() -> None:
    lines = {
        line.split(":")[0].strip(" #-"): line.split("#")[-1]
        for line in (CONF / "config.yaml").read_text().split("negatives:")[0].splitlines()
        if line.startswith(("  - ", "  # - ")) and "#" in line
    }
    for group, option in OPTIONS:
        assert option in lines[group] or "…" in lines[group], f"{group}={option}"


def test_what_must_be_given_is_asked_for_by_its_key() -> None:
    for (group, option), given in GIVEN.items():
        key = given.split("=")[0]
        with pytest.raises(UserError, match=f"^{key} must be given: {key}=…$"):
            build(composed(f"{group}={option}")[group], group)


# --- mistakes


@cache
def tiny() -> str:
    """The tiny job's config as YAML, composed once."""
    return OmegaConf.to_yaml(composed(*TINY))


def mistake(*overrides: str, choose: DictConfig | None = None) -> str:
    """The line that the tiny job's config with these values is refused with."""
    cfg = choose or DictConfig(OmegaConf.create(tiny()))
    cfg.merge_with_dotlist(list(overrides))
    with pytest.raises(UserError) as caught:
        configure(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("data.trian", "data.train"),
        ("model.hiden", "model.hidden"),
        ("sft.learning_rate", None),
        ("sft.lrr", "sft.lr"),
        ("generator.sample", "generator.samples"),
        ("generator.backend.row", "generator.backend.rows"),
        ("encoder.pth", "encoder.path"),
        ("filter.max_negative", "filter.max_negatives"),
        ("filter.selector.shares", "filter.selector.share"),
        ("objective.betta", "objective.beta"),
        ("trainer.epoch", "trainer.epochs"),
        ("hardware.thread", "hardware.threads"),
        ("evaluation.prompt", "evaluation.prompts"),
        ("tracking.projekt", "tracking.project"),
    ],
)
def test_an_unknown_key(misspelt: str, meant: str | None) -> None:
    said = mistake(f"{misspelt}=1")
    assert said.startswith(f"{misspelt}: no such setting; ")
    assert (f"did you mean {meant}?" if meant else "it has optimizer, lr, ") in said


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("negatives=0", "negatives=0: must be greater than or equal to 1"),
        ("negatives=-1", "negatives=-1: must be greater than or equal to 1"),
        ("negatives=many", "negatives=many: must be a valid integer"),
        ("negatives=2.5", "negatives=2.5: must be a valid integer"),
        ("negatives=true", "negatives=True: must be a number, not true or false"),
        ("negatives=null", "negatives=None: must be a valid integer"),
        ("rounds=-1", "rounds=-1: must be greater than or equal to 0"),
        ("method=SFT", "method=SFT: the fine-tuned model has that name; give the policy another"),
        ("negatives=5", "negatives=5 is more than filter.max_negatives=4: raise that, or lower K"),
        ("seed=-1", "seed=-1: must be greater than or equal to 0"),
        (
            "filter.max_negatives=7",  # refill may use all 6 samples
            "filter.max_negatives=7 is impossible: of generator.samples=6 the filter keeps 6 at most. "
            "Sample more, keep more, or ask for fewer",
        ),
    ],
)
def test_numbers_of_negatives_that_cannot_be(override: str, line: str) -> None:
    assert mistake(override) == line


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sft.lr=fast", ["sft.lr=fast", "number"]),
        ("sft.epochs=1.5", ["sft.epochs=1.5", "integer"]),
        ("trainer.betas=0.9", ["trainer.betas=0.9", "list"]),
        ("sft.lr=-1", ["sft.lr=-1", "greater than 0"]),
        ("trainer.tokens=0", ["tokens=0", "null"]),
        ("sft.epochs=-1", ["sft.epochs=-1", "greater than or equal to 0"]),
        ("sft.epochs=0", ["sft.epochs=0", "random weights"]),
        ("trainer.epochs=0", ["trainer.epochs=0", "rounds=0"]),
        ("model.hidden=63", ["model.hidden=63"]),
        ("model.precision=int4", ["model.precision=int4", "float32, bfloat16"]),
        ("generator.temperature=0", ["generator.temperature=0"]),
        ("filter.selector.share=0", ["filter.selector.share=0"]),
        ("filter.selector.share=1.5", ["filter.selector.share=1.5"]),
        (
            "filter.selector._target_=selfcontrast.filters.selectors.Nearest",
            ["filter.selector._target_=", "Nearest"],
        ),
        ("filter.selector._target_=nowhere.Selector", ["filter.selector._target_=", "nowhere"]),
        ("filter.selector._target_=os.system", ["filter.selector._target_=os.system"]),
        ("objective.label_smoothing=0.5", ["objective.label_smoothing=0.5", "less than 0.5"]),
        ("trainer.optimizer=sgd", ["optimizer=sgd", "adamw, adamw_8bit"]),
        ("hardware.peak_tflops=-1", ["hardware.peak_tflops=-1", "null"]),
        ("hardware.accelerator=abacus", ["hardware.accelerator=abacus", "cpu"]),
        ("hardware.strategy=ddp2", ["hardware.strategy=ddp2", "ddp, fsdp2"]),
        ("hardware.attention=dense", ["hardware.attention=dense", "auto, blocks, varlen, flex, masked"]),
        ("hardware.attention=flex", ["hardware.attention=flex", "cpu", "use auto"]),
        ("evaluation.split=train", ["evaluation.split=train", "validation or test"]),
        ("evaluation.lm_eval.tasks=[nothing_so]", ["evaluation.lm_eval.tasks=nothing_so", "target_choice"]),
        ("evaluation.lm_eval.tasks=[humaneval]", ["tasks=humaneval", "confirm_run_unsafe_code=true"]),
        ("evaluation.lm_eval.fewshot=-1", ["evaluation.lm_eval.fewshot=-1", "null"]),
        ("evaluation.cap=5", ["evaluation.cap=5", "judge.reading.price"]),
        ("evaluation.judgments_shown=0", ["evaluation.judgments_shown=0", "or null"]),
        ("evaluation.decodings=[]", ["evaluation.decodings", "at least one"]),
        ("evaluation.decodings=[7]", ["evaluation.decodings[0]=7"]),
        ("evaluation.decodings=[{name: a, samples: 1}]", ["evaluation.decodings", "temperature"]),
        ("evaluation.decodings=[{name: a, temperature: hot, samples: 1}]", ["evaluation.decodings"]),
        (
            "evaluation.decodings=[{name: a, temperature: 0, samples: 4}]",
            ["temperature=0", "samples must be 1"],
        ),
        ("tracking.mode=cloud", ["tracking.mode=cloud", "offline"]),
        ("tracking.mode=online", ["online needs a key", "WANDB_API_KEY"]),
        ("encoder.path=./nowhere", ["encoder.path=./nowhere", "no such folder"]),
        ("target_metric=elegance", ["target_metric=elegance", "score"]),
    ],
)
def test_values_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, override: str, parts: list[str]
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))  # the developer's own key
    said = mistake(override)
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("adapter.rank=0", "adapter.rank=0: must be greater than or equal to 1"),
        (
            "adapter.target_modules=[q_proj,queries]",
            "adapter.target_modules: queries is no linear layer of a llama; there are "
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ),
        (
            "adapter.stages=[sft,align]",
            "adapter.stages=['sft', 'align']: a model of random weights cannot be fine-tuned by adapters alone; "
            "use adapter.stages=[align]",
        ),
    ],
)
def test_adapters_that_cannot_be(override: str, line: str) -> None:
    assert mistake(override, choose=composed(*TINY, "adapter=lora")) == line


@pytest.mark.parametrize(
    ("package", "overrides", "line"),
    [
        (
            "peft",
            ["adapter=lora"],
            "adapter=lora needs peft: pip install -e '.[peft]', or use adapter=none",
        ),
        (
            "bitsandbytes",
            ["sft.optimizer=adamw_8bit"],
            "sft.optimizer=adamw_8bit needs bitsandbytes: pip install -e '.[8bit]', or use sft.optimizer=adamw",
        ),
    ],
)
def test_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, package: str, overrides: list[str], line: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert mistake(choose=composed(*TINY, *overrides)) == line


def test_a_setting_of_no_adapter() -> None:
    assert mistake("adapter.rank=8") == "adapter.rank: no such setting; it has none"


def test_a_store_that_cannot_be() -> None:
    said = mistake("store=s4://bucket/path", "output=out")
    assert said.startswith("store=s4://bucket/path: ")
    assert said.endswith("; a folder, or a URL such as s3://bucket/path")


def test_a_mode_of_wandb_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "cloud")
    assert mistake() == "WANDB_MODE=cloud: one of online, offline, disabled"


ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(20)]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("data.jsonl", "", ["data.jsonl", "the file is empty"]),
        (
            "data.jsonl",
            '{"prompt": "a", "completion": "b"}\n{"prompt": \n',
            ["data.jsonl, line 2", "not valid JSON"],
        ),
        ("data.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": 7, "completion": "b"}', ["line 2"]),
        ("data.jsonl", '{"question": "a"}', ["data.jsonl, line 1", "question", "prompt + completion"]),
        ("data.json", '[{"prompt": "a",\n "completion" "b"}]', ["data.json, line 2", "not valid JSON"]),
        ("data.parquet", "PAR1 no", ["data.parquet", "Parquet"]),
        ("data.csv", "prompt,completion", ["data.csv", ".jsonl"]),
        ("data.jsonl", json.dumps(ROWS[0]), ["data.jsonl", "fewer than 8"]),
    ],
)
def test_a_data_file_that_cannot_be_used(tmp_path: Path, name: str, content: str, parts: list[str]) -> None:
    (tmp_path / name).write_text(content)
    said = mistake(choose=composed("data=jsonl", f"data.path={tmp_path / name}"))
    assert [part for part in parts if part not in said] == []


def test_a_data_file_that_is_not_there() -> None:
    assert mistake(choose=composed("data=jsonl")) == "data.path must be given: data.path=…"
    assert "data.path=none.jsonl does not exist" in mistake("data.path=none.jsonl", choose=composed("data=jsonl"))


# --- models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model's, with a tokenizer without a chat template."""
    from selfcontrast.models.loading import train_tokenizer

    folder = tmp_path / "model"
    train_tokenizer(["a few words"], 270, 64).save_pretrained(str(folder))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def model_mistake(*overrides: str) -> str:
    return mistake("data.train=64", "data.test=16", "data.validation=16", *overrides, choose=composed("model=hf"))


def test_a_model_folder_that_is_not_there_or_not_one(tmp_path: Path) -> None:
    assert model_mistake() == "model.path must be given: model.path=…"
    assert model_mistake("model.path=./none") == "model.path=./none: no such folder"
    (tmp_path / "empty").mkdir()
    assert "no config.json" in model_mistake(f"model.path={tmp_path / 'empty'}")


def test_a_model_folder_without_safe_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no *.safetensors" in model_mistake(f"model.path={folder}")


def test_a_model_without_a_chat_template(folder: Path) -> None:
    said = model_mistake(f"model.path={folder}")
    assert "no chat template" in said
    assert "model.chat_template=FILE" in said


def test_a_chat_template_without_a_generation_prompt_or_with_a_mistake(folder: Path, tmp_path: Path) -> None:
    def said(template: str) -> str:
        (tmp_path / "template.jinja").write_text(template)
        return model_mistake(f"model.path={folder}", f"model.chat_template={tmp_path / 'template.jinja'}")

    turns = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    assert "no generation prompt" in said(turns)
    assert "chat template" in said("{% for m in messages %}")
    assert "chat template" in said("{{ raise_exception('system first') }}")
    assert "none.jinja" in model_mistake(f"model.path={folder}", "model.chat_template=none.jinja")


# --- the real command


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("+sft.lrr=1",), "error: sft.lrr: no such setting; did you mean sft.lr?"),
        (("data=jsonl", "data.path=none.jsonl"), "error: data.path=none.jsonl does not exist"),
        (("sft.lrr=1",), "error: sft.lrr: no such setting; python train.py --cfg job -p sft shows them all"),
        (("sft.lr=[",), "error: "),
        (("model=gpt5",), "error: In 'config': Could not find 'model/gpt5'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path, overrides: tuple[str, ...], line: str) -> None:
    ended = run_train(*overrides, cwd=tmp_path)
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    assert last.startswith(line)
    assert all("checking the settings" in said for said in before)
    assert not (tmp_path / "store").exists()


def test_a_wrong_flag_is_hydras_own_and_exit_code_2(tmp_path: Path) -> None:
    assert run_train("--nonsense", cwd=tmp_path).returncode == 2


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    ended = run_train("negatives=0", cwd=tmp_path, env={"HYDRA_FULL_ERROR": "1"})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "UserError: negatives=0" in ended.stderr


def test_help_and_the_whole_config(tmp_path: Path) -> None:
    shown = run_train("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines())) <= 150
    assert all(f"{group}: " in shown.stdout for group in GROUPS)
    job = run_train("--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(job.stdout)
    assert set(GROUPS) | {"negatives", "seed", "store", "output"} <= config.keys()
    assert not (tmp_path / "store").exists()


# --- generators that have one model


ELSEWHERE = [("openai", ""), ("import", "generator.path=")]


def own_generator(tmp_path: Path, option: str, given: str) -> DictConfig:
    """The tiny job with another generator; candidates are those of its first training prompt."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Who?", "responses": list("abcdefgh")}))
    chosen = composed(*[o for o in TINY if not o.startswith("generator.")], f"generator={option}")
    if given:
        chosen.generator.path = str(tmp_path / "own.jsonl")
    return chosen


@pytest.mark.parametrize(("option", "given"), ELSEWHERE)
def test_rounds_need_a_generator_that_follows_the_model(tmp_path: Path, option: str, given: str) -> None:
    assert mistake("rounds=2", choose=own_generator(tmp_path, option, given)).startswith("rounds=2: each samples from")


def test_an_evaluation_needs_a_backend_that_follows_the_model() -> None:
    said = mistake(choose=composed(*TINY, "backend@evaluation.backend=openai"))
    assert said.startswith("evaluation.backend: a server has one model")


def test_imported_candidates_are_compared_with_the_data_before_any_compute(tmp_path: Path) -> None:
    said = mistake(choose=own_generator(tmp_path, "import", "generator.path="))
    assert said.endswith("own.jsonl: none of its 1 prompts is one of the training split's")


# --- the method and its baselines


ARMS = sorted(file.stem for file in (CONF / "arm").glob("*.yaml"))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_config_of_the_built_in_data(arm: str) -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out")
    parts = configure(composed(f"arm={arm}", *small, "trainer.tokens=1000"))  # one arm wants it given
    expected = {
        "self_contrast": ("Self-Contrast", 8, 1, 32, 16),
        "no_filter": ("no filter", 8, 1, 32, 16),
        "dpo_std": ("DPO_std", 1, 1, 1, 1),
        "spin": ("SPIN", 1, 3, 1, 1),
        "sft_continued": ("SFT continued", 8, 1, 32, 16),
        "sft": ("none", 8, 0, 32, 16),
        "equal_tokens": ("K=1, tokens of the largest K", 1, 1, 32, 16),
        "random_negatives": ("random negatives", 8, 1, 32, 16),
    }
    pool = (parts.generator.samples, parts.filter.max_negatives)
    assert (parts.method, parts.negatives, parts.rounds, *pool) == expected[arm]


def test_the_command_line_overrides_an_arm() -> None:
    assert composed("arm=spin", "rounds=2").rounds == 2
    assert composed("arm=dpo_std", "generator=hf").generator.samples == 32


def test_standard_pairs_cannot_be_drawn_again() -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16")
    assert mistake("rounds=2", choose=composed("arm=dpo_std", *small)).startswith("rounds=2: each samples from")


def test_lm_evals_backends(tmp_path: Path) -> None:
    """vLLM's interpreter is looked for before any compute; a server's API gives no likelihoods."""
    name = "evaluation.lm_eval.backend"
    with pytest.raises(UserError, match=r"evaluation\.lm_eval\.backend: backend\.python=.*nowhere: cannot be run"):
        configure(composed(f"backend@{name}=vllm", f"{name}.python={tmp_path}/nowhere", "output=out"))
    with pytest.raises(UserError, match=r"evaluation\.lm_eval\.backend: hf or vllm"):
        configure(composed(f"backend@{name}=openai", "output=out"))


def test_a_cap_of_the_jobs_judgments_with_a_price() -> None:
    name = "evaluation.benchmarks.mt_bench"
    price = "{_target_: selfcontrast.evaluation.judges.budget.Price, prompt: 2.5, completion: 10}"
    judge = (f"+benchmark@{name}=mt_bench", f"{name}.judge.model=x", f"{name}.judge.reading.price={price}")
    parts = configure(composed(*judge, "evaluation.cap=5", "output=out"))
    assert parts.evaluation.cap == 5
    assert parts.evaluation.benchmarks["mt_bench"].judge.reading.price.of(1e6, 1e6) == 12.5


def test_all_benchmarks_can_be_left_out() -> None:
    none = [f"~benchmark@evaluation.benchmarks.{name}" for name in ("dialogues", "pairwise")]
    assert configure(composed(*none, "output=out")).evaluation.benchmarks == {}
