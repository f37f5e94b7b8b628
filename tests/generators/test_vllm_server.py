"""Test the behaviour of vLLM's own server, over plain HTTP, that a client relies on."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.rendering import Renderer
from tiny import tokenizer
from vllm_cases import REQUESTS, hf_answers

ENDS = sorted(Renderer(tokenizer()).end_ids)


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.vllm
def test_completions_return_token_ids_and_log_probabilities(vllm_server: str, wide_policy: Path) -> None:
    expected = hf_answers(wide_policy)
    body = {
        "model": "policy",
        "prompt": [request.prompt for request in REQUESTS],
        "max_tokens": 16,
        "temperature": 0,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "stop_token_ids": ENDS,
    }
    choices = post(vllm_server, body)["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(REQUESTS)))
    for choice, candidate, request in zip(choices, expected, REQUESTS, strict=True):
        room = 128 - len(request.prompt)
        assert choice["token_ids"] == candidate.token_ids[:room]
        assert choice["finish_reason"] == candidate.finish_reason
        assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(candidate.log_prob, abs=1e-3)


@pytest.mark.vllm
def test_n_choices_for_a_seed_are_reproducible(vllm_server: str) -> None:
    body = {
        "model": "policy",
        "prompt": REQUESTS[1].prompt,
        "n": 4,
        "seed": 5,
        "max_tokens": 12,
        "return_token_ids": True,
    }
    first, again = ([choice["token_ids"] for choice in post(vllm_server, body)["choices"]] for _ in range(2))
    assert first == again
    assert len({tuple(ids) for ids in first}) == 4
