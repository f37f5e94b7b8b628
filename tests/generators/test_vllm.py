"""Compare vLLM's responses with those of transformers, and test their dependence on the seed.

Tests marked `vllm` run the real engine, on the CPU (`make test-vllm`).
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy import stats
from transformers import LlamaForCausalLM

from selfcontrast.data.candidates import Candidate, Decoding, Request, candidates_table
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators import vllm
from selfcontrast.generators.backend import Sampler
from selfcontrast.generators.vllm import VLLM, completion_request
from selfcontrast.store import settings_of
from tiny import ROOT, tokenizer
from vllm_cases import FREE, GREEDY, LENGTH, REQUESTS, backend, hf_answers, same

TOKENIZER = tokenizer()
ENDS = Renderer(TOKENIZER).end_ids


@pytest.fixture(scope="module")
def vllm_sampler(vllm_python: str, wide_policy: Path) -> Iterator[Sampler]:
    with backend(python=vllm_python).open(wide_policy, "cpu") as sample:
        yield sample


@pytest.fixture(scope="module")
def one_batch(vllm_sampler: Sampler) -> list[Candidate]:
    return vllm_sampler(REQUESTS, FREE, 0)


def test_ids_outside_the_tokenizer_end_a_response(caplog: pytest.LogCaptureFixture) -> None:
    """Some models pad their vocabulary, and vLLM also draws the padding ids."""
    valid, renderer = TOKENIZER("the cat")["input_ids"], Renderer(TOKENIZER)
    beyond = len(TOKENIZER)
    sampled_ids = [[*valid, beyond, *valid], [beyond + 7], [*valid, renderer.end_id], [-1]]
    answers = [[{"token_ids": ids, "finish_reason": "stop", "log_prob": -1.0} for ids in sampled_ids]]
    results = vllm.candidates_of_answers(REQUESTS[:1], answers, renderer)  # type: ignore[arg-type]
    assert [c.token_ids for c in results] == [valid, [renderer.end_id], [*valid, renderer.end_id], [renderer.end_id]]
    assert [(c.text, c.finish_reason) for c in results] == [
        ("the cat", "length"), ("", "length"), ("the cat", "stop"), ("", "length"),
    ]  # fmt: skip
    assert "3 of 4 responses" in caplog.text


@pytest.mark.vllm
def test_greedy_samples_equal_transformers(vllm_sampler: Sampler, wide_policy: Path) -> None:
    expected = hf_answers(wide_policy)
    assert len({len(request.prompt) for request in REQUESTS}) >= 6
    assert same(vllm_sampler(REQUESTS, GREEDY, 0), expected)


@pytest.mark.vllm
@pytest.mark.parametrize("decoding", [FREE, Decoding(3, 0.7, 0.8, 12, LENGTH)], ids=["free", "sharp"])
def test_log_prob_equals_a_forward_pass_at_temperature_one(
    vllm_sampler: Sampler, wide_model: LlamaForCausalLM, decoding: Decoding
) -> None:
    prompts = {request.id: request.prompt for request in REQUESTS}
    for candidate in vllm_sampler(REQUESTS, decoding, 3):
        row = torch.tensor([prompts[candidate.id] + candidate.token_ids])
        with torch.no_grad():
            log_probs = wide_model(row).logits[0].log_softmax(-1)
        start = len(prompts[candidate.id]) - 1
        expected = sum(float(log_probs[start + i, token]) for i, token in enumerate(candidate.token_ids))
        assert candidate.log_prob == pytest.approx(expected, abs=1e-3)


@pytest.mark.vllm
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.5)])
def test_draws_follow_the_softmax_within_the_nucleus(
    vllm_sampler: Sampler, wide_model: LlamaForCausalLM, temperature: float, top_p: float
) -> None:
    results = vllm_sampler(REQUESTS[:1], Decoding(2000, temperature, top_p, 1, LENGTH), 0)
    counts = np.bincount([c.token_ids[0] for c in results], minlength=wide_model.config.vocab_size)
    with torch.no_grad():
        logits = wide_model(torch.tensor([REQUESTS[0].prompt])).logits[0, -1].double()
    ordered, order = (logits / temperature).softmax(-1).sort(descending=True)
    size = int((ordered.cumsum(0) < top_p).sum()) + 1 if top_p < 1 else len(ordered)
    assert counts[order[size:].numpy()].sum() == 0
    counts, expected = counts[order[:size].numpy()], (ordered[:size] / ordered[:size].sum() * 2000).numpy()
    likely = expected >= 5  # unlikely tokens form one class
    observed = [*counts[likely], counts[~likely].sum()]
    classes = [*expected[likely], expected[~likely].sum()]
    kept = [i for i, e in enumerate(classes) if e > 0]
    assert len(kept) > 10
    assert stats.chisquare([observed[i] for i in kept], [classes[i] for i in kept]).pvalue > 1e-3


@pytest.mark.vllm
def test_same_requests_give_the_same_bytes(vllm_sampler: Sampler, one_batch: list[Candidate]) -> None:
    vllm_sampler(REQUESTS[2:5], FREE, 5)  # the engine serves other requests in between
    assert candidates_table(vllm_sampler(REQUESTS, FREE, 0)).equals(candidates_table(one_batch))


@pytest.mark.vllm
@pytest.mark.parametrize("shards", [[[0], [1], [2], [3], [4], [5], [6]], [[6, 3, 0], [4, 5, 2, 1]]], ids=str)
def test_responses_do_not_depend_on_the_shard(
    vllm_sampler: Sampler, one_batch: list[Candidate], shards: list[list[int]]
) -> None:
    from_shards = [c for shard in shards for c in vllm_sampler([REQUESTS[i] for i in shard], FREE, 0)]
    assert same(sorted(from_shards, key=lambda c: (c.id, c.sample)), one_batch)


@pytest.mark.vllm
def test_another_seed_or_another_id_draws_other_responses(vllm_sampler: Sampler, one_batch: list[Candidate]) -> None:
    ids = [c.token_ids for c in one_batch[:4]]
    assert len({tuple(token_ids) for token_ids in ids}) == 4
    assert [c.token_ids for c in vllm_sampler(REQUESTS[:1], FREE, 1)] != ids
    assert [c.token_ids for c in vllm_sampler([Request("other", REQUESTS[0].prompt)], FREE, 0)] != ids


@pytest.mark.vllm
def test_fewer_samples_equal_the_first_of_more_samples(vllm_sampler: Sampler, one_batch: list[Candidate]) -> None:
    for samples in (1, 2):
        fewer = vllm_sampler(REQUESTS, Decoding(samples, 1.0, 1.0, 16, LENGTH), 0)
        assert same(fewer, [c for c in one_batch if c.sample < samples])


@pytest.mark.vllm
def test_response_stops_at_its_first_end_token_or_its_limit(vllm_sampler: Sampler) -> None:
    # The prompts have more tokens than vLLM computes in a step, so some requests wait.
    assert 24 * sum(len(request.prompt) for request in REQUESTS) > 4096
    results = vllm_sampler(REQUESTS, Decoding(24, 1.0, 1.0, 32, LENGTH), 0)
    rooms = {request.id: min(32, LENGTH - len(request.prompt)) for request in REQUESTS}
    assert min(rooms.values()) < 32
    assert {c.finish_reason for c in results} == {"stop", "length"}
    for candidate in results:
        ended = [token in ENDS for token in candidate.token_ids]
        assert not any(ended[:-1])
        assert (candidate.finish_reason == "stop") == ended[-1]
        assert candidate.finish_reason == "stop" or len(candidate.token_ids) == rooms[candidate.id]
        assert candidate.text == TOKENIZER.decode(candidate.token_ids, skip_special_tokens=True).strip()


@pytest.mark.vllm
def test_max_length_bounds_prompt_and_response_together(vllm_sampler: Sampler, one_batch: list[Candidate]) -> None:
    bound = max(len(request.prompt) for request in REQUESTS) + 1  # the longest prompt has room for a single token
    prompts = {request.id: request.prompt for request in REQUESTS}
    for short, free in zip(vllm_sampler(REQUESTS, Decoding(4, 1.0, 1.0, 16, bound), 0), one_batch, strict=True):
        room = min(16, bound - len(prompts[short.id]))
        assert short.token_ids == free.token_ids[:room]
        assert short.finish_reason == ("stop" if short.token_ids[-1] in ENDS else "length")


@pytest.mark.vllm
def test_max_length_above_max_model_len_raises(vllm_sampler: Sampler) -> None:
    with pytest.raises(UserError, match=r"backend\.max_length=128 .*max_length=129"):
        vllm_sampler(REQUESTS, Decoding(1, 1.0, 1.0, 8, LENGTH + 1), 0)


def adapter(folder: Path, model: LlamaForCausalLM, rank: int = 4, alpha: int = 16) -> LlamaForCausalLM:
    """Write a LoRA adapter of random numbers in PEFT's format. Return the merged model: W + alpha/r B A."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    merged = LlamaForCausalLM(model.config).eval()
    merged.load_state_dict(model.state_dict())
    weights, random = {}, torch.Generator().manual_seed(0)
    for name, module in merged.named_modules():
        if name.split(".")[-1] in config["target_modules"]:
            a = torch.randn(rank, module.in_features, generator=random) * 0.1
            b = torch.randn(module.out_features, rank, generator=random) * 0.1
            module.weight.data += alpha / rank * b @ a
            prefix = f"base_model.model.{name}"
            weights |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    save_file(weights, folder / "adapter_model.safetensors")
    return merged


@pytest.mark.vllm
def test_adapter_equals_its_merged_model(
    vllm_python: str, wide_policy: Path, wide_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    merged = adapter(tmp_path / "adapter", wide_model)
    merged.save_pretrained(tmp_path / "merged")
    TOKENIZER.save_pretrained(tmp_path / "merged")
    expected = hf_answers(tmp_path / "merged")
    assert [c.token_ids for c in expected] != [c.token_ids for c in hf_answers(wide_policy)]
    with backend(python=vllm_python, adapter=str(tmp_path / "adapter")).open(wide_policy, "cpu") as sample:
        assert same(sample(REQUESTS, GREEDY, 0), expected)


def test_settings_in_the_key_hold_the_content_of_the_adapter(wide_model: LlamaForCausalLM, tmp_path: Path) -> None:
    adapter(tmp_path / "a", wide_model)
    adapter(tmp_path / "b", wide_model)
    keys = [settings_of(backend(adapter=str(tmp_path / name))) for name in "ab"]
    assert keys[0] == keys[1]
    (tmp_path / "b" / "adapter_config.json").write_text("{}")
    assert settings_of(backend(adapter=str(tmp_path / "b"))) != keys[0]


def test_settings_in_the_key_are_only_those_that_change_responses() -> None:
    elsewhere = backend(python="/usr/bin/python3", tensor_parallel_size=2, data_parallel_size=2, enforce_eager=False)
    assert settings_of(elsewhere) == settings_of(backend())
    assert settings_of(backend(dtype="bfloat16")) != settings_of(backend())


def test_completion_request_holds_decoding_limits_and_seed() -> None:
    request = completion_request(Request("a", [5, 6, 7]), Decoding(4, 0.7, 0.9, 10, 8), 0, frozenset({9, 4}))
    seed = request["params"].pop("seed")
    assert request == {
        "prompt": [5, 6, 7],
        "params": {
            "n": 4,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 5,
            "ignore_eos": True,
            "stop_token_ids": [4, 9],
        },
    }
    others = [
        completion_request(Request(name, [1]), FREE, other, ENDS)["params"]["seed"]
        for name, other in [("a", 1), ("b", 0), ("a1", 0)]
    ]
    assert len({seed, *others}) == 4
    assert all(0 <= value < 2**62 for value in (seed, *others))
    assert completion_request(Request("a", [1, 2]), GREEDY, 0, ENDS)["params"]["seed"] == seed


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "auto"},
        {"max_length": 0},
        {"tensor_parallel_size": 0},
        {"data_parallel_size": 0},
        {"gpu_memory_utilization": 0.0},
        {"gpu_memory_utilization": 1.5},
    ],
    ids=str,
)
def test_vllm_with_invalid_values_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"backend\.{next(iter(wrong))}="):
        backend(**wrong)


def test_check_without_vllm_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]'.*backend\.python=PATH"):
        backend().check()


def test_check_with_a_bad_interpreter_raises(bare_python: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backend\.python=.* no vLLM.* -m pip install"):
        backend(python=bare_python).check()
    with pytest.raises(UserError, match=r"backend\.python=.*nowhere cannot be run"):
        backend(python=str(tmp_path / "nowhere")).check()


@pytest.mark.vllm
def test_check_with_a_vllm_interpreter_passes(vllm_python: str) -> None:
    backend(python=vllm_python).check()


@pytest.mark.parametrize(
    ("config", "expected"), [({"r": 4}, 8), ({"r": 16}, 16), ({"r": 8, "rank_pattern": {"q_proj": 17}}, 32)], ids=str
)
def test_max_lora_rank_is_at_least_the_adapters_rank(tmp_path: Path, config: dict[str, Any], expected: int) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert backend(adapter=str(tmp_path))._options(tmp_path)["max_lora_rank"] == expected


def test_options_of_the_shipped_config_suit_a_gpu(tmp_path: Path) -> None:
    """conf/backend/vllm.yaml suits a GPU: bfloat16, prefix caching, 90% of the memory."""
    config = yaml.safe_load((ROOT / "conf/backend/vllm.yaml").read_text()) | {"max_length": 512}
    config.pop("_target_")
    assert VLLM(**config)._options(tmp_path) == {
        "model": str(tmp_path),
        "load_format": "safetensors",
        "dtype": "bfloat16",
        "max_model_len": 512,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.9,
        "enforce_eager": False,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": False,
        "logprobs_mode": "raw_logprobs",
        "seed": 0,
    }


@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_freed_before_the_engine_starts_and_after_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    events: list[str] = []

    class FakeEngine:
        def __init__(self, options: dict[str, Any], adapter: str | None) -> None:
            events.append("started")

        def respond(self, requests: list[Any]) -> list[Any]:
            raise ValueError("no answer")

        def close(self) -> None:
            events.append("closed")

    monkeypatch.setattr(vllm, "VllmEngine", FakeEngine)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("freed"))
    with (
        pytest.raises(ValueError, match="no answer") if fails else nullcontext(),
        backend().engine(tmp_path) as respond,
    ):
        events.append("asked")
        if fails:
            respond([])
    assert events == ["freed", "started", "asked", "closed"]


def test_invalid_adapter_raises(bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "find_spec", lambda name: True)
    faulty = backend(adapter=str(tmp_path))
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        faulty.check()
    (tmp_path / "adapter_model.safetensors").touch()
    for config, pattern in (("{", "cannot be read"), ("{}", "cannot be read"), ('{"r": 513}', "rank 513")):
        (tmp_path / "adapter_config.json").write_text(config)
        with pytest.raises(UserError, match=pattern):
            faulty.check()


def test_engines_get_disjoint_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "find_spec", lambda name: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert backend()._devices() == [None]
    on_four_devices = backend(data_parallel_size=2, tensor_parallel_size=2)
    assert on_four_devices._devices() == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,GPU-a,3,1")
    assert on_four_devices._devices() == ["7,5", "GPU-a,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UserError, match=r"4 devices.* CUDA_VISIBLE_DEVICES=0,1,2 names 3"):
        on_four_devices.check()
