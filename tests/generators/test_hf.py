"""Test sampling with transformers in shards, and the generate stage."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcontrast.data.candidates import Candidate, Decoding, Request, read_candidates
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Responder, Sampler, with_room
from selfcontrast.generators.generate import FILE, Generation, choose, generate
from selfcontrast.generators.hf import HF, OomBatcher
from selfcontrast.generators.sampling import sample
from selfcontrast.models.loading import load_model, load_tokenizer
from tiny import candidates_by_prompt, example, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
EXAMPLES = [example(f"e{i}", "the cat " * (1 + i % 4), "a cat") for i in range(9)]
REQUESTS = [Request(e.id, RENDERER.prompt(e.prompt)) for e in EXAMPLES]
DECODING = Decoding(samples=3, temperature=1.0, top_p=1.0, max_new_tokens=5, max_length=64)


def settings(**changes: Any) -> Generation:
    valid: dict[str, Any] = {
        "prompts": None,
        "samples": 3,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 5,
        "max_length": 64,
        "seed": 0,
        "max_failed_fraction": 0.0,
        "model": None,
        "system": None,
        "model_revision": None,
        "model_samples": None,
    }
    return Generation(**{**valid, **changes}, backend=HF("float32", 6))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def responder(batch_size: int = 6, shard: int = 3) -> Responder:
    return Responder(HF("float32", batch_size), Local(shard, 1), "cpu")


def generate_all(policy: Path, shards: Path, batch_size: int = 6, shard: int = 3) -> dict[str, list[Candidate]]:
    return responder(batch_size, shard).answers(policy, REQUESTS, DECODING, 0, shards, "test")


def tokens(results: dict[str, list[Candidate]]) -> dict[str, list[list[int]]]:
    return {name: [c.token_ids for c in candidates] for name, candidates in results.items()}


@pytest.mark.parametrize(("batch_size", "shard"), [(1, 1), (7, 4), (1000, 1000)])
def test_batch_and_shard_size_do_not_change_samples(policy: Path, tmp_path: Path, batch_size: int, shard: int) -> None:
    expected = generate_all(policy, tmp_path / "a")
    assert list(expected) == [request.id for request in REQUESTS]
    assert all([c.sample for c in candidates] == [0, 1, 2] for candidates in expected.values())
    assert tokens(generate_all(policy, tmp_path / "b", batch_size, shard)) == tokens(expected)


def test_finished_shards_are_not_sampled_again(policy: Path, tmp_path: Path) -> None:
    expected = generate_all(policy, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [len(read_candidates(file)) for file in files] == [9, 9, 9]
    before = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    unfinished = tmp_path / f"{files[1].stem}.1.writing"
    unfinished.write_bytes(b"half a sha")
    assert generate_all(policy, tmp_path) == expected
    after = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert sorted(after) == sorted([*files, unfinished])
    assert [file for file in files if after[file] != before[file]] == [files[1]]


def test_logged_rate_counts_only_new_samples(policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expected = generate_all(policy, tmp_path)
    first = sorted(tmp_path.iterdir())[0]
    resampled = sum(len(c.token_ids) for c in read_candidates(first))
    first.unlink()
    generate_all(policy, tmp_path)
    generate_all(policy, tmp_path)  # nothing is left to sample, so nothing is logged
    counts = [m.split()[1] for m in caplog.messages if re.fullmatch(r"test: \d+ tokens in .* s: \d+ tokens/s", m)]
    assert counts == [str(sum(len(c.token_ids) for results in expected.values() for c in results)), str(resampled)]


def test_prompts_of_similar_length_are_sampled_together(tmp_path: Path) -> None:
    lengths_by_batch: list[list[int]] = []

    class RecordingBackend(HF):
        @contextmanager
        def open(self, model: Path, device: str) -> Iterator[Sampler]:
            def sampler(requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
                lengths_by_batch.append([len(request.prompt) for request in requests])
                return [Candidate(r.id, s, "", [1], "stop", 0.0) for r in requests for s in range(decoding.samples)]

            yield sampler

    Responder(RecordingBackend("float32", 6), Local(3, 1), "cpu").answers(
        tmp_path, REQUESTS, DECODING, 0, tmp_path, "test"
    )
    lengths = sorted(len(request.prompt) for request in REQUESTS)
    assert len(set(lengths)) > 1
    assert lengths_by_batch == [lengths[0:3], lengths[3:6], lengths[6:9]]


def test_model_is_not_loaded_if_all_shards_exist(policy: Path, tmp_path: Path) -> None:
    expected = generate_all(policy, tmp_path / "shards")
    without_weights = policy_folder(tmp_path / "bare")
    (without_weights / "model.safetensors").unlink()
    assert generate_all(without_weights, tmp_path / "shards") == expected


def test_generate_with_another_shard_size_reuses_no_wrong_shards(policy: Path, tmp_path: Path) -> None:
    expected = generate_all(policy, tmp_path, shard=3)
    assert tokens(generate_all(policy, tmp_path, shard=2)) == tokens(expected)


def test_interrupted_run_resumes_to_identical_bytes(policy: Path, tmp_path: Path) -> None:
    class Interrupted(HF):
        """A backend that is interrupted after its second shard."""

        @contextmanager
        def open(self, model: Path, device: str) -> Iterator[Sampler]:
            shards = iter(range(2))
            with super().open(model, device) as sample:

                def sampler(*args: Any) -> list[Candidate]:
                    if next(shards, None) is None:
                        raise KeyboardInterrupt
                    return sample(*args)

                yield sampler

    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for folder in (uninterrupted, resumed):
        folder.mkdir()
    summary = generate(uninterrupted, settings(), responder(), policy, EXAMPLES)
    interrupted = Responder(Interrupted("float32", 6), Local(3, 1), "cpu")
    with pytest.raises(KeyboardInterrupt):
        generate(resumed, settings(), interrupted, policy, EXAMPLES)
    assert len(list((resumed / "resume/shards").iterdir())) == 2
    assert generate(resumed, settings(), responder(), policy, EXAMPLES) == summary
    assert (uninterrupted / FILE).read_bytes() == (resumed / FILE).read_bytes()


def test_generate_summary_counts_prompts_responses_and_tokens(policy: Path, tmp_path: Path) -> None:
    long = example("long", "the cat " * 40, "a cat")
    summary = generate(tmp_path, settings(), responder(), policy, [*EXAMPLES, long])
    results = dict(candidates_by_prompt(tmp_path))
    candidates = [c for candidates in results.values() for c in candidates]
    assert list(results) == [e.id for e in sorted(EXAMPLES, key=lambda e: (len(e.prompt[0]["content"]), e.id))]
    assert summary == {
        "prompts": 9,
        "prompts_without_room": 1,
        "failed": 0,
        "responses": 27,
        "tokens": sum(len(c.token_ids) for c in candidates),
        "tokens_per_response": pytest.approx(sum(len(c.token_ids) for c in candidates) / 27),
        "cut_share": pytest.approx(sum(c.finish_reason == "length" for c in candidates) / 27),
    }
    json.dumps(summary)


def test_generate_with_only_too_long_prompts_raises(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.max_length=4"):
        generate(tmp_path, settings(max_length=4), responder(), policy, EXAMPLES)


def test_with_room_drops_and_logs_full_prompts(caplog: pytest.LogCaptureFixture) -> None:
    requests = [Request(str(n), [1] * n) for n in (3, 4, 5)]
    decoding = Decoding(1, 1.0, 1.0, 5, 5)
    with caplog.at_level(logging.WARNING):
        assert with_room(requests[:2], decoding) == requests[:2]
        assert not caplog.messages
        assert with_room(requests, decoding) == requests[:2]
    assert "1 of 3 prompts" in caplog.messages[0]


def test_choose_fewer_prompts_gives_a_subset_in_order() -> None:
    sizes = {count: [e.id for e in choose(EXAMPLES, count, seed=4)] for count in (1, 3, 8)}
    assert [len(chosen) for chosen in sizes.values()] == [1, 3, 8]
    assert set(sizes[1]) < set(sizes[3]) < set(sizes[8])
    assert all(chosen == sorted(chosen) for chosen in sizes.values())
    assert choose(EXAMPLES, None, 0) == choose(EXAMPLES, 99, 0) == EXAMPLES
    assert [e.id for e in choose(EXAMPLES, 3, seed=5)] != sizes[3]


@pytest.mark.parametrize("wrong", [{"prompts": 0}, {"temperature": 0.0}, {"samples": 0}, {"top_p": 2.0}], ids=str)
def test_generation_with_invalid_values_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        settings(**wrong)


@pytest.mark.parametrize("wrong", [("int8", 1), ("float32", 0)], ids=str)
def test_hf_with_invalid_values_raises(wrong: tuple[str, int]) -> None:
    with pytest.raises(UserError, match=r"backend\."):
        HF(*wrong)


# --- memory


class LimitedMemory(OomBatcher):
    """A real model on a device where more than `capacity` responses at once do not fit."""

    def __init__(self, policy: Path, capacity: int, error: Exception) -> None:
        model, tokenizer = load_model(policy).eval(), load_tokenizer(policy)
        self.sizes: list[int] = []

        def draw(requests: Sequence[Request], samples: range, decoding: Decoding, seed: int) -> list[Candidate]:
            self.sizes.append(len(requests) * len(samples))
            if self.sizes[-1] > capacity:
                raise error
            return sample(model, tokenizer, requests, decoding, seed, RENDERER.end_ids, samples)

        super().__init__(1000, draw)


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    "cpu, too": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_batches_halve_when_memory_runs_out(error: Exception, policy: Path, caplog: pytest.LogCaptureFixture) -> None:
    batcher = LimitedMemory(policy, 9, error)
    results = batcher(REQUESTS, DECODING, 0)
    # 9 prompts of 3 samples are 27 rows and do not fit. 4 prompts, 12 rows, do not fit either. 2 prompts fit.
    assert batcher.sizes == [27, 12, 6, 6, 6, 6, 3]
    assert [m.partition(" (")[0] for m in caplog.messages] == [
        "out of memory with 27 responses at once, retrying with 13",
        "out of memory with 12 responses at once, retrying with 6",
    ]
    undivided = LimitedMemory(policy, 1000, error)(REQUESTS, DECODING, 0)
    assert [(c.id, c.sample, c.token_ids, c.finish_reason) for c in results] == [
        (c.id, c.sample, c.token_ids, c.finish_reason) for c in undivided
    ]
    assert [c.log_prob for c in results] == pytest.approx([c.log_prob for c in undivided], abs=1e-4)
    batcher(REQUESTS[:1], DECODING, 0)
    assert batcher.sizes[-1] == 3


@pytest.mark.parametrize(("capacity", "sizes"), [(2, [3, 1, 1, 1]), (1, [3, 1, 1, 1])])
def test_samples_of_one_prompt_are_split_if_they_do_not_fit(capacity: int, sizes: list[int], policy: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    batcher = LimitedMemory(policy, capacity, error)
    results = batcher(REQUESTS[:1], DECODING, 0)
    assert batcher.sizes == sizes
    assert [(c.sample, c.token_ids) for c in results] == [
        (c.sample, c.token_ids) for c in LimitedMemory(policy, 1000, error)(REQUESTS[:1], DECODING, 0)
    ]


def test_single_response_that_does_not_fit_raises(policy: Path) -> None:
    with pytest.raises(UserError, match=r"single response \(CUDA out of memory\.\)"):
        LimitedMemory(policy, 0, torch.OutOfMemoryError("CUDA out of memory."))(REQUESTS, DECODING, 0)


def test_sampler_error_other_than_out_of_memory_raises(policy: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        LimitedMemory(policy, 0, RuntimeError("shape mismatch"))(REQUESTS, DECODING, 0)
