"""The backend for servers: its requests, the conversion of answers, and failed prompts."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openai_server import Body, Fault, OpenAIServer, numbered_choices
from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.generate import FAILURES, FILE, Generation, generate
from selfcontrast.generators.openai import OpenAI
from selfcontrast.store import settings_of
from tiny import candidates_by_prompt, example, policy_folder, tokenizer

TOKENIZER = tokenizer()
RENDERER = Renderer(TOKENIZER)
EXAMPLES = [example(f"e{i}", "the cat " * (1 + i), "a cat") for i in range(6)]
REQUESTS = [Request(e.id, RENDERER.prompt(e.prompt), e.prompt) for e in EXAMPLES]
DECODING = Decoding(samples=3, temperature=0.8, top_p=0.9, max_new_tokens=50, max_length=64)
EXTRA = {"return_token_ids": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer().open() as opened:
        yield opened


def backend(*urls: str, **changes: Any) -> OpenAI:
    valid: dict[str, Any] = {
        "model": "selfcontrast",
        "api": "completions",
        "extra": EXTRA,
        "concurrency": 4,
        "timeout": 5.0,
        "retries": 1,
        "initial_backoff": 0.01,
        "api_key_env": None,
    }
    return OpenAI(**{**valid, **changes}, base_urls=list(urls))


def sampled(
    policy: Path, server_backend: OpenAI, decoding: Decoding = DECODING, seed: int = 0
) -> dict[str, list[Candidate]]:
    with server_backend.open(policy, "cpu") as sample:
        results = sample(REQUESTS, decoding, seed)
    assert [c.id for c in results] == sorted(c.id for c in results)
    return {request.id: [c for c in results if c.id == request.id] for request in REQUESTS}


# --- requests


def test_completions_request_sends_the_prompt_as_token_ids(policy: Path, server: OpenAIServer) -> None:
    results = sampled(policy, backend(server.url, extra={"return_token_ids": True, "top_p": None, "top_k": 0}))
    assert {call.path for call in server.requests} == {"/v1/completions"}
    bodies = {tuple(call.body.pop("prompt")): call.body for call in server.requests}
    seeds = {body.pop("seed") for body in bodies.values()}
    assert len(seeds) == 6
    for request in REQUESTS:
        assert bodies[tuple(request.prompt)] == {
            "model": "selfcontrast",
            "n": 3,
            "temperature": 0.8,
            "max_tokens": min(50, 64 - len(request.prompt)),
            "logprobs": 1,
            "return_token_ids": True,
            "top_k": 0,
        }
    assert all([c.sample for c in candidates] == [0, 1, 2] for candidates in results.values())


def test_chat_request_has_the_messages(policy: Path, server: OpenAIServer) -> None:
    results = sampled(policy, backend(server.url, api="chat"))
    assert {call.path for call in server.requests} == {"/v1/chat/completions"}
    assert sorted(str(call.body["messages"]) for call in server.requests) == sorted(str(e.prompt) for e in EXAMPLES)
    assert all(call.body["logprobs"] is True and "prompt" not in call.body for call in server.requests)
    assert results["e0"][2].text.endswith("cat 2")


def test_requests_depend_on_the_seed_not_on_their_order(policy: Path) -> None:
    def texts(results: dict[str, list[Candidate]]) -> list[list[object]]:
        # Log-probabilities are left out: they are NaN here, and from Python 3.13 on dataclasses with NaN are unequal.
        return [[c.id, c.sample, c.text, c.token_ids, c.finish_reason] for each in results.values() for c in each]

    with OpenAIServer().open() as serial:
        first = texts(sampled(policy, backend(serial.url, concurrency=1)))
    with OpenAIServer().open() as parallel:
        assert texts(sampled(policy, backend(parallel.url))) == first
        other = texts(sampled(policy, backend(parallel.url), seed=1))
    assert sorted(json.dumps(call.body) for call in serial.requests) == sorted(
        json.dumps(call.body) for call in parallel.requests[:6]
    )
    assert not {call.body["seed"] for call in parallel.requests[:6]} & {
        call.body["seed"] for call in parallel.requests[6:]
    }
    assert other != first


# --- conversion of answers


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def with_ids(body: Body) -> list[Body]:
    """Answer like vLLM: the ids have the end token, the text does not."""
    ended = [*ids_of("the cat"), TOKENIZER.eos_token_id]
    return [
        {
            "text": "not looked at",
            "finish_reason": "length" if i else "stop",
            "token_ids": ids_of("the cat") if i else ended,
            "logprobs": {"token_logprobs": [-0.5] * (len(ids_of("the cat")) if i else len(ended))},
        }
        for i in range(body["n"])
    ]


def test_token_ids_and_log_probs_are_kept_as_sampled(policy: Path) -> None:
    with OpenAIServer(reply=with_ids).open() as server:
        stop, cut, _ = sampled(policy, backend(server.url))["e0"]
    size = len(ids_of("the cat"))
    assert stop == Candidate(
        "e0", 0, "the cat", [*ids_of("the cat"), TOKENIZER.eos_token_id], "stop", -0.5 * (size + 1)
    )
    assert cut == Candidate("e0", 1, "the cat", ids_of("the cat"), "length", -0.5 * size)


def test_texts_without_ids_are_tokenized_as_in_training(policy: Path, caplog: pytest.LogCaptureFixture) -> None:
    def reply(body: Body) -> list[Body]:
        texts = ["  the cat\n", "a 猫 🙂", "half \ud83d"]
        return [{"text": t, "finish_reason": f} for t, f in zip(texts, ("stop", "length", "stop"), strict=True)]

    with OpenAIServer(reply=reply).open() as server, caplog.at_level(logging.INFO):
        results = sampled(policy, backend(server.url))["e1"]
    assert [c.text for c in results] == ["the cat", "a 猫 🙂", "half ?"]
    stop, cut, _ = results
    assert stop.token_ids == RENDERER.response(EXAMPLES[1].prompt, "the cat")
    assert cut.token_ids == RENDERER.response(EXAMPLES[1].prompt, "a 猫 🙂")[:-1]
    assert all(math.isnan(c.log_prob) for c in results)
    assert sum("no token ids" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("ids", [[], [10**6], [-1], ["a"], "ids", None], ids=str)
def test_invalid_token_ids_are_ignored(policy: Path, ids: Any) -> None:
    def reply(body: Body) -> list[Body]:
        return [
            {**choice, "token_ids": ids, "logprobs": {"token_logprobs": [None]}} for choice in numbered_choices(body)
        ]

    with OpenAIServer(reply=reply).open() as server:
        candidate = sampled(policy, backend(server.url))["e0"][0]
    assert candidate.token_ids == RENDERER.response(EXAMPLES[0].prompt, candidate.text)
    assert math.isnan(candidate.log_prob)


def test_missing_end_token_is_added(policy: Path) -> None:
    def reply(body: Body) -> list[Body]:
        return [{"text": "the", "finish_reason": "stop", "token_ids": ids_of("the")}] * body["n"]

    with OpenAIServer(reply=reply).open() as server:
        candidate = sampled(policy, backend(server.url))["e0"][0]
    assert candidate.token_ids == [*ids_of("the"), TOKENIZER.eos_token_id]


def test_chat_log_probs_are_summed(policy: Path) -> None:
    def reply(body: Body) -> list[Body]:
        logprobs = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -0.25}]}
        return [{**choice, "logprobs": logprobs} for choice in numbered_choices(body)]

    with OpenAIServer(reply=reply).open() as server:
        assert sampled(policy, backend(server.url, api="chat"))["e0"][0].log_prob == -1.25


@pytest.mark.parametrize("at_once", [1, 2])
def test_missing_choices_are_requested_with_another_seed(policy: Path, at_once: int) -> None:
    with OpenAIServer(reply=lambda body: numbered_choices(body)[:at_once]).open() as server:
        results = sampled(policy, backend(server.url))
    assert all([c.sample for c in candidates] == [0, 1, 2] for candidates in results.values())
    bodies = [call.body for call in server.requests if call.body["prompt"] == REQUESTS[0].prompt]
    assert [body["n"] for body in bodies] == ([3, 2, 1] if at_once == 1 else [3, 1])
    assert len({body["seed"] for body in bodies}) == len(bodies)


def test_surplus_choices_are_ignored(policy: Path) -> None:
    with OpenAIServer(reply=lambda body: numbered_choices({**body, "n": 9})).open() as server:
        assert {len(candidates) for candidates in sampled(policy, backend(server.url)).values()} == {3}


def content_filtered(body: Body) -> list[Body]:
    first, *others = numbered_choices(body)
    return [{**first, "finish_reason": "content_filter"}, {"finish_reason": "stop", "text": None}, *others]


def test_filtered_choices_are_requested_again(policy: Path) -> None:
    with OpenAIServer(
        reply=lambda body: (content_filtered if body["n"] == 3 else numbered_choices)(body)
    ).open() as server:
        results = sampled(policy, backend(server.url, retries=0))["e0"]
    assert [c.finish_reason for c in results] == ["stop"] * 3


def test_prompt_with_only_filtered_choices_fails(policy: Path) -> None:
    with OpenAIServer(reply=lambda body: content_filtered({**body, "n": 1})).open() as server:
        (failure,) = sampled(policy, backend(server.url, retries=0))["e0"]
    assert failure.failed
    assert failure.text == "no usable choice in the answer (finish_reason content_filter) (tries: 1)"


# --- failed prompts


def responder(server_backend: OpenAI, shard: int = 2) -> Responder:
    return Responder(server_backend, Local(shard, 1), "cpu")


def settings(server_backend: OpenAI, max_failed: float) -> Generation:
    return Generation(None, 3, 0.8, 0.9, 50, 64, 0, max_failed, server_backend, None, None, None, None)


def refuse(*names: str) -> Any:
    prompts = [request.prompt for request in REQUESTS if request.id in names]
    refusal = Fault(400, b'{"error": {"message": "not this one"}}')
    return lambda number, body: refusal if body["prompt"] in prompts else None


def test_generate_drops_and_lists_failed_prompts(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with OpenAIServer(fault=refuse("e2", "e5")).open() as server, caplog.at_level(logging.WARNING):
        server_backend = backend(server.url)
        summary = generate(tmp_path, settings(server_backend, 0.5), responder(server_backend), policy, EXAMPLES)
    assert list(dict(candidates_by_prompt(tmp_path))) == ["e0", "e1", "e3", "e4"]
    assert (summary["prompts"], summary["responses"], summary["failed"]) == (4, 12, 2)
    assert summary["failed_because"] == {"HTTP 400: not this one": 2}
    assert json.loads((tmp_path / FAILURES).read_text()) == dict.fromkeys(["e2", "e5"], "HTTP 400: not this one")
    assert "2 of 6 prompts got no response: HTTP 400: not this one" in caplog.text
    json.dumps(summary)


def test_too_many_failures_raise_and_the_next_run_retries_only_these(policy: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    with OpenAIServer(fault=refuse("e2", "e5")).open() as server:
        server_backend = backend(server.url)
        with pytest.raises(UserError, match=r"2 of 6 prompts .*HTTP 400: not this one.*max_failed_fraction=0\.2"):
            generate(broken, settings(server_backend, 0.2), responder(server_backend), policy, EXAMPLES)
    with OpenAIServer(fault=refuse("e5")).open() as server:  # one of the two is answered now
        server_backend = backend(server.url)
        with pytest.raises(UserError, match="1 of 6 prompts"):
            generate(broken, settings(server_backend, 0.1), responder(server_backend), policy, EXAMPLES)
    assert {tuple(call.body["prompt"]) for call in server.requests} == {tuple(REQUESTS[i].prompt) for i in (2, 5)}
    assert len(server.requests) == 2
    with OpenAIServer().open() as server:
        server_backend = backend(server.url)
        summary = generate(broken, settings(server_backend, 0.0), responder(server_backend), policy, EXAMPLES)
        assert [call.body["prompt"] for call in server.requests] == [REQUESTS[5].prompt]
        assert generate(whole, settings(server_backend, 0.0), responder(server_backend), policy, EXAMPLES) == summary
    assert (broken / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert not list(broken.rglob("again/*"))


def test_generate_with_all_prompts_failed_always_raises(policy: Path, tmp_path: Path) -> None:
    with OpenAIServer(fault=lambda *_: Fault(400)).open() as server:
        server_backend = backend(server.url)
        with pytest.raises(UserError, match="6 of 6 prompts got no response"):
            generate(tmp_path, settings(server_backend, 1.0), responder(server_backend), policy, EXAMPLES)


def test_server_that_disappears_raises_and_keeps_finished_shards(policy: Path, tmp_path: Path) -> None:
    with OpenAIServer().open() as server:

        def leave(number: int, body: Body) -> Fault | None:
            if number < 2:
                return None
            server.models = None  # as a proxy answers when its server has stopped
            return Fault(502)

        server.fault = leave
        server_backend = backend(server.url)
        with pytest.raises(UserError, match=r"no server answers .*HTTP 502: out of order .tries: 2."):
            responder(server_backend).sample(policy, REQUESTS, DECODING, 0, tmp_path, "test")
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_answers_with_a_failed_prompt_raises(policy: Path, tmp_path: Path) -> None:
    failure = pytest.raises(UserError, match=r"SFT: 1 of 6 prompts got no response \(HTTP 400: not this one\)")
    with OpenAIServer(fault=refuse("e1")).open() as server, failure:
        responder(backend(server.url)).answers(policy, REQUESTS, DECODING, 0, tmp_path, "SFT")


# --- checks before any compute, and before sampling


def test_unreachable_server_warns_in_check_and_raises_in_open(caplog: pytest.LogCaptureFixture, policy: Path) -> None:
    nowhere = backend("http://127.0.0.1:9/v1")
    nowhere.check()
    assert "http://127.0.0.1:9/v1: " in caplog.text
    with (
        pytest.raises(UserError, match=rf"no server answers .* vllm serve {policy} --served-model-name selfco"),
        nowhere.open(policy, "cpu"),
    ):
        pass


def test_server_of_another_model_raises(policy: Path) -> None:
    with OpenAIServer(models=["llama", "qwen"]).open() as server:
        with pytest.raises(UserError, match=r"backend\.model=selfcontrast: http\S+ offers llama, qwen"):
            backend(server.url).check()
        with pytest.raises(UserError, match="offers llama, qwen"), backend(server.url).open(policy, "cpu"):
            pass


def test_server_without_a_list_of_models_is_accepted(server: OpenAIServer, policy: Path) -> None:
    with OpenAIServer(models=None).open() as silent:
        backend(silent.url).check()
        assert sampled(policy, backend(silent.url, server.url))["e0"][0].text


@pytest.mark.parametrize("same", [True, False])
def test_server_with_a_model_of_another_folder_warns(
    policy: Path, tmp_path: Path, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with OpenAIServer(root=str(policy if same else tmp_path)).open() as server, backend(server.url).open(policy, "cpu"):
        pass
    assert ("not the fine-tuned model" in caplog.text) == (not same)


def test_missing_key_raises_in_check(monkeypatch: pytest.MonkeyPatch, server: OpenAIServer) -> None:
    monkeypatch.delenv("OWN_KEY", raising=False)
    with pytest.raises(UserError, match="api_key_env=OWN_KEY"):
        backend(server.url, api_key_env="OWN_KEY").check()


def test_unknown_api_raises() -> None:
    with pytest.raises(UserError, match=r"backend\.api=responses .*completions, chat"):
        backend("http://a/v1", api="responses")


def test_settings_in_the_store_key_leave_out_servers() -> None:
    other = backend("http://a/v1", retries=3, api_key_env="A", timeout=1.0, concurrency=9, initial_backoff=2.0)
    assert settings_of(other) == settings_of(backend("http://b/v1"))
    assert {"model", "api", "extra"} < set(settings_of(other))
