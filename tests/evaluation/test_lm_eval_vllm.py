"""Compare `VllmLM` with lm-eval's own class for transformers, on the same model.

The engine in this file runs transformers. `tests/integration/test_vllm_lm_eval.py` uses vLLM's engine.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval_vllm import VllmLM
from selfcontrast.generators.vllm_worker import Completion, CompletionRequest
from tiny import example, llama, policy_folder, tokenizer, train_to_overfit

RENDERER = Renderer(tokenizer())
LENGTH = 128
LONG = "the cat sat on the mat and a dog " * 40


class Engine:
    """An engine with the interface of `vllm_worker.Engine`. It decodes token by token, one response per request."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.requests: list[CompletionRequest] = []

    def __call__(self, requests: list[CompletionRequest]) -> list[list[Completion]]:
        self.requests += requests
        return [[self.answer(request["prompt"], request["params"])] for request in requests]

    def answer(self, prompt: list[int], params: dict[str, Any]) -> Completion:
        assert len(prompt) + params["max_tokens"] <= LENGTH
        ids = list(prompt)
        for _ in range(params["max_tokens"]):
            ids.append(int(self.logits(ids)[-1].argmax()))
            if ids[-1] in params["stop_token_ids"]:
                break
        completion: Completion = {"token_ids": ids[len(prompt) :], "finish_reason": "stop", "log_prob": 0.0}
        if "prompt_logprobs" in params:
            logits = self.logits(prompt)
            rows = [(logits[i], token) for i, token in enumerate(prompt[1:])]
            ranked = [(float(row[token]), 1 + int((row > row[token]).sum())) for row, token in rows]
            completion["prompt_log_probs"] = ranked
        return completion

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[VllmLM, HFLM]:
    folder = policy_folder(tmp_path_factory.mktemp("policy"))
    hf_lm = HFLM(pretrained=str(folder), tokenizer=RENDERER.tokenizer, device="cpu", add_bos_token=False)
    return VllmLM(Engine(llama()), RENDERER, LENGTH, special_tokens=False), hf_lm


def test_loglikelihood_equals_that_of_transformers(pair: tuple[VllmLM, HFLM]) -> None:
    vllm_lm, hf_lm = pair
    texts = [("what is the cat?", " a cat"), ("", "Paris"), ("the", " mat. "), ("a  ", "dog")]
    requests = instances("loglikelihood", *texts)
    pairs = zip(vllm_lm.loglikelihood(requests), hf_lm.loglikelihood(requests), strict=True)
    for (actual, greedy), (expected, expected_greedy) in pairs:
        assert actual == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_loglikelihood_marks_greedy_continuations(pair: tuple[VllmLM, HFLM]) -> None:
    vllm_lm, hf_lm = pair
    likeliest = int(Engine(llama()).logits(RENDERER.tokenizer("the cat")["input_ids"])[-1].argmax())
    for token, greedy in ((likeliest, True), (likeliest + 1, False)):
        request = [((("", ""), RENDERER.tokenizer("the cat")["input_ids"], [token]))]
        assert vllm_lm._loglikelihood_tokens(request)[0][1] is greedy
        assert hf_lm._loglikelihood_tokens(request)[0][1] is greedy


def test_loglikelihood_rolling_scores_each_token_once(pair: tuple[VllmLM, HFLM]) -> None:
    """A short text is one window. A longer text has windows of LENGTH - 2 tokens."""
    vllm_lm, hf_lm = pair
    short = instances("loglikelihood_rolling", ("the cat sat on the mat",))
    assert vllm_lm.loglikelihood_rolling(short) == pytest.approx(hf_lm.loglikelihood_rolling(short), abs=1e-4)
    engine = Engine(llama())
    VllmLM(engine, RENDERER, LENGTH, False).loglikelihood_rolling(instances("loglikelihood_rolling", (LONG,)))
    assert len(engine.requests) == -(-len(RENDERER.tokenizer(LONG)["input_ids"]) // (LENGTH - 2))


def test_generate_until_stops_at_end_stop_words_and_length(tmp_path: Path) -> None:
    """A stop word may begin within a token, and the last prompt is truncated to fit."""
    learned = example("e", "what is it?", "it is the cat")
    model, query = train_to_overfit([learned]), RENDERER.tokenizer.decode(RENDERER.prompt(learned.prompt))
    hf_lm = HFLM(pretrained=model, tokenizer=RENDERER.tokenizer, device="cpu", add_bos_token=False)
    vllm_lm = VllmLM(Engine(model), RENDERER, LENGTH, special_tokens=False)
    requests = instances(
        "generate_until",
        (query, {"until": [], "do_sample": False, "max_gen_toks": 32}),
        (query, {"until": ["e ca"], "max_gen_toks": 32}),
        (query, {"until": [], "max_gen_toks": 2}),
        (LONG + query, {"until": ["\n\n"], "max_gen_toks": 8}),
    )
    texts = vllm_lm.generate_until(requests)
    assert texts[0].strip() == "it is the cat"
    assert texts[1].strip() == "it is th"
    assert [text.strip() for text in texts] == [text.strip() for text in hf_lm.generate_until(requests)]
