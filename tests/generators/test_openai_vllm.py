"""Test the backend for servers with vLLM's real server instead of an imitation."""

from pathlib import Path

import pytest

from selfcontrast.data.candidates import Candidate, Decoding
from selfcontrast.generators.openai import OpenAI
from vllm_cases import REQUESTS, hf_answers

EXTRA = {"return_token_ids": True, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
GREEDY = Decoding(1, 0.0, 1.0, 16, 128)


def sample(url: str, policy: Path, decoding: Decoding, **changes: object) -> list[Candidate]:
    valid = {"model": "policy", "api": "completions", "extra": EXTRA, "base_urls": [f"{url}/v1"], "concurrency": 2}
    timeouts = {"timeout": 120.0, "retries": 1, "initial_backoff": 1.0, "api_key_env": None}
    backend = OpenAI(**{**valid, **timeouts, **changes})  # type: ignore[arg-type]
    backend.check()
    with backend.open(policy, "cpu") as sampler:
        return sampler(REQUESTS, decoding, 0)


@pytest.mark.vllm
def test_greedy_samples_equal_transformers(vllm_server: str, wide_policy: Path) -> None:
    for candidate, expected in zip(sample(vllm_server, wide_policy, GREEDY), hf_answers(wide_policy), strict=True):
        assert (candidate.id, candidate.text, candidate.token_ids) == (expected.id, expected.text, expected.token_ids)
        assert candidate.finish_reason == expected.finish_reason
        assert candidate.log_prob == pytest.approx(expected.log_prob, abs=1e-3)


@pytest.mark.vllm
def test_samples_are_reproducible(vllm_server: str, wide_policy: Path) -> None:
    decoding = Decoding(4, 1.0, 1.0, 12, 128)
    first = sample(vllm_server, wide_policy, decoding)
    assert [c.token_ids for c in sample(vllm_server, wide_policy, decoding, concurrency=1)] == [
        c.token_ids for c in first
    ]
    assert len({tuple(c.token_ids) for c in first}) > len(REQUESTS) * 3
