"""Check that sampling does not depend on the batch, agrees with the model, and has the right distribution."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconH1Config, Gemma2Config, MambaConfig, Qwen3NextConfig

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.sampling import _inverse, draw, sample, uniforms
from selfcontrast.models.rows import use_exact_attention
from tiny import llama, tokenizer

TOKENIZER = tokenizer()
ENDS = Renderer(TOKENIZER).end_ids
QUESTIONS = ["cat", "what is the name of the cat?", "Paris", "a dog and a cat sat on the mat in France", "the"]
REQUESTS = [
    Request(f"q{i}", Renderer(TOKENIZER).prompt([{"role": "user", "content": text}]))
    for i, text in enumerate(QUESTIONS)
]
FREE = Decoding(samples=4, temperature=1.0, top_p=1.0, max_new_tokens=12, max_length=128)
GREEDY = Decoding(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=12, max_length=128)


def ending_llama() -> Any:
    """Return a tiny Llama that ends its turn about once in six tokens, for any input."""
    model = llama()

    def favour(module: Any, inputs: Any, output: Any) -> Any:
        output.logits[..., TOKENIZER.eos_token_id] = output.logits.logsumexp(-1) - np.log(5)
        return output

    model.register_forward_hook(favour)
    return model


MODEL = ending_llama()


def sample_all(requests: Sequence[Request], decoding: Decoding, seed: int = 0) -> list[Candidate]:
    return sample(MODEL, TOKENIZER, requests, decoding, seed, ENDS)


@pytest.fixture(scope="module")
def one_batch() -> list[Candidate]:
    return sample_all(REQUESTS, FREE)


def test_candidates_are_ordered_and_distinct(one_batch: list[Candidate]) -> None:
    assert [(c.id, c.sample) for c in one_batch] == [(f"q{i}", s) for i in range(5) for s in range(4)]
    assert len({tuple(c.token_ids) for c in one_batch}) > 12


@pytest.mark.parametrize("batches", [[[0], [1], [2], [3], [4]], [[3, 0], [4, 2, 1]], [[4, 3, 2, 1, 0]]], ids=str)
def test_responses_do_not_depend_on_the_batch(one_batch: list[Candidate], batches: list[list[int]]) -> None:
    in_batches = {(c.id, c.sample): c for batch in batches for c in sample_all([REQUESTS[i] for i in batch], FREE)}
    for expected in one_batch:
        candidate = in_batches[expected.id, expected.sample]
        assert (candidate.token_ids, candidate.text, candidate.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )
        assert candidate.log_prob == pytest.approx(expected.log_prob, abs=1e-4)


def test_another_seed_or_another_id_draws_other_responses(one_batch: list[Candidate]) -> None:
    ids = [c.token_ids for c in one_batch[:4]]
    assert [c.token_ids for c in sample_all(REQUESTS[:1], FREE, seed=1)] != ids
    assert [c.token_ids for c in sample_all([Request("other", REQUESTS[0].prompt)], FREE)] != ids


def test_fewer_samples_equal_the_first_of_more_samples(one_batch: list[Candidate]) -> None:
    two = sample_all(REQUESTS, Decoding(**{**vars(FREE), "samples": 2}))
    assert [c.token_ids for c in two] == [c.token_ids for c in one_batch if c.sample < 2]


def test_uniform_numbers_are_float64_in_the_unit_interval() -> None:
    numbers = uniforms(0, REQUESTS[0], Decoding(100, 1.0, 1.0, 100, 100))
    assert (numbers.shape, numbers.dtype) == ((100, 100), torch.float64)
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1


@pytest.mark.parametrize("decoding", [FREE, GREEDY, Decoding(3, 0.7, 0.8, 12, 128)], ids=["free", "greedy", "sharp"])
def test_log_prob_equals_a_forward_pass_at_temperature_one(decoding: Decoding) -> None:
    prompts = {request.id: request.prompt for request in REQUESTS}
    for candidate in sample_all(REQUESTS, decoding):
        row = torch.tensor([prompts[candidate.id] + candidate.token_ids])
        with torch.no_grad():
            log_probs = MODEL(row).logits[0].log_softmax(-1)
        start = len(prompts[candidate.id]) - 1
        expected = sum(float(log_probs[start + i, token]) for i, token in enumerate(candidate.token_ids))
        assert candidate.log_prob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 12])
def test_log_prob_is_float32_in_a_bfloat16_model(tokens: int) -> None:
    """The logits are rounded to bfloat16, as in any forward pass. Their log-softmax and its sum are float32."""
    model, decoding = llama().bfloat16(), Decoding(1, 0.0, 1.0, tokens, 128)
    for request in REQUESTS:
        (candidate,) = sample(model, TOKENIZER, [request], decoding, 0, ENDS)
        with torch.no_grad():
            logits = model(torch.tensor([request.prompt + candidate.token_ids])).logits[0].float()
        start = len(request.prompt) - 1
        expected = sum(float(logits[start + i].log_softmax(-1)[token]) for i, token in enumerate(candidate.token_ids))
        assert candidate.log_prob == pytest.approx(expected, rel=1e-5 if tokens == 1 else 2e-3)


def test_greedy_equals_transformers_generate() -> None:
    for candidate, request in zip(sample_all(REQUESTS, GREEDY), REQUESTS, strict=True):
        row = torch.tensor([request.prompt])
        expected = MODEL.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=12, eos_token_id=sorted(ENDS)
        )
        assert candidate.token_ids == expected[0, len(request.prompt) :].tolist()


def test_response_stops_at_its_first_end_token_or_its_limit(one_batch: list[Candidate]) -> None:
    assert {c.finish_reason for c in one_batch} == {"stop", "length"}
    for candidate in one_batch:
        ended = [token in ENDS for token in candidate.token_ids]
        assert not any(ended[:-1])
        assert (candidate.finish_reason == "stop") == ended[-1]
        assert candidate.finish_reason == "stop" or len(candidate.token_ids) == 12
        assert candidate.text == TOKENIZER.decode(candidate.token_ids, skip_special_tokens=True).strip()


def test_max_length_bounds_prompt_and_response_together(one_batch: list[Candidate]) -> None:
    lengths = sorted(len(request.prompt) for request in REQUESTS)
    bound = lengths[-1] + 1  # the longest prompt has room for a single token
    for short, free in zip(sample_all(REQUESTS, Decoding(4, 1.0, 1.0, 12, bound)), one_batch, strict=True):
        prompt = next(request.prompt for request in REQUESTS if request.id == short.id)
        room = min(12, bound - len(prompt))
        assert short.token_ids == free.token_ids[:room]
        assert short.finish_reason == ("stop" if short.token_ids[-1] in ENDS else "length")


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = MODEL.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(MODEL, "forward", counted)
    candidates = sample_all(REQUESTS, FREE)
    # A prompt is computed once, not once per sample. Token t + 1 is computed only for responses that go on after t.
    longest = max(len(c.token_ids) for c in candidates)
    assert rows == [5, *(sum(len(c.token_ids) > t for c in candidates) for t in range(1, longest))]


LOG_PROBS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5, -3.0, 0.5]).log_softmax(-1)


def count_draws(decoding: Decoding, count: int = 50_000) -> Tensor:
    numbers = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draw(LOG_PROBS.expand(count, -1), numbers, decoding).bincount(minlength=len(LOG_PROBS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    counts = count_draws(Decoding(1, temperature, 1.0, 1, 1))
    expected = (LOG_PROBS.double() / temperature).softmax(-1) * counts.sum()
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_draws_within_the_nucleus_follow_the_renormalised_softmax() -> None:
    probabilities = LOG_PROBS.double().softmax(-1)
    # The two likeliest tokens have probability 0.6724 together, the six likeliest 0.9972.
    assert probabilities.sort(descending=True).values.cumsum(0)[[1, 5]].tolist() == pytest.approx(
        [0.6724, 0.9972], abs=1e-4
    )
    for top_p, support in ((0.4, [0]), (0.67, [0, 4]), (0.68, [0, 2, 4]), (0.99, [0, 1, 2, 3, 4, 6])):
        counts = count_draws(Decoding(1, 1.0, top_p, 1, 1))
        assert counts.nonzero()[:, 0].tolist() == support
        inside = probabilities[support] / probabilities[support].sum()
        if len(support) > 1:
            assert stats.chisquare(counts[support].numpy(), (inside * counts.sum()).numpy()).pvalue > 1e-3


@given(
    weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=200).filter(lambda w: sum(w) > 1e-30),
    uniform=st.floats(0, 1 - 2**-53),
)
def test_inverse_returns_where_the_running_sum_exceeds_the_threshold(weights: list[float], uniform: float) -> None:
    """Compare with exact arithmetic. If rounding decides, both neighbours are right, unless their weight is 0."""
    drawn = int(_inverse(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64))[0])
    sums = list(accumulate(map(Fraction, weights)))
    threshold, slack = Fraction(uniform) * sums[-1], sums[-1] / 2**40
    assert weights[drawn] > 0
    assert sums[drawn] > threshold - slack
    assert sums[drawn] - Fraction(weights[drawn]) <= threshold + slack


def test_draw_at_the_ends_of_the_interval_returns_possible_tokens() -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]).log_softmax(-1).expand(2, -1)
    for top_p in (1.0, 0.9):
        assert draw(logits, ends, Decoding(1, 1.0, top_p, 1, 1)).tolist() == [1, 3]
    assert draw(logits, ends, Decoding(1, 0.0, 1.0, 1, 1)).tolist() == [3, 3]


SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 16,
}
STATE_SPACE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
CAPPED = {"sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 8.0}
CONFIGS = {
    "soft caps and windows": Gemma2Config(**SHAPE, **CAPPED),
    "linear attention": Qwen3NextConfig(**SHAPE, **EXPERTS, **LINEAR),
    "attention beside state spaces": FalconH1Config(**SHAPE, **STATE_SPACE),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_prob_of_models_with_other_caches_equals_a_forward_pass(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    use_exact_attention(model)
    prompts = {request.id: request.prompt for request in REQUESTS}
    ends = set(range(0, len(TOKENIZER), 9))  # responses have different lengths and leave the batch
    results = sample(model, TOKENIZER, REQUESTS, FREE, 0, ends)
    assert len({len(candidate.token_ids) for candidate in results}) > 3
    for candidate in results:
        row = torch.tensor([prompts[candidate.id] + candidate.token_ids])
        with torch.no_grad():
            log_probs = model(row, use_cache=False).logits[0].log_softmax(-1)
        start = len(prompts[candidate.id]) - 1
        expected = sum(float(log_probs[start + i, token]) for i, token in enumerate(candidate.token_ids))
        assert candidate.log_prob == pytest.approx(expected, abs=1e-3)


def test_model_with_an_unsupported_cache_raises() -> None:
    model = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2)
    )
    with pytest.raises(UserError, match=r"'mamba'.*generator=vllm"):
        sample(model.eval(), TOKENIZER, REQUESTS, FREE, 0, ENDS)
