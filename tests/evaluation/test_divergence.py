"""Compare KL(policy || SFT) and entropy with exact values, on models whose responses can all be listed."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_evaluate_stage import EXAMPLES, LengthVerifier, settings
from torch import Tensor

from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.evaluation.curve import CurveModel, curve
from selfcontrast.evaluation.divergence import FILE, Models, answer_groups, k1, k3, measure, read
from selfcontrast.evaluation.evaluate import ANSWERS, Evaluation, Policy, evaluate
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.hf import HF
from selfcontrast.models.loading import save_policy
from selfcontrast.models.log_probs import token_log_probs
from selfcontrast.models.packing import Group, pack
from tiny import example, hardware, llama, tokenizer

END, VOCABULARY, LONGEST = 0, 5, 3
PROMPT = [1, 2, 3, 1]
RENDERER = Renderer(tokenizer())


def responses() -> Iterator[list[int]]:
    """List all responses: up to the end token, or cut at the maximum length."""
    open_prefixes: list[list[int]] = [[]]
    while open_prefixes:
        prefix = open_prefixes.pop()
        for token in range(VOCABULARY):
            longer = [*prefix, token]
            if token == END or len(longer) == LONGEST:
                yield longer
            else:
                open_prefixes.append(longer)


@torch.no_grad()
def next_log_probs(model: Any, tokens: list[int]) -> Tensor:
    """Compute the next token's log-probabilities by a plain forward pass, float64 [V]."""
    return model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)  # type: ignore[no-any-return]


def exact(policy: Any, reference: Any, prompt: list[int], longest: int, ends: set[int]) -> tuple[float, float]:
    """Compute KL(policy || reference) and the policy's entropy per response, by the chain rule over all prefixes."""
    total = np.zeros(2)
    open_prefixes: list[tuple[list[int], float]] = [([], 1.0)]
    while open_prefixes:
        prefix, mass = open_prefixes.pop()
        log_p, log_q = (next_log_probs(model, prompt + prefix) for model in (policy, reference))
        p = log_p.exp()
        total += mass * np.array([float((p * (log_p - log_q)).sum()), -float((p * log_p).sum())])
        if len(prefix) + 1 < longest:
            open_prefixes += [([*prefix, t], mass * float(p[t])) for t in range(len(p)) if t not in ends]
    return float(total[0]), float(total[1])


def score_responses(model: Any) -> list[np.ndarray]:
    """Return each response's token log-probabilities, from one packed group."""
    first, *others = responses()
    packed = pack([Group("all", PROMPT, first, others)])
    with torch.no_grad():
        values = iter(token_log_probs(model, packed, chunk_size=7).tolist())
    return [np.array([next(values) for _ in response]) for response in (first, *others)]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return tuple(llama(seed, vocabulary=VOCABULARY, spread=0.5).double() for seed in (0, 1))  # type: ignore[return-value]


def test_k1_and_k3_expectations_equal_the_exact_kl(models: tuple[Any, Any]) -> None:
    policy, reference = map(score_responses, models)
    mass = np.array([math.exp(values.sum()) for values in policy])
    assert mass.sum() == pytest.approx(1, abs=1e-9)
    kl, entropy = exact(*models, PROMPT, LONGEST, {END})
    assert kl > 0.1
    for estimator in (k1, k3):
        values = [estimator(p, q) for p, q in zip(policy, reference, strict=True)]
        assert mass @ values == pytest.approx(kl, abs=1e-9), estimator
    assert mass @ [-values.sum() for values in policy] == pytest.approx(entropy, abs=1e-9)


def test_k1_and_k3_sample_means_are_near_the_exact_kl(models: tuple[Any, Any]) -> None:
    policy, reference = map(score_responses, models)
    mass = np.array([math.exp(values.sum()) for values in policy])
    indices = np.random.default_rng(0).choice(len(mass), size=20_000, p=mass / mass.sum())
    kl, entropy = exact(*models, PROMPT, LONGEST, {END})
    pairs = list(zip(policy, reference, strict=True))
    for truth, values in [
        (kl, [k1(*pair) for pair in pairs]),
        (kl, [k3(*pair) for pair in pairs]),
        (entropy, [-p.sum() for p in policy]),
    ]:
        estimates = np.array(values)[indices]
        assert abs(estimates.mean() - truth) < 4 * estimates.std() / math.sqrt(len(indices))


def test_k3_is_too_low_for_a_sharper_policy() -> None:
    """The policy samples only one of the reference's two equally likely tokens: KL and k1 are ln 2."""
    sharp, reference = np.log([1 - 1e-12]), np.log([0.5])
    assert k1(sharp, reference) == pytest.approx(math.log(2))
    assert k3(sharp, reference) == pytest.approx(math.log(2) - 0.5)


def test_k3_is_never_negative() -> None:
    policy, reference = np.log([0.2, 0.5]), np.log([0.4, 0.6])
    assert k1(policy, reference) < 0 < k3(policy, reference)


# The tests below run the stage itself, on answers that the evaluation sampled.

QUESTIONS = [example("a", "what is the cat?", "a cat"), example("b", "and Paris?", "Paris is in France")]
SAMPLES = 300
DECODINGS = [
    {"name": "T=1", "temperature": 1.0, "samples": SAMPLES},
    {"name": "greedy", "temperature": 0.0, "samples": 1},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "sft")):
        save_policy(root / name, llama(seed, spread=0.12), tokenizer(), "# a card\n")
    return {name: root / name for name in ("policy", "sft")}


def sample_answers(folder: Path, model: Path, evaluation: Evaluation, examples: Any) -> Path:
    folder.mkdir()
    responder = Responder(HF("float32", 64), Local(2, 1), "cpu")
    evaluate(folder, evaluation, Policy("x", model, "float32", "cpu"), examples, LengthVerifier(), None, responder)  # type: ignore[arg-type]
    return folder


def test_measure_kl_and_entropy_are_near_the_exact_values(folders: dict[str, Path], tmp_path: Path) -> None:
    evaluation = settings(decodings=DECODINGS, max_new_tokens=2)
    answers = sample_answers(tmp_path / "answers", folders["policy"], evaluation, QUESTIONS)
    models = Models(folders["policy"], folders["sft"], "float32", hardware(max_tokens_per_microbatch=4096))
    summary = measure(tmp_path, answers, "T=1", models, QUESTIONS, Local(1, 1))
    by_answer = read(tmp_path)
    assert len(by_answer) == summary["answers"] == 2 * SAMPLES
    pair = [llama(seed, spread=0.12) for seed in (0, 1)]
    truths = np.array(
        [exact(*pair, RENDERER.prompt(e.prompt), 2, set(RENDERER.end_ids)) for e in QUESTIONS]  # type: ignore[call-arg]
    ).mean(axis=0)
    for values, truth in (
        (by_answer["k1"], truths[0]),
        (by_answer["k3"], truths[0]),
        (-by_answer["log_prob"], truths[1]),
    ):
        within = values - values.groupby(by_answer["id"]).transform("mean")
        assert abs(values.mean() - truth) < 4 * within.std() / math.sqrt(len(values))
    assert summary["kl"] == pytest.approx(by_answer["k1"].mean())
    assert summary["entropy"] == pytest.approx(-by_answer["log_prob"].mean())
    assert summary["entropy_per_token"] == pytest.approx(-by_answer["log_prob"].sum() / by_answer["tokens"].sum())
    # In float32, the sampler's log-probabilities equal those of the packed rows.
    answer_rows = pd.read_parquet(answers / ANSWERS).query("decoding == 'T=1'").sort_values(["id", "sample"])
    assert by_answer["log_prob"].to_numpy() == pytest.approx(answer_rows["log_prob"].to_numpy(), abs=1e-3)


def test_measure_of_a_model_against_itself_is_zero(folders: dict[str, Path], tmp_path: Path) -> None:
    evaluation = settings(max_new_tokens=2)
    answers = sample_answers(tmp_path / "answers", folders["sft"], evaluation, QUESTIONS)
    for name, reference in (("alone", None), ("against itself", folders["sft"])):
        (tmp_path / name).mkdir()
        models = Models(folders["sft"], reference, "float32", hardware())
        assert measure(tmp_path / name, answers, "T=1", models, QUESTIONS, Local(1, 1))["kl"] == 0
        columns = pd.read_parquet(tmp_path / name / FILE).columns
        assert ("reference" in columns) == (reference is not None)


def test_measure_scores_a_dialogue_after_its_own_replies(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each answer's scores equal those of a forward pass over the dialogue so far. A dialogue is one response."""
    answers = sample_answers(tmp_path / "answers", folders["policy"], settings(), EXAMPLES)
    models = Models(folders["policy"], None, "float32", hardware())
    measure(tmp_path, answers, "T=1", models, EXAMPLES, Local(2, 1))
    answer_rows = pd.read_parquet(answers / ANSWERS).query("decoding == 'T=1'")
    stored = pd.read_parquet(tmp_path / FILE).set_index(["id", "sample", "turn"])["policy"]
    model, by_id = llama(0, spread=0.12), {e.id: e for e in EXAMPLES}
    for row in answer_rows.to_dict("records"):
        messages = list(by_id[row["id"]].prompt)
        if row["id"] == "c":
            before = answer_rows[
                (answer_rows["id"] == "c") & (answer_rows["sample"] == row["sample"]) & (answer_rows["turn"] == 0)
            ]
            first = {"role": "assistant", "content": before["text"].item()}
            questions = [{"role": "user", "content": turn} for turn in by_id["c"].turns]
            messages = questions[:1] if row["turn"] == 0 else [questions[0], first, questions[1]]  # type: ignore[list-item]
        tokens, prompt = list(row["token_ids"]), RENDERER.prompt(messages)
        expected = [float(next_log_probs(model, prompt + tokens[:i])[t]) for i, t in enumerate(tokens)]
        assert stored[row["id"], row["sample"], row["turn"]] == pytest.approx(expected, abs=1e-4)
    assert len(read(tmp_path)) == 3 * 2  # two samples of three examples


def test_answer_groups_share_prompts_and_leave_out_empty_answers() -> None:
    answer_rows = pd.DataFrame(
        [("c", s, t, "cat", n, np.array([5] * n)) for s, t, n in [(0, 0, 2), (0, 1, 3), (1, 0, 1), (1, 1, 0)]],
        columns=["id", "sample", "turn", "text", "tokens", "token_ids"],
    )
    groups, rows_of = answer_groups(answer_rows, EXAMPLES, RENDERER)
    assert [list(map(len, group.responses)) for group in groups] == [[2, 1], [3]]
    assert list(rows_of.values()) == [[0, 2], [1]]


def test_measure_nan_log_probability_is_rejected_with_its_example(folders: dict[str, Path], tmp_path: Path) -> None:
    answers = sample_answers(tmp_path / "answers", folders["policy"], settings(max_new_tokens=2), QUESTIONS)
    broken = llama()
    with torch.no_grad():
        broken.model.norm.weight[:] = 3e38  # finite, but the logits overflow
    save_policy(tmp_path / "broken", broken, tokenizer(), "# a card\n")
    models = Models(folders["policy"], tmp_path / "broken", "float32", hardware())
    with pytest.raises(UserError, match=r"reference's log-probability .*'a' is nan"):
        measure(tmp_path, answers, "T=1", models, QUESTIONS, Local(1, 1))


def test_curve_has_intervals_by_prompt_and_zero_kl_for_sft(folders: dict[str, Path], tmp_path: Path) -> None:
    evaluation, curve_models = settings(max_new_tokens=3), []
    for name, step in (("sft", 0), ("policy", 8)):
        answers = sample_answers(tmp_path / f"{name}-answers", folders[name], evaluation, EXAMPLES)
        models = Models(folders[name], folders["sft"] if step else None, "float32", hardware())
        (tmp_path / name).mkdir()
        measure(tmp_path / name, answers, "T=1", models, EXAMPLES, Local(1, 1))
        curve_models.append(CurveModel(name, step, False, answers, tmp_path / name))
    result = curve(curve_models, evaluation)
    assert result is not None
    sft, policy = result["points"]
    assert result["ids"] == ["a", "b", "c"]
    assert [sft["kl"][bound] for bound in ("estimate", "low", "high")] == [0, 0, 0]  # type: ignore[literal-required]
    by_answer = read(tmp_path / "policy")
    assert policy["kl"]["estimate"] == pytest.approx(by_answer["k1"].mean())
    assert policy["kl"]["clusters"] == 3
    assert policy["by_prompt"]["kl"] == pytest.approx(by_answer.groupby("id")["k1"].mean().tolist(), abs=1e-6)
    assert policy["entropy"]["estimate"] == pytest.approx(-by_answer["log_prob"].mean())
    pooled = -by_answer["log_prob"].sum() / by_answer["tokens"].sum()
    assert policy["entropy_per_token"]["estimate"] == pytest.approx(pooled)
    assert policy["entropy_per_token"]["low"] < pooled < policy["entropy_per_token"]["high"]
    assert curve(curve_models, replace(evaluation, top_p=0.9)) is None


@pytest.mark.parametrize("changes", [{"top_p": 0.9}, {"decodings": [DECODINGS[1]]}], ids=str)
def test_checkpoints_without_policy_samples_are_rejected(changes: dict[str, Any]) -> None:
    assert settings(**changes).sampled is None
    with pytest.raises(UserError, match=r"evaluation\.checkpoints=4 .* temperature 1"):
        settings(**changes, checkpoints=4)


def test_of_checkpoints_keeps_only_policy_samples() -> None:
    evaluation = settings(decodings=DECODINGS[::-1], checkpoints=4).of_checkpoints()
    assert [decoding.name for decoding in evaluation.named_decodings] == ["T=1"]
    assert evaluation.lm_eval.tasks == []
