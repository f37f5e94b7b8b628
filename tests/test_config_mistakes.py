"""Every mistake in the settings is one line before any compute."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from jobs import TINY
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
        ("iterations=-1", "iterations=-1: must be greater than or equal to 0"),
        ("label=SFT", "label=SFT: the fine-tuned model has that name; give the policy another"),
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
        ("hardware.attention=flex", ["hardware.attention=flex", "cpu", "use auto"]),
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


ELSEWHERE = [("openai", ""), ("import", "generator.path=")]


def own_generator(tmp_path: Path, option: str, given: str, *more: str) -> DictConfig:
    """The tiny job with another generator; candidates are those of its first training prompt."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Who?", "responses": list("abcdefgh")}))
    chosen = composed(*[o for o in TINY if not o.startswith("generator.")], f"generator={option}", *more)
    if given:
        chosen.generator.path = str(tmp_path / "own.jsonl")
    return chosen


def test_the_samplers_log_probabilities_need_a_generator_that_tells_them(tmp_path: Path) -> None:
    for override, who in (("reference=sampler", "reference=sampler"), ("objective=dft", "objective=DFT")):
        assert mistake(choose=own_generator(tmp_path, "import", "generator.path=", override)) == (
            f"{who} needs the sampler's log-probabilities, and generator=Import has none: use generator=hf or vllm, or "
            "choose another"
        )


def test_a_reference_by_the_sampler_is_of_the_model_that_scores_targets(tmp_path: Path) -> None:
    said = "reference=sampler: candidates come from another model or prompt than targets are scored by"
    assert mistake("reference=sampler", choose=own_generator(tmp_path, "openai", "")).startswith(said)
    assert mistake("reference=sampler", "generator.system=Be wrong.").startswith(said)


@pytest.mark.parametrize("override", ["reference=sampler", "objective=dft"])
def test_negatives_that_may_be_cut_have_no_log_probabilities(override: str) -> None:
    said = mistake("trainer.max_length=64", choose=composed(*TINY, override))
    assert said.startswith("trainer.max_length=64 may cut negatives")


def test_a_quantised_base_is_its_own_reference() -> None:
    lora = ("adapter=qlora", "adapter.stages=[align]")
    assert "reference=sampler with adapter=qlora" in mistake(choose=composed(*TINY, *lora, "reference=sampler"))
    several = ("iterations=2", "reference_over_iterations=initial")
    assert "adapter=qlora score the model" in mistake(choose=composed(*TINY, *lora, *several))


@pytest.mark.parametrize("reference", ["none", "sampler"])
def test_a_reference_that_is_not_scored_is_not_scored_again(reference: str) -> None:
    said = mistake(
        f"reference={reference}", "hardware.rescore_reference=true", "hardware.max_tokens_per_microbatch=4096"
    )
    assert said == f"reference={reference} with hardware.rescore_reference=true: use reference=stored"


@pytest.mark.parametrize("objective", ["swepo", "lipo_lambda"])
def test_scores_need_something_that_scores(tmp_path: Path, objective: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    settings = [o for o in TINY if not o.startswith(("data.", "model."))]
    cfg = composed(*settings, "data=jsonl", f"data.path={rows}", f"objective={objective}")
    assert "needs scores, and this data has no verifier: give filter.reward_model" in mistake(choose=cfg)
    configure(composed(*TINY, f"objective={objective}", "output=out"))  # the built-in data has one


def test_p_gen_at_another_temperature_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    configure(composed(*TINY, "objective=dft", "output=out"))
    assert "p_gen" not in caplog.text
    configure(composed(*TINY, "objective=dft", "output=out", "generator.temperature=0.7"))
    assert "objective=DFT: p_gen is the sampler's probability at temperature 1" in caplog.text


@pytest.mark.parametrize(("option", "given"), ELSEWHERE)
def test_rounds_need_a_generator_that_follows_the_model(tmp_path: Path, option: str, given: str) -> None:
    assert mistake("iterations=2", choose=own_generator(tmp_path, option, given)).startswith(
        "iterations=2: each samples from"
    )


def test_rounds_need_candidates_of_each_policy(tmp_path: Path) -> None:
    own = policy_folder(tmp_path / "model")
    assert mistake("iterations=2", f"generator.model={own}").endswith("generator=vllm, with generator.model=null")


@pytest.mark.parametrize("selector", ["least_likely", "rank_sum"])
@pytest.mark.parametrize("option", ["import", "pairs"])
def test_a_selector_by_log_probabilities_needs_a_generator_that_has_them(
    tmp_path: Path, option: str, selector: str
) -> None:
    tiny = [o for o in TINY if not o.startswith("generator.")]
    chosen = composed(*tiny, f"generator={option}", f"filter={selector}", "negatives=1", "filter.max_negatives=1")
    if option == "import":
        first = build(chosen.data, "data").load()["train"][0]
        chosen.generator.path = str(tmp_path / "own.jsonl")
        answered = [*first.prompt, {"role": "assistant", "content": first.target}]
        (tmp_path / "own.jsonl").write_text(json.dumps({"messages": answered, "responses": list("abcdefgh")}))
    said = mistake("filter.selector.fraction=1.0", choose=chosen)
    assert "needs the sampler's log-probabilities, and this generator has none: use generator=hf" in said


def test_a_server_that_is_not_asked_for_log_probabilities_has_none() -> None:
    asked = ("generator=openai", "filter=least_likely", "filter.selector.fraction=1.0", "output=out")
    assert configure(composed(*TINY, *asked)).generator.has_log_probs
    said = mistake(choose=composed(*TINY, *asked, "+generator.backend.extra.logprobs=null"))
    assert said.startswith("filter.selector=LeastLikely needs the sampler's log-probabilities")


def test_a_selector_by_rewards_needs_something_that_scores() -> None:
    settings = ("filter=below_mean", "output=out")
    assert configure(composed(*TINY, *settings)).filter.reward_model is None  # the built-in data has a verifier
    by_model = composed("method=best_vs_below_mean", "+reward_model@filter.reward_model=classifier")
    assert set(by_model.filter.reward_model) == set(composed("filter=oracle_reward").filter.reward_model)
    with_model = composed("filter=least_consistent", "+reward_model@filter.reward_model=classifier")
    assert set(with_model.filter.reward_model) == set(composed("filter=oracle_reward").filter.reward_model)


def test_an_evaluation_needs_a_backend_that_follows_the_model() -> None:
    said = mistake(choose=composed(*TINY, "backend@evaluation.backend=openai"))
    assert said.startswith("evaluation.backend: a server has one model")


def test_imported_candidates_are_compared_with_the_data_before_any_compute(tmp_path: Path) -> None:
    said = mistake(choose=own_generator(tmp_path, "import", "generator.path="))
    assert said.endswith("own.jsonl: none of its 1 prompts is one of the training split's")


def test_standard_pairs_cannot_be_drawn_again() -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16")
    assert mistake("iterations=2", choose=composed("method=dpo_std", *small)).startswith(
        "iterations=2: each samples from"
    )


def test_lm_evals_backends(tmp_path: Path) -> None:
    """vLLM's interpreter is looked for before any compute; a server's API gives no likelihoods."""
    name = "evaluation.lm_eval.backend"
    with pytest.raises(UserError, match=r"evaluation\.lm_eval\.backend: backend\.python=.*nowhere: cannot be run"):
        configure(composed(f"backend@{name}=vllm", f"{name}.python={tmp_path}/nowhere", "output=out"))
    with pytest.raises(UserError, match=r"evaluation\.lm_eval\.backend: .*hf or vllm"):
        configure(composed(f"backend@{name}=openai", "output=out"))


@dataclass(frozen=True)
class HalfBenchmark:
    """A benchmark of somebody's own that lacks most methods."""

    def check(self, verifier: Any) -> None: ...

    def skip_reason(self, examples: Any, verifier: Any) -> None: ...


def test_a_benchmark_that_lacks_methods_is_refused() -> None:
    name = "evaluation.benchmarks.mine"
    assert mistake(f"{name}._target_=test_config_mistakes.HalfBenchmark") == (
        f"{name}=HalfBenchmark: no benchmark (it lacks answer_request, lines, own_prompts, relative, run): "
        "choose one of the files in conf, which name a _target_"
    )
    assert mistake(f"{name}=5").startswith(f"{name}=5: no benchmark: choose one of the files in conf")


def test_a_backend_of_lm_eval_that_lacks_methods_is_refused() -> None:
    name = "evaluation.lm_eval.backend"
    cfg = composed("output=out")
    cfg.evaluation.lm_eval.backend = {"_target_": "test_config_mistakes.HalfBenchmark"}
    assert mistake(choose=cfg).startswith(
        f"{name}=HalfBenchmark: no backend (it lacks follows_model, has_log_probs, open): "
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("prompts_over_iterations=disjoint",),
            "disjoint: 3 rounds share 64 training prompts, so .*21$",
        ),
        (
            ("prompts_over_iterations=disjoint", "generator.prompts=22"),
            r"generator\.prompts=22 must be a number up to 21$",
        ),
        (
            ("prompts_over_iterations=disjoint", "generator.prompts=null"),
            r"generator\.prompts=None must be a number up to",
        ),
        (
            ("prompts_over_iterations=disjoint", "negatives_over_iterations=all"),
            "negatives_over_iterations=all needs the prompts",
        ),
        (("reference_over_iterations=initial", "hardware.rescore_reference=true"), r"hardware\.rescore_reference=true"),
        (("reference_over_iterations=first",), "reference_over_iterations=first"),
    ],
)
def test_rounds_that_do_not_go_together(overrides: tuple[str, ...], said: str) -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out", "iterations=3")
    with pytest.raises(UserError, match=said):
        configure(composed(*small, *overrides))


def test_rounds_that_share_the_prompts() -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out", "iterations=3")
    parts = configure(composed(*small, "prompts_over_iterations=disjoint", "generator.prompts=21"))
    assert parts.prompts_over_iterations == "disjoint"


MANY_CHECKPOINTS = ("data.train=64", "generator.prompts=20", "trainer.batch_size=8", "trainer.epochs=2")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ((), 6),  # ceil(20 / 8) twice
        (("generator.prompts=null",), 16),
        (("generator.prompts=999",), 16),
        (("chosen=target_and_best",), 10),  # two groups per prompt
        (("chosen=best_of_n",), 6),
    ],
)
def test_checkpoints_beyond_the_steps_are_refused_before_compute(changes: tuple[str, ...], steps: int) -> None:
    small = (*TINY, *MANY_CHECKPOINTS, *changes, "output=out")
    configure(composed(*small, f"evaluation.checkpoints={steps}"))
    with pytest.raises(UserError, match=rf"^evaluation\.checkpoints={steps + 1}, .* at most {steps} steps\. Lower it"):
        configure(composed(*small, f"evaluation.checkpoints={steps + 1}"))


@pytest.mark.parametrize("unknown", ["trainer.tokens=1000", "iterations=0"])
def test_checkpoints_are_not_refused_where_steps_are_unknown_or_none(unknown: str) -> None:
    configure(composed(*TINY, *MANY_CHECKPOINTS, unknown, "evaluation.checkpoints=99", "output=out"))
