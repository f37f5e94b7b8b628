"""Check that every mistake in the settings is reported in one line before compute."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from jobs import TINY
from selfcontrast.checks import check_iterations
from selfcontrast.config import build, configure
from selfcontrast.errors import UserError
from test_config import composed, mistake
from tiny import policy_folder

pytestmark = pytest.mark.usefixtures("quiet_environment")


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("data.trian", "data.train"),
        ("model.hiden", "model.hidden"),
        ("sft.learning_rate", None),
        ("sft.lrr", "sft.lr"),
        ("generator.sample", "generator.samples"),
        ("generator.backend.batch", "generator.backend.batch_size"),
        ("encoder.pth", "encoder.path"),
        ("filter.max_negative", "filter.max_negatives"),
        ("filter.selector.fractions", "filter.selector.fraction"),
        ("objective.betta", "objective.beta"),
        ("trainer.epoch", "trainer.epochs"),
        ("hardware.thread", "hardware.threads"),
        ("evaluation.prompt", "evaluation.prompts"),
        ("tracking.projekt", "tracking.project"),
    ],
)
def test_build_unknown_key_names_the_closest_key(misspelt: str, meant: str | None) -> None:
    message = mistake(f"{misspelt}=1")
    assert message.startswith(f"{misspelt}: no such setting")
    assert (f"Did you mean {meant}?" if meant else "optimizer, lr, ") in message


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("negatives=0", "negatives=0: must be greater than or equal to 1"),
        ("negatives=-1", "negatives=-1: must be greater than or equal to 1"),
        ("negatives=many", "negatives=many: must be a valid integer"),
        ("negatives=2.5", "negatives=2.5: must be a valid integer"),
        ("negatives=true", "negatives=True: must be a number, not true or false"),
        ("negatives=null", "negatives=None: must be a valid integer"),
        ("iterations=-1", "iterations=-1: must be greater than or equal to 0"),
        ("label=SFT", "label=SFT: "),
        ("negatives=5", "negatives=5 "),
        ("seed=-1", "seed=-1: must be greater than or equal to 0"),
        (
            "filter.max_negatives=7",  # refill may use all 6 samples
            "filter.max_negatives=7 ",
        ),
    ],
)
def test_configure_wrong_top_level_value_is_refused_with_its_key(override: str, start: str) -> None:
    assert mistake(override).startswith(start)


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
        ("trainer.epochs=0", ["trainer.epochs=0", "iterations=0"]),
        ("model.hidden=63", ["model.hidden=63"]),
        ("model.dtype=int4", ["model.dtype=int4", "float32, bfloat16"]),
        ("generator.temperature=0", ["generator.temperature=0"]),
        ("filter.selector.fraction=0", ["filter.selector.fraction=0"]),
        ("filter.selector.fraction=1.5", ["filter.selector.fraction=1.5"]),
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
        ("hardware.attention=flex", ["hardware.attention=flex", "cpu", "auto"]),
        ("evaluation.split=train", ["evaluation.split=train", "validation or test"]),
        ("evaluation.lm_eval.tasks=[nothing_so]", ["evaluation.lm_eval.tasks=nothing_so", "target_choice"]),
        ("evaluation.lm_eval.tasks=[humaneval]", ["tasks=humaneval", "confirm_run_unsafe_code=true"]),
        ("evaluation.lm_eval.fewshot=-1", ["evaluation.lm_eval.fewshot=-1", "null"]),
        ("evaluation.max_cost=5", ["evaluation.max_cost=5", "judge.reading.price"]),
        ("evaluation.judgments_shown=0", ["evaluation.judgments_shown=0", "or null"]),
        ("evaluation.decodings=[]", ["evaluation.decodings", "at least one"]),
        ("evaluation.decodings=[7]", ["evaluation.decodings[0]=7"]),
        ("evaluation.decodings=[{name: a, samples: 1}]", ["evaluation.decodings", "temperature"]),
        ("evaluation.decodings=[{name: a, temperature: hot, samples: 1}]", ["evaluation.decodings"]),
        (
            "evaluation.decodings=[{name: a, temperature: 0, samples: 4}]",
            ["temperature=0", "samples=1"],
        ),
        ("tracking.mode=cloud", ["tracking.mode=cloud", "offline"]),
        ("tracking.mode=online", ["online needs a key", "WANDB_API_KEY"]),
        ("encoder.path=./nowhere", ["encoder.path=./nowhere", "no such folder"]),
        ("target_metric=elegance", ["target_metric=elegance", "score"]),
    ],
)
def test_configure_wrong_value_is_refused_with_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, override: str, parts: list[str]
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))  # hide the key of the developer
    message = mistake(override)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("adapter.rank=0", "adapter.rank=0: must be greater than or equal to 1"),
        (
            "adapter.target_modules=[q_proj,queries]",
            "adapter.target_modules: queries ",
        ),
        (
            "adapter.stages=[sft,align]",
            "adapter.stages=['sft', 'align']: ",
        ),
    ],
)
def test_configure_wrong_adapter_setting_is_refused_with_its_key(override: str, start: str) -> None:
    assert mistake(override, base=composed(*TINY, "adapter=lora")).startswith(start)


@pytest.mark.parametrize(
    ("package", "setting", "fix"),
    [
        ("peft", "adapter=lora", "pip install -e '.[peft]'"),
        ("bitsandbytes", "sft.optimizer=adamw_8bit", "pip install -e '.[8bit]'"),
    ],
)
def test_configure_missing_package_names_the_fix(
    monkeypatch: pytest.MonkeyPatch, package: str, setting: str, fix: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = mistake(base=composed(*TINY, setting))
    assert message.startswith(f"{setting} needs {package}")
    assert fix in message


def test_build_adapter_setting_without_adapter_is_refused() -> None:
    assert mistake("adapter.rank=8").startswith("adapter.rank: no such setting")


def test_configure_unknown_store_protocol_is_refused() -> None:
    assert mistake("store=s4://bucket/path", "output=out").startswith("store=s4://bucket/path: ")


def test_configure_unknown_wandb_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "cloud")
    assert mistake().startswith("WANDB_MODE=cloud")


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
def test_configure_bad_data_file_names_file_and_line(tmp_path: Path, name: str, content: str, parts: list[str]) -> None:
    (tmp_path / name).write_text(content)
    message = mistake(base=composed("data=jsonl", f"data.path={tmp_path / name}"))
    assert [part for part in parts if part not in message] == []


def test_configure_missing_data_file_is_refused() -> None:
    assert mistake(base=composed("data=jsonl")).startswith("data.path is required")
    assert "data.path=none.jsonl does not exist" in mistake("data.path=none.jsonl", base=composed("data=jsonl"))


FIXED_CANDIDATES = [("openai", False), ("import", True)]


def job_with_generator(tmp_path: Path, option: str, has_file: bool, *more: str) -> DictConfig:
    """Return the tiny job's config with another generator, whose file has candidates for one prompt."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Who?", "responses": list("abcdefgh")}))
    chosen = composed(*[o for o in TINY if not o.startswith("generator.")], f"generator={option}", *more)
    if has_file:
        chosen.generator.path = str(tmp_path / "own.jsonl")
    return chosen


def test_configure_sampler_log_probs_without_a_source_are_refused(tmp_path: Path) -> None:
    for override, setting in (("reference=sampler", "reference=sampler"), ("objective=dft", "objective=DFT")):
        message = mistake(base=job_with_generator(tmp_path, "import", True, override))
        assert message.startswith(f"{setting} needs the sampler's log-probabilities")
        assert "generator=Import" in message


def test_configure_reference_sampler_of_another_model_or_prompt_is_refused(tmp_path: Path) -> None:
    for message in (
        mistake("reference=sampler", base=job_with_generator(tmp_path, "openai", False)),
        mistake("reference=sampler", "generator.system=Be wrong."),
    ):
        assert message.startswith("reference=sampler ")
        assert "generator.system" in message


@pytest.mark.parametrize("override", ["reference=sampler", "objective=dft"])
def test_configure_sampler_log_probs_of_truncated_negatives_are_refused(override: str) -> None:
    message = mistake("trainer.max_length=64", base=composed(*TINY, override))
    assert message.startswith("trainer.max_length=64 ")
    assert "log-probabilities" in message


def test_configure_quantised_base_refuses_another_reference() -> None:
    lora = ("adapter=qlora", "adapter.stages=[align]")
    message = mistake(base=composed(*TINY, *lora, "reference=sampler"))
    assert message.startswith("reference=sampler ")
    assert "adapter=qlora" in message
    several = ("iterations=2", "reference_over_iterations=initial")
    message = mistake(base=composed(*TINY, *lora, *several))
    assert message.startswith("reference_over_iterations=initial ")
    assert "adapter=qlora" in message


@pytest.mark.parametrize("reference", ["none", "sampler"])
def test_configure_rescoring_an_unscored_reference_is_refused(reference: str) -> None:
    message = mistake(
        f"reference={reference}", "hardware.rescore_reference=true", "hardware.max_tokens_per_microbatch=4096"
    )
    assert message.startswith(f"reference={reference} ")
    assert "hardware.rescore_reference=true" in message


@pytest.mark.parametrize("objective", ["swepo", "lipo_lambda"])
def test_configure_objective_with_scores_needs_a_scorer(tmp_path: Path, objective: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    settings = [o for o in TINY if not o.startswith(("data.", "model."))]
    cfg = composed(*settings, "data=jsonl", f"data.path={rows}", f"objective={objective}")
    message = mistake(base=cfg)
    assert "needs scores" in message
    assert "filter.reward_model" in message
    configure(composed(*TINY, f"objective={objective}", "output=out"))  # the built-in data has a verifier


def test_configure_p_gen_at_another_temperature_warns(caplog: pytest.LogCaptureFixture) -> None:
    configure(composed(*TINY, "objective=dft", "output=out"))
    assert "p_gen" not in caplog.text
    configure(composed(*TINY, "objective=dft", "output=out", "generator.temperature=0.7"))
    assert "objective=DFT: p_gen" in caplog.text


@pytest.mark.parametrize(("option", "has_file"), FIXED_CANDIDATES)
def test_configure_iterations_with_fixed_candidates_are_refused(tmp_path: Path, option: str, has_file: bool) -> None:
    assert mistake("iterations=2", base=job_with_generator(tmp_path, option, has_file)).startswith("iterations=2: ")


def test_configure_iterations_with_generator_model_are_refused(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "model")
    assert "generator.model=null" in mistake("iterations=2", f"generator.model={folder}")


@pytest.mark.parametrize("selector", ["least_likely", "rank_sum"])
@pytest.mark.parametrize("option", ["import", "pairs"])
def test_configure_selector_by_log_probs_without_them_is_refused(tmp_path: Path, option: str, selector: str) -> None:
    tiny = [o for o in TINY if not o.startswith("generator.")]
    chosen = composed(*tiny, f"generator={option}", f"filter={selector}", "negatives=1", "filter.max_negatives=1")
    if option == "import":
        first = build(chosen.data, "data").load()["train"][0]
        chosen.generator.path = str(tmp_path / "own.jsonl")
        answered = [*first.prompt, {"role": "assistant", "content": first.target}]
        (tmp_path / "own.jsonl").write_text(json.dumps({"messages": answered, "responses": list("abcdefgh")}))
    message = mistake("filter.selector.fraction=1.0", base=chosen)
    assert "needs the sampler's log-probabilities" in message
    assert "generator=hf" in message


def test_configure_selector_by_log_probs_of_a_server_without_them_is_refused() -> None:
    settings = ("generator=openai", "filter=least_likely", "filter.selector.fraction=1.0", "output=out")
    assert configure(composed(*TINY, *settings)).generator.has_log_probs
    message = mistake(base=composed(*TINY, *settings, "+generator.backend.extra.logprobs=null"))
    assert message.startswith("filter.selector=LeastLikely needs the sampler's log-probabilities")


def test_configure_selector_by_rewards_accepts_verifier_or_reward_model() -> None:
    settings = ("filter=below_mean", "output=out")
    assert configure(composed(*TINY, *settings)).filter.reward_model is None  # the built-in data has a verifier
    by_model = composed("method=best_vs_below_mean", "+reward_model@filter.reward_model=classifier")
    assert set(by_model.filter.reward_model) == set(composed("filter=oracle_reward").filter.reward_model)
    with_model = composed("filter=least_consistent", "+reward_model@filter.reward_model=classifier")
    assert set(with_model.filter.reward_model) == set(composed("filter=oracle_reward").filter.reward_model)


def test_configure_evaluation_by_a_server_is_refused() -> None:
    message = mistake(base=composed(*TINY, "backend@evaluation.backend=openai"))
    assert message.startswith("evaluation.backend=openai ")


def test_configure_imported_candidates_of_other_prompts_are_refused(tmp_path: Path) -> None:
    message = mistake(base=job_with_generator(tmp_path, "import", True))
    assert "own.jsonl" in message
    assert "none of its 1 prompts" in message


def test_configure_iterations_with_standard_pairs_are_refused() -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16")
    assert mistake("iterations=2", base=composed("method=dpo_std", *small)).startswith("iterations=2: ")


def test_configure_lm_eval_backend_that_cannot_run_is_refused(tmp_path: Path) -> None:
    # vLLM's interpreter is missing, and a server's API returns no likelihoods.
    name = "evaluation.lm_eval.backend"
    with pytest.raises(UserError, match=r"evaluation\.lm_eval\.backend: backend\.python=.*nowhere"):
        configure(composed(f"backend@{name}=vllm", f"{name}.python={tmp_path}/nowhere", "output=out"))
    with pytest.raises(UserError, match=r"evaluation\.lm_eval\.backend: "):
        configure(composed(f"backend@{name}=openai", "output=out"))


@dataclass(frozen=True)
class HalfBenchmark:
    """A user's benchmark that lacks most methods."""

    def check(self, verifier: Any) -> None: ...

    def skip_reason(self, examples: Any, verifier: Any) -> None: ...


def test_configure_benchmark_without_methods_is_refused() -> None:
    name = "evaluation.benchmarks.mine"
    message = mistake(f"{name}._target_=test_config_mistakes.HalfBenchmark")
    assert message.startswith(f"{name}=HalfBenchmark: not a benchmark (it lacks ")
    assert "own_prompts" in message
    assert mistake(f"{name}=5").startswith(f"{name}=5: not a benchmark")


def test_configure_lm_eval_backend_without_methods_is_refused() -> None:
    name = "evaluation.lm_eval.backend"
    cfg = composed("output=out")
    cfg.evaluation.lm_eval.backend = {"_target_": "test_config_mistakes.HalfBenchmark"}
    assert mistake(base=cfg).startswith(
        f"{name}=HalfBenchmark: not a backend (it lacks follows_model, has_log_probs, open)"
    )


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (
            ("prompts_over_iterations=disjoint",),
            "prompts_over_iterations=disjoint: 3 .* 64 .* 21",
        ),
        (("prompts_over_iterations=disjoint", "generator.prompts=22"), r"generator\.prompts.* 22.* 21"),
        (("prompts_over_iterations=disjoint", "generator.prompts=null"), r"generator\.prompts.* None"),
        (("prompts_over_iterations=disjoint", "negatives_over_iterations=all"), "negatives_over_iterations=all "),
        (("reference_over_iterations=initial", "hardware.rescore_reference=true"), r"hardware\.rescore_reference=true"),
        (("reference_over_iterations=first",), "reference_over_iterations=first"),
    ],
)
def test_configure_contradicting_settings_of_iterations_are_refused(overrides: tuple[str, ...], pattern: str) -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out", "iterations=3")
    with pytest.raises(UserError, match=pattern):
        configure(composed(*small, *overrides))


@dataclass(frozen=True)
class Fixed:
    """The parts of a user's own generator that `check_iterations` reads; it has no seed."""

    samples: int = 4
    follows_model: bool = True
    has_log_probs: bool = False


def test_all_negatives_over_iterations_need_a_generator_with_a_seed() -> None:
    parts = configure(composed(*TINY, "output=out"))
    generator: Any = Fixed()
    for value in ("last", "all"):
        cfg = composed(*TINY, "output=out", "iterations=2", f"negatives_over_iterations={value}")
        if value == "last":
            check_iterations(cfg, generator, parts.hardware, parts.adapter, 64)
        else:
            with pytest.raises(UserError, match=r"^negatives_over_iterations=all .*generator=Fixed"):
                check_iterations(cfg, generator, parts.hardware, parts.adapter, 64)


def test_configure_enough_disjoint_prompts_are_accepted() -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out", "iterations=3")
    parts = configure(composed(*small, "prompts_over_iterations=disjoint", "generator.prompts=21"))
    assert parts.prompts_over_iterations == "disjoint"


MANY_CHECKPOINTS = ("data.train=64", "generator.prompts=20", "trainer.batch_size=8", "trainer.epochs=2")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ((), 6),  # ceil(20 / 8) in each of two epochs
        (("generator.prompts=null",), 16),
        (("generator.prompts=999",), 16),
        (("chosen=target_and_best",), 10),  # two groups per prompt
        (("chosen=best_of_n",), 6),
    ],
)
def test_configure_more_checkpoints_than_steps_are_refused(changes: tuple[str, ...], steps: int) -> None:
    small = (*TINY, *MANY_CHECKPOINTS, *changes, "output=out")
    configure(composed(*small, f"evaluation.checkpoints={steps}"))
    with pytest.raises(UserError, match=rf"^evaluation\.checkpoints={steps + 1}, .* at most {steps} steps\. Lower it"):
        configure(composed(*small, f"evaluation.checkpoints={steps + 1}"))


@pytest.mark.parametrize("unknown", ["trainer.tokens=1000", "iterations=0"])
def test_configure_checkpoints_with_unknown_steps_are_accepted(unknown: str) -> None:
    configure(composed(*TINY, *MANY_CHECKPOINTS, unknown, "evaluation.checkpoints=99", "output=out"))
