"""What lm-eval asks of vLLM, against lm-eval's own class for transformers on the same model.

The engine is transformers' here; vLLM's own answers the same way in `tests/integration/test_vllm_lm_eval.py`.
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
from tiny import example, llama, policy_folder, taught, tokenizer

RENDERER = Renderer(tokenizer())
LENGTH = 128
LONG = "the cat sat on the mat and a dog " * 40


class Engine:
    """Token by token, without a cache: the same asks and answers as of `vllm_worker.Engine`, with one response each."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.asked: list[CompletionRequest] = []

    def __call__(self, asks: list[CompletionRequest]) -> list[list[Completion]]:
        self.asked += asks
        return [[self.answer(ask["prompt"], ask["params"])] for ask in asks]

    def answer(self, prompt: list[int], params: dict[str, Any]) -> Completion:
        assert len(prompt) + params["max_tokens"] <= LENGTH
        ids = list(prompt)
        for _ in range(params["max_tokens"]):
            ids.append(int(self.logits(ids)[-1].argmax()))
            if ids[-1] in params["stop_token_ids"]:
                break
        found: Completion = {"token_ids": ids[len(prompt) :], "finish_reason": "stop", "log_prob": 0.0}
        if "prompt_logprobs" in params:
            logits = self.logits(prompt)
            rows = [(logits[at], token) for at, token in enumerate(prompt[1:])]
            found["prompt_log_probs"] = [(float(row[token]), 1 + int((row > row[token]).sum())) for row, token in rows]
        return found

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[VllmLM, HFLM]:
    folder = policy_folder(tmp_path_factory.mktemp("policy"))
    theirs = HFLM(pretrained=str(folder), tokenizer=RENDERER.tokenizer, device="cpu", add_bos_token=False)
    return VllmLM(Engine(llama()), RENDERER, LENGTH, special_tokens=False), theirs


def test_likelihoods_are_those_of_transformers(pair: tuple[VllmLM, HFLM]) -> None:
    ours, theirs = pair
    asked = instances("loglikelihood", ("what is the cat?", " a cat"), ("", "Paris"), ("the", " mat. "), ("a  ", "dog"))
    for (own, greedy), (other, also) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert own == pytest.approx(other, abs=1e-4)
        assert greedy == also


def test_what_greedy_decoding_says_is_greedy(pair: tuple[VllmLM, HFLM]) -> None:
    ours, theirs = pair
    said = int(Engine(llama()).logits(RENDERER.tokenizer("the cat")["input_ids"])[-1].argmax())
    for token, greedy in ((said, True), (said + 1, False)):
        asked = [((("", ""), RENDERER.tokenizer("the cat")["input_ids"], [token]))]
        assert ours._loglikelihood_tokens(asked)[0][1] is greedy
        assert theirs._loglikelihood_tokens(asked)[0][1] is greedy


def test_whole_texts_in_windows(pair: tuple[VllmLM, HFLM]) -> None:
    """One that fits is one window for both; of a longer one every token is scored once, in windows of LENGTH - 2."""
    ours, theirs = pair
    short = instances("loglikelihood_rolling", ("the cat sat on the mat",))
    assert ours.loglikelihood_rolling(short) == pytest.approx(theirs.loglikelihood_rolling(short), abs=1e-4)
    engine = Engine(llama())
    VllmLM(engine, RENDERER, LENGTH, False).loglikelihood_rolling(instances("loglikelihood_rolling", (LONG,)))
    assert len(engine.asked) == -(-len(RENDERER.tokenizer(LONG)["input_ids"]) // (LENGTH - 2))


def test_generations_end_where_they_must(tmp_path: Path) -> None:
    """At the end of the turn, at words that may begin within a token, and at the length; from a prompt cut to fit."""
    known = example("e", "what is it?", "it is the cat")
    model, query = taught([known]), RENDERER.tokenizer.decode(RENDERER.prompt(known.prompt))
    theirs = HFLM(pretrained=model, tokenizer=RENDERER.tokenizer, device="cpu", add_bos_token=False)
    ours = VllmLM(Engine(model), RENDERER, LENGTH, special_tokens=False)
    asked = instances(
        "generate_until",
        (query, {"until": [], "do_sample": False, "max_gen_toks": 32}),
        (query, {"until": ["e ca"], "max_gen_toks": 32}),
        (query, {"until": [], "max_gen_toks": 2}),
        (LONG + query, {"until": ["\n\n"], "max_gen_toks": 8}),
    )
    found = ours.generate_until(asked)
    assert found[0].strip() == "it is the cat"
    assert found[1].strip() == "it is th"
    assert [text.strip() for text in found] == [text.strip() for text in theirs.generate_until(asked)]
