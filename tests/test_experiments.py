"""Compare the settings of the paper's experiments with a table written by hand, and compose each experiment.

[repo] means the scripts and code of the reference implementation. [paper] means the paper's text.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from jobs import ROOT
from selfcontrast.config import Parts, build, configure
from selfcontrast.debug import write_debug
from selfcontrast.errors import UserError
from selfcontrast.generators.vllm import VLLM
from test_config import composed

CONF = ROOT / "conf" / "experiment"
DATA = ("hh_rlhf", "ultrachat", "nectar")
METHODS = ("sft", "dpo_std", "spin", "self_contrast")
EXPERIMENTS = [f"{data}/{method}" for data in DATA for method in METHODS]


def overrides_of(experiment: str) -> list[str]:
    """Return train.py's overrides for DATA/METHOD. UltraChat has no pairs, so DPO_std takes them from another set."""
    data, method = experiment.split("/")
    pairs = "_pairs" if experiment == "ultrachat/dpo_std" else ""
    return ["+experiment=paper", f"data={data}{pairs}", f"method={method}"]


FOR_ALL_DATA = {  # from [repo]
    "seed": 42,
    "max_length": 2048,
    "objective._target_": "selfcontrast.objectives.SelfContrast",
    "objective.beta": 0.1,
    "objective.label_smoothing": 0.0,
    "objective.nll_weight": 0.0,  # dpo_ftx in [repo]
    "objective.length_normalised": False,
    "trainer.optimizer": "adamw",
    "trainer.lr": 5e-7,
    "trainer.epochs": 1,
    "trainer.tokens": None,
    "trainer.schedule": "cosine",
    "trainer.warmup_ratio": 0.0,  # not set in [repo]: transformers' default
    "trainer.weight_decay": 0.0,
    "trainer.betas": [0.9, 0.999],
    "trainer.max_grad_norm": 1.0,
    "trainer.batch_size": 128,
    "hardware.accelerator": "gpu",
    "hardware.precision": "bf16-mixed",
    "hardware.devices": 8,
    "adapter._target_": "selfcontrast.models.adapters.NoAdapter",  # full fine-tuning
    "encoder.path": "WhereIsAI/UAE-Large-V1",
    "encoder.pooling": "cls",
    "encoder.prefix": "",
    "filter.seed": 42,
    "filter.on_shortage": "drop_everywhere",
    "evaluation.decodings.0.temperature": 1.0,
    "evaluation.decodings.0.samples": 1,
    "evaluation.top_p": 1.0,
    "evaluation.max_new_tokens": 2048,
    "evaluation.benchmarks.reward.samples": 1,
    "evaluation.benchmarks.reward.reward_model.path": "./models/Starling-RM-7B-alpha",
    "evaluation.benchmarks.reward.reward_model.max_tokens": 2048,
    "evaluation.benchmarks.reward.reward_model.read_at": "published",
}
SFT = {
    "sft.lr": 5e-6,
    "sft.epochs": 1,
    "sft.schedule": "cosine",
    "sft.warmup_ratio": 0.0,
    "sft.batch_size": 128,
    "sft.max_length": 1024,
}
BY_DATA: dict[str, dict[str, Any]] = {
    "hh_rlhf": {
        **SFT,
        "data.train.path": "Anthropic/hh-rlhf",
        "model.path": "mistralai/Mistral-7B-v0.1",
        "model.chat_template": "zephyr",
        "model.added_tokens": [],
        "trainer.max_length": 2048,
    },
    "ultrachat": {
        "data.test.path": "HuggingFaceH4/ultrachat_200k",
        "data.test.split": "test_sft",
        "model.path": "alignment-handbook/zephyr-7b-sft-full",
        "model.chat_template": "zephyr",
        "sft.epochs": 0,  # the model is fine-tuned already
        "trainer.max_length": 2048,
    },
    "nectar": {
        **SFT,
        "data.train.path": "berkeley-nest/Nectar",
        "model.path": "mistralai/Mistral-7B-v0.1",
        "model.chat_template": "openchat",
        "model.added_tokens": ["<|end_of_turn|>"],
        "trainer.max_length": 1024,
    },
}
SAMPLED = {
    "generator.temperature": 1.0,
    "generator.top_p": 1.0,
    "generator.max_length": 2048,
    "generator.max_new_tokens": 2048,
    "generator.prompts": None,
}
BY_METHOD: dict[str, dict[str, Any]] = {
    "sft": {"iterations": 0},
    "dpo_std": {
        "label": "DPO_std",
        "iterations": 1,
        "negatives": 1,
        "generator._target_": "selfcontrast.generators.pairs.Pairs",
        "generator.prompts": None,
        "filter.selector._target_": "selfcontrast.filters.selectors.Everything",
        "filter.max_negatives": 1,
    },
    "spin": {
        **SAMPLED,
        "label": "SPIN",
        "iterations": 3,  # [paper] says that it is iterated; the number is unknown
        "negatives": 1,
        "generator.samples": 1,
        "filter.selector._target_": "selfcontrast.filters.selectors.Everything",
        "filter.max_negatives": 1,
    },
    "self_contrast": {
        **SAMPLED,
        "label": "Self-Contrast",
        "iterations": 1,
        "negatives": 16,
        "generator.samples": 32,
        "filter.selector._target_": "selfcontrast.filters.selectors.LeastSimilar",
        "filter.selector.fraction": 0.75,  # known only for HH-RLHF
        "filter.selector.of": "samples",
        "filter.max_negatives": 16,
    },
}


def setting(cfg: DictConfig, key: str) -> Any:
    value: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in key.split("."):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value if not isinstance(value, str) or "${" not in value else OmegaConf.select(cfg, key)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_settings_equal_the_table(experiment: str) -> None:
    data, method = experiment.split("/")
    cfg = composed(*overrides_of(experiment))
    expected = {**FOR_ALL_DATA, **BY_DATA[data], **BY_METHOD[method]}
    assert {key: setting(cfg, key) for key in expected} == expected


def test_experiment_files_name_their_command_and_add_to_existing_options() -> None:
    experiments = {file.stem: file.read_text() for file in CONF.glob("*.yaml")}
    for name, text in experiments.items():
        assert f"+experiment={name}" in text
    for file in CONF.glob("*/*/*.yaml"):
        group, name = file.parent.parent.name, file.parent.name
        assert name in experiments
        assert (CONF.parent / group / file.name).is_file()
        assert file.read_text().startswith("# @package _global_\n")


def test_release_data_takes_the_settings_of_another_data_set() -> None:
    """See conf/experiment/data/paper/self_contrast_release.yaml."""
    release = ("+experiment=paper", "data=self_contrast_release")
    assert composed(*release).model == composed(*overrides_of("hh_rlhf/spin")).model
    for part in ("model", "trainer", "published"):
        assert composed(*release, "experiment/data=paper/nectar")[part] == composed(*overrides_of("nectar/spin"))[part]


def test_experiment_with_sft_none_does_not_fine_tune() -> None:
    """See docs/reproduction.md: sft=none model.path=FOLDER uses a model that is fine-tuned already."""
    assert composed(*overrides_of("hh_rlhf/spin"), "sft=none").sft.epochs == 0


def test_method_overrides_the_samples_of_an_experiment() -> None:
    """SPIN draws one response. With any backend, the response length is that of the experiment."""
    for generator in ("hf", "vllm", "openai"):
        spin = composed(*overrides_of("hh_rlhf/spin"), f"generator={generator}")
        assert (spin.generator.samples, spin.negatives, spin.generator.max_new_tokens) == (1, 1, 2048)


EVERYTHING, LEAST = (f"selfcontrast.filters.selectors.{name}" for name in ("Everything", "LeastSimilar"))
PREFERENCE, LIKELIHOOD = (f"selfcontrast.objectives.{name}" for name in ("SelfContrast", "TargetLikelihood"))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("no_filter", ("no filter", EVERYTHING, PREFERENCE)),
        ("sft_continued", ("SFT continued", LEAST, LIKELIHOOD)),
    ],
)
def test_baseline_shares_prompts_and_samples_with_self_contrast(method: str, expected: tuple[str, ...]) -> None:
    self_contrast, baseline = (composed(*overrides_of(f"nectar/{name}")) for name in ("self_contrast", method))
    assert (baseline.label, baseline.filter.selector._target_, baseline.objective._target_) == expected
    for part in ("data", "model", "sft", "generator", "encoder", "trainer", "evaluation", "negatives", "iterations"):
        assert baseline[part] == self_contrast[part], part


def test_random_control_has_the_fraction_of_the_papers_filter() -> None:
    control = composed(*overrides_of("hh_rlhf/random_negatives")).filter.selector
    assert control._target_ == "selfcontrast.filters.selectors.Random"
    assert (control.fraction, control.of) == (0.75, "samples")
    assert composed().filter.selector.of == "distinct"


SOURCES = ("[repo]", "[paper]", "unknown", "our choice", "ours", "docs/")


PAPER = sorted([CONF / "paper.yaml", *CONF.glob("*/paper/*.yaml")])


@pytest.mark.parametrize("file", PAPER, ids=lambda file: str(file.relative_to(CONF)))
def test_paper_settings_name_their_source(file: Path) -> None:
    """Each line with a value gives its source, or says that the value is unknown or our choice."""
    for line in file.read_text().splitlines():
        key, _, value = line.partition("#")[0].strip().partition(":")
        if key and value and not line.lstrip().startswith("- "):
            assert any(word in line for word in SOURCES), line


@pytest.mark.parametrize("data", ["hh_rlhf", "ultrachat", "ultrachat_pairs", "nectar"])
def test_hub_data_and_models_are_pinned(data: str) -> None:
    cfg = composed(f"data={data}").data
    for part in filter(None, (cfg.train, cfg.test)):
        assert len(part.revision) == 40
    experiment = composed("+experiment=paper", f"data={data}", "method=sft")
    assert len(experiment.model.revision) == 40


def test_docs_tell_how_to_pin_the_encoder() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text().partition("## What could differ")[2]
    assert composed(*overrides_of("hh_rlhf/sft")).encoder.revision is None
    assert "encoder.revision=COMMIT" in text


# --- the checks before compute


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write small copies of the hub's data sets and models."""
    folder = tmp_path_factory.mktemp("debug")
    write_debug(folder)
    return folder


def check_experiment(experiment: str, debug: Path, *overrides: str) -> Parts:
    """Build the paper's settings with local models and data, and without a GPU."""
    local = (
        "hardware=cpu",
        "tracking=none",
        "output=out",
        f"data.root={debug}",
        f"model.path={debug / 'model'}",
        "model.revision=null",
        f"evaluation.benchmarks.reward.reward_model.path={debug / 'reward'}",
        "data.validation=0.1",
        "data.test_fraction=0.25",
    )
    return configure(composed(*overrides_of(experiment), "hardware.devices=1", *local, *overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_passes_the_checks_before_compute(experiment: str, debug: Path) -> None:
    parts = check_experiment(experiment, debug)
    assert all(parts.splits.values())
    if experiment.endswith("dpo_std"):
        assert all(example.rejected for example in parts.splits["train"])


def test_experiment_accepts_every_k_of_the_paper_and_refuses_a_larger_k(debug: Path) -> None:
    for count in (1, 2, 4, 8, 16):
        assert check_experiment("hh_rlhf/self_contrast", debug, f"negatives={count}").negatives == count
    with pytest.raises(UserError, match=r"negatives=17 .*filter\.max_negatives=16"):
        check_experiment("hh_rlhf/self_contrast", debug, "negatives=17")
    with pytest.raises(UserError, match=r"filter\.max_negatives=16 .*keeps at most 8 of generator\.samples=32"):
        check_experiment("hh_rlhf/self_contrast", debug, "filter.selector.fraction=0.25")


def test_missing_reward_model_is_reported_before_compute(debug: Path) -> None:
    path = "evaluation.benchmarks.reward.reward_model.path=./models/Starling-RM-7B-alpha"
    with pytest.raises(UserError, match=r"reward_model\.path=\./models/Starling-RM-7B-alpha: "):
        check_experiment("hh_rlhf/sft", debug, path)


def test_authors_pairs_are_accepted_as_candidates(debug: Path, tmp_path: Path) -> None:
    """The command is that of docs/reproduction.md, with two pairs per prompt."""
    folder = tmp_path / "HH-RLHF"
    rows = [{"instruction": f"Q{i}?", "output": ["Yes.", f"No {n}."], "history": []} for i in range(20) for n in (1, 2)]
    for name, file_rows in (("Self-Contrast_2/train.jsonl", rows[:20]), ("test.jsonl", rows[20:])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in file_rows))
    parts = configure(
        composed(
            "+experiment=paper",
            "method=dpo_std",
            "data=self_contrast_release",
            f"data.root={tmp_path}",
            "data.rows=Self-Contrast_2",
            "generator=import",
            f"generator.path={folder / 'Self-Contrast_2'}",
            "filter.max_negatives=2",
            "negatives=2",
            "label=Self-Contrast",
            "hardware=cpu",
            "hardware.devices=1",
            "tracking=none",
            "output=out",
            f"model.path={debug / 'model'}",
            "model.revision=null",
            f"evaluation.benchmarks.reward.reward_model.path={debug / 'reward'}",
        )
    )
    assert parts.generator.samples == 2
    assert len(parts.splits["train"]) + len(parts.splits["validation"]) == len(parts.splits["test"]) == 10


def test_published_mt_bench_values_need_the_questions_of_fastchat(debug: Path, tmp_path: Path) -> None:
    entry = {"system": "SFT", "negatives": None, "benchmark": "mt_bench", "what": "mean", "page": 1, "source": "a test"}
    (tmp_path / "figures.yaml").write_text(json.dumps([{**entry, "figure": 5.0}]))
    question = {"question_id": 1, "category": "writing", "turns": ["One?", "Two?"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(question) + "\n")
    bench = "evaluation.benchmarks.mt_bench"
    overrides = (
        f"+benchmark@{bench}=mt_bench",
        f"{bench}.judge.model=judge",
        "published=" + str(tmp_path / "figures.yaml"),
    )
    with pytest.raises(UserError, match=r"mt_bench.*questions=ours"):
        check_experiment("hh_rlhf/sft", debug, *overrides)
    with pytest.raises(UserError, match=r"questions=None"):
        check_experiment("hh_rlhf/sft", debug, *overrides, f"{bench}.questions=null")
    parts = check_experiment("hh_rlhf/sft", debug, *overrides, f"{bench}.questions={tmp_path / 'question.jsonl'}")
    assert len(parts.published) == 1
    assert check_experiment("hh_rlhf/sft", debug, *overrides[:2], "published=hh_rlhf").published == []


def test_debug_tiny_changes_lengths_and_batch_sizes_but_not_the_method(debug: Path) -> None:
    full, small = (
        json.loads(json.dumps(OmegaConf.to_container(composed(*overrides_of("hh_rlhf/self_contrast"), *more))))
        for more in ((), ("+debug=tiny",))
    )
    assert small["max_length"] == 256
    assert small["generator"] == full["generator"]
    assert small["filter"] == full["filter"]
    assert small["objective"] == full["objective"]
    for optim in ("sft", "trainer"):
        assert small[optim] == {**full[optim], "batch_size": 8}


@pytest.mark.parametrize(("experiment", "batch_size"), [("gsm8k", 1024), ("gsm8k_laptop", 64), ("miniature", 256)])
def test_experiment_accepts_another_backend(experiment: str, batch_size: int) -> None:
    chosen = f"+experiment={experiment}"
    assert composed(chosen).generator.backend.batch_size == batch_size
    assert isinstance(build(composed(chosen, "generator=vllm").generator.backend, "generator.backend"), VLLM)
