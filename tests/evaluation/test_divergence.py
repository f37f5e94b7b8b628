"""KL(policy || SFT) and entropy against their exact values, on models whose responses can all be listed."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_evaluate_stage import EXAMPLES, Lengths, settings
from torch import Tensor

from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.evaluation.curve import Measured, curve
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
    """All that can be sampled: up to the end token, or cut at the longest."""
    going: list[list[int]] = [[]]
    while going:
        prefix = going.pop()
        for token in range(VOCABULARY):
            own = [*prefix, token]
            if token == END or len(own) == LONGEST:
                yield own
            else:
                going.append(own)


@torch.no_grad()
def next_log_probs(model: Any, tokens: list[int]) -> Tensor:
    """Of the token after these, by the plain forward pass, float64 [V]."""
    return model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)  # type: ignore[no-any-return]


def exact(policy: Any, reference: Any, prompt: list[int], longest: int, ends: set[int]) -> tuple[float, float]:
    """KL(policy || reference) and the policy's entropy, per response, by the chain rule over all prefixes."""
    total = np.zeros(2)
    going: list[tuple[list[int], float]] = [([], 1.0)]
    while going:
        prefix, mass = going.pop()
        own, other = (next_log_probs(model, prompt + prefix) for model in (policy, reference))
        p = own.exp()
        total += mass * np.array([float((p * (own - other)).sum()), -float((p * own).sum())])
        if len(prefix) + 1 < longest:
            going += [([*prefix, t], mass * float(p[t])) for t in range(len(p)) if t not in ends]
    return float(total[0]), float(total[1])


def scored(model: Any) -> list[np.ndarray]:
    """Per response the log-probabilities of its tokens, from one packed group."""
    first, *others = responses()
    packed = pack([Group("all", PROMPT, first, others)])
    with torch.no_grad():
        values = iter(token_log_probs(model, packed, chunk_size=7).tolist())
    return [np.array([next(values) for _ in own]) for own in (first, *others)]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return tuple(llama(seed, vocabulary=VOCABULARY, spread=0.5).double() for seed in (0, 1))  # type: ignore[return-value]


def test_expectations_over_all_responses_are_the_exact_kl_and_entropy(models: tuple[Any, Any]) -> None:
    own, other = map(scored, models)
    mass = np.array([math.exp(values.sum()) for values in own])
    assert mass.sum() == pytest.approx(1, abs=1e-9)
    kl, entropy = exact(*models, PROMPT, LONGEST, {END})
    assert kl > 0.1
    for estimator in (k1, k3):
        values = [estimator(p, q) for p, q in zip(own, other, strict=True)]
        assert mass @ values == pytest.approx(kl, abs=1e-9), estimator
    assert mass @ [-values.sum() for values in own] == pytest.approx(entropy, abs=1e-9)


def test_the_mean_of_samples_is_within_its_error_of_the_exact_kl(models: tuple[Any, Any]) -> None:
    own, other = map(scored, models)
    mass = np.array([math.exp(values.sum()) for values in own])
    drawn = np.random.default_rng(0).choice(len(mass), size=20_000, p=mass / mass.sum())
    kl, entropy = exact(*models, PROMPT, LONGEST, {END})
    pairs = list(zip(own, other, strict=True))
    for truth, values in [
        (kl, [k1(*pair) for pair in pairs]),
        (kl, [k3(*pair) for pair in pairs]),
        (entropy, [-p.sum() for p in own]),
    ]:
        found = np.array(values)[drawn]
        assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(len(drawn))


def test_k3_misses_what_a_sharper_policy_has_given_up() -> None:
    """It draws one token where the reference draws two alike: the KL is ln 2. k1 is that in every sample."""
    sharp, reference = np.log([1 - 1e-12]), np.log([0.5])
    assert k1(sharp, reference) == pytest.approx(math.log(2))
    assert k3(sharp, reference) == pytest.approx(math.log(2) - 0.5)


def test_k3_is_never_negative() -> None:
    policy, reference = np.log([0.2, 0.5]), np.log([0.4, 0.6])
    assert k1(policy, reference) < 0 < k3(policy, reference)


# The stage itself, on answers that the evaluation sampled.

QUESTIONS = [example("a", "what is the cat?", "a cat"), example("b", "and Paris?", "Paris is in France")]
SAMPLES = 300
WAYS = [{"name": "T=1", "temperature": 1.0, "samples": SAMPLES}, {"name": "greedy", "temperature": 0.0, "samples": 1}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "sft")):
        save_policy(root / name, llama(seed, spread=0.12), tokenizer(), "# a card\n")
    return {name: root / name for name in ("policy", "sft")}


def answered(folder: Path, model: Path, how: Evaluation, examples: Any) -> Path:
    folder.mkdir()
    responder = Responder(HF("float32", 64), Local(2, 1), "cpu")
    evaluate(folder, how, Policy("x", model, "float32", "cpu"), examples, Lengths(), None, responder)  # type: ignore[arg-type]
    return folder


def test_of_sampled_answers_both_are_within_their_error_of_the_exact(folders: dict[str, Path], tmp_path: Path) -> None:
    how = settings(decodings=WAYS, max_new_tokens=2)
    answers = answered(tmp_path / "answers", folders["policy"], how, QUESTIONS)
    own = Models(folders["policy"], folders["sft"], "float32", hardware(max_tokens_per_microbatch=4096))
    summary = measure(tmp_path, answers, "T=1", own, QUESTIONS, Local(1, 1))
    found = read(tmp_path)
    assert len(found) == summary["answers"] == 2 * SAMPLES
    models = [llama(seed, spread=0.12) for seed in (0, 1)]
    truths = np.array(
        [exact(*models, RENDERER.prompt(e.prompt), 2, set(RENDERER.end_ids)) for e in QUESTIONS]  # type: ignore[call-arg]
    ).mean(axis=0)
    for values, truth in ((found["k1"], truths[0]), (found["k3"], truths[0]), (-found["log_prob"], truths[1])):
        within = values - values.groupby(found["id"]).transform("mean")
        assert abs(values.mean() - truth) < 4 * within.std() / math.sqrt(len(values))
    assert summary["kl"] == pytest.approx(found["k1"].mean())
    assert summary["entropy"] == pytest.approx(-found["log_prob"].mean())
    assert summary["entropy_per_token"] == pytest.approx(-found["log_prob"].sum() / found["tokens"].sum())
    # In float32 the sampler and the packed rows agree.
    drawn = pd.read_parquet(answers / ANSWERS).query("decoding == 'T=1'").sort_values(["id", "sample"])
    assert found["log_prob"].to_numpy() == pytest.approx(drawn["log_prob"].to_numpy(), abs=1e-3)


def test_a_model_is_no_distance_from_itself(folders: dict[str, Path], tmp_path: Path) -> None:
    how = settings(max_new_tokens=2)
    answers = answered(tmp_path / "answers", folders["sft"], how, QUESTIONS)
    for name, reference in (("alone", None), ("beside itself", folders["sft"])):
        (tmp_path / name).mkdir()
        own = Models(folders["sft"], reference, "float32", hardware())
        assert measure(tmp_path / name, answers, "T=1", own, QUESTIONS, Local(1, 1))["kl"] == 0
        columns = pd.read_parquet(tmp_path / name / FILE).columns
        assert ("reference" in columns) == (reference is not None)


def test_a_dialogues_answers_are_scored_after_the_policys_own_replies(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each against a forward pass over the whole dialogue so far; a dialogue counts as one response."""
    answers = answered(tmp_path / "answers", folders["policy"], settings(), EXAMPLES)
    own = Models(folders["policy"], None, "float32", hardware())
    measure(tmp_path, answers, "T=1", own, EXAMPLES, Local(2, 1))
    drawn = pd.read_parquet(answers / ANSWERS).query("decoding == 'T=1'")
    stored = pd.read_parquet(tmp_path / FILE).set_index(["id", "sample", "turn"])["policy"]
    model, by_id = llama(0, spread=0.12), {e.id: e for e in EXAMPLES}
    for row in drawn.to_dict("records"):
        messages = list(by_id[row["id"]].prompt)
        if row["id"] == "c":
            before = drawn[(drawn["id"] == "c") & (drawn["sample"] == row["sample"]) & (drawn["turn"] == 0)]
            first = {"role": "assistant", "content": before["text"].item()}
            asked = [{"role": "user", "content": turn} for turn in by_id["c"].turns]
            messages = asked[:1] if row["turn"] == 0 else [asked[0], first, asked[1]]  # type: ignore[list-item]
        tokens, prompt = list(row["token_ids"]), RENDERER.prompt(messages)
        expected = [float(next_log_probs(model, prompt + tokens[:i])[t]) for i, t in enumerate(tokens)]
        assert stored[row["id"], row["sample"], row["turn"]] == pytest.approx(expected, abs=1e-4)
    assert len(read(tmp_path)) == 3 * 2  # samples of three examples


def test_answers_to_the_same_prompt_share_it_and_empty_ones_are_left_out() -> None:
    drawn = pd.DataFrame(
        [("c", s, t, "cat", n, np.array([5] * n)) for s, t, n in [(0, 0, 2), (0, 1, 3), (1, 0, 1), (1, 1, 0)]],
        columns=["id", "sample", "turn", "text", "tokens", "token_ids"],
    )
    groups, places = answer_groups(drawn, EXAMPLES, RENDERER)
    assert [list(map(len, group.responses)) for group in groups] == [[2, 1], [3]]
    assert list(places.values()) == [[0, 2], [1]]


def test_a_log_probability_that_is_no_number_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    answers = answered(tmp_path / "answers", folders["policy"], settings(max_new_tokens=2), QUESTIONS)
    broken = llama()
    with torch.no_grad():
        broken.model.norm.weight[:] = 3e38  # finite, but not what is computed with it
    save_policy(tmp_path / "broken", broken, tokenizer(), "# a card\n")
    own = Models(folders["policy"], tmp_path / "broken", "float32", hardware())
    with pytest.raises(UserError, match=r"the reference's log-probability of the answer to example 'a' is nan"):
        measure(tmp_path, answers, "T=1", own, QUESTIONS, Local(1, 1))


def test_the_curve_has_intervals_by_prompt_and_an_exact_zero_for_the_fine_tuned_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    how, found = settings(max_new_tokens=3), []
    for name, step in (("sft", 0), ("policy", 8)):
        answers = answered(tmp_path / f"{name}-answers", folders[name], how, EXAMPLES)
        own = Models(folders[name], folders["sft"] if step else None, "float32", hardware())
        (tmp_path / name).mkdir()
        measure(tmp_path / name, answers, "T=1", own, EXAMPLES, Local(1, 1))
        found.append(Measured(name, step, False, answers, tmp_path / name))
    drawn = curve(found, how)
    assert drawn is not None
    sft, policy = drawn["points"]
    assert drawn["ids"] == ["a", "b", "c"]
    assert [sft["kl"][bound] for bound in ("estimate", "low", "high")] == [0, 0, 0]  # type: ignore[literal-required]
    by_answer = read(tmp_path / "policy")
    assert policy["kl"]["estimate"] == pytest.approx(by_answer["k1"].mean())
    assert policy["kl"]["clusters"] == 3
    assert policy["by_prompt"]["kl"] == pytest.approx(by_answer.groupby("id")["k1"].mean().tolist(), abs=1e-6)
    assert policy["entropy"]["estimate"] == pytest.approx(-by_answer["log_prob"].mean())
    pooled = -by_answer["log_prob"].sum() / by_answer["tokens"].sum()
    assert policy["entropy_per_token"]["estimate"] == pytest.approx(pooled)
    assert policy["entropy_per_token"]["low"] < pooled < policy["entropy_per_token"]["high"]
    assert curve(found, replace(how, top_p=0.9)) is None


@pytest.mark.parametrize("changes", [{"top_p": 0.9}, {"decodings": [WAYS[1]]}], ids=str)
def test_checkpoints_need_samples_of_the_policy_itself(changes: dict[str, Any]) -> None:
    assert settings(**changes).sampled is None
    with pytest.raises(UserError, match=r"evaluation\.checkpoints=4 .* temperature 1"):
        settings(**changes, checkpoints=4)


def test_a_checkpoint_is_measured_by_those_samples_alone() -> None:
    own = settings(decodings=WAYS[::-1], checkpoints=4).of_checkpoints()
    assert [way.name for way in own.ways] == ["T=1"]
    assert own.lm_eval.tasks == []
