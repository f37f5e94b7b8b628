"""The backend that samples with vLLM: continuous batching, with the prompt computed once for its N responses."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from selfcontrast.constrained import Count, Fraction, Text, Workers, check_numbers
from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Sampler
from selfcontrast.generators.vllm_process import Respond, engines
from selfcontrast.generators.vllm_worker import Completion, CompletionRequest, VllmEngine
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import folder_hash

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # adapter ranks that vLLM supports

FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


def adapter_content(adapter: str | None) -> str | None:
    """Return the hash of the adapter's files, which determines the samples; its location does not."""
    return folder_hash(Path(adapter)) if adapter else None


@dataclass(frozen=True)
class VLLM:
    """Settings with vLLM's names and meanings, except for the attributes below. The vLLM build decides the device.

    Attributes:
        adapter: a LoRA adapter for the policy, in PEFT's format; None for the policy alone.
        python: an interpreter that has vLLM, which then runs in a separate process; None for this process.
        max_length: bound on the tokens of prompt and response together; vLLM's `max_model_len`.
        data_parallel_size: number of engines, each in its own process and on `tensor_parallel_size` devices.
    """

    follows_model: ClassVar[bool] = True
    has_log_probs: ClassVar[bool] = True

    dtype: str
    adapter: Text | None = field(metadata={"in_key_as": adapter_content})
    python: Text | None = field(metadata=NOT_IN_KEY)
    max_length: Count = field(metadata=NOT_IN_KEY)
    tensor_parallel_size: Workers = field(metadata=NOT_IN_KEY)
    data_parallel_size: Workers = field(metadata=NOT_IN_KEY)
    gpu_memory_utilization: Fraction = field(metadata=NOT_IN_KEY)
    enforce_eager: bool = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "backend")
        if self.dtype not in DTYPES:
            raise UserError(f"backend.dtype={self.dtype} must be one of {', '.join(DTYPES)}")

    def check(self) -> None:
        if self.python is None:
            if find_spec("vllm") is None:
                raise UserError(
                    "vLLM is not installed here. Run pip install -e '.[vllm]', "
                    "or set backend.python=PATH to the interpreter of an environment that has it."
                )
        else:
            _check_python(self.python)
        if self.adapter:
            _adapter_rank(self.adapter)
        _ = self._devices()

    @contextmanager
    def open(self, model: Path, device: str) -> Iterator[Sampler]:
        renderer = Renderer(load_tokenizer(model))

        def sampler(requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
            if decoding.max_length > self.max_length:
                raise UserError(
                    f"backend.max_length={self.max_length} is below max_length={decoding.max_length}. Raise it."
                )
            answers = respond([completion_request(r, decoding, seed, renderer.end_ids) for r in requests])
            return candidates_of_answers(requests, answers, renderer)

        with self.engine(model) as respond:
            yield sampler

    @contextmanager
    def engine(self, model: Path) -> Iterator[Respond]:
        """Start vLLM. Yield the function that completes requests."""
        import torch

        torch.cuda.empty_cache()  # vLLM would count training's cached memory as occupied
        arguments = {"options": self._options(model), "adapter": self.adapter and str(Path(self.adapter).resolve())}
        if self.python is None and self.data_parallel_size == 1:
            with _local_engine(arguments) as respond:
                yield respond
        else:
            with engines(self.python or sys.executable, arguments, self._devices()) as respond:
                yield respond

    def _options(self, model: Path) -> dict[str, Any]:
        """Return keywords of `vllm.LLM`."""
        lora = {"enable_lora": True, "max_lora_rank": _adapter_rank(self.adapter)} if self.adapter else {}
        return {
            "model": str(model.resolve()),
            "load_format": "safetensors",
            "dtype": self.dtype,
            "max_model_len": self.max_length,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enforce_eager": self.enforce_eager,
            "enable_prefix_caching": True,
            # Chunked prefill crashes vLLM 0.32 on the CPU on seeded requests: a partial prompt draws an extra token.
            "enable_chunked_prefill": False,
            "logprobs_mode": "raw_logprobs",  # the model's log-probabilities, before temperature and top_p
            "seed": 0,  # every request has a seed of its own
            **lora,
        }

    def _devices(self) -> list[str | None]:
        """Return `CUDA_VISIBLE_DEVICES` of each engine."""
        if self.data_parallel_size == 1:
            return [None]
        each, needed = self.tensor_parallel_size, self.tensor_parallel_size * self.data_parallel_size
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = variable.split(",") if variable else [str(i) for i in range(needed)]
        if len(visible) < needed:
            raise UserError(
                f"backend.data_parallel_size={self.data_parallel_size} times tensor_parallel_size={each} needs "
                f"{needed} devices, but CUDA_VISIBLE_DEVICES={variable} names {len(visible)}. Lower one of the two."
            )
        return [",".join(visible[i : i + each]) for i in range(0, needed, each)]


def candidates_of_answers(
    requests: Sequence[Request], answers: Sequence[Sequence[Completion]], renderer: Renderer
) -> list[Candidate]:
    """Convert vLLM's answers to candidates.

    Responses are cut at ids that are not in the tokenizer. The number of cut responses is logged.
    """
    candidates, cut = list[Candidate](), 0
    for request, responses in zip(requests, answers, strict=True):
        for sample, answer in enumerate(responses):
            ids, finish = renderer.cut_at_unknown(answer["token_ids"]), answer["finish_reason"]
            if ids != answer["token_ids"]:
                cut, finish = cut + 1, "length"
            candidates.append(Candidate(request.id, sample, renderer.text(ids), ids, finish, answer["log_prob"]))
    if cut:
        log.warning(
            "cut %d of %d responses at ids that are not in the tokenizer, which has %d tokens",
            cut,
            len(candidates),
            len(renderer.tokenizer),
        )
    return candidates


def completion_request(request: Request, decoding: Decoding, seed: int, end_ids: frozenset[int]) -> CompletionRequest:
    """Return vLLM's form of a request.

    Its seed depends only on `seed` and the request's id, so other requests cannot change the answer.
    """
    digest = hashlib.sha256(f"{seed}\0{request.id}".encode()).digest()
    return {
        "prompt": request.prompt,
        "params": {
            "n": decoding.samples,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": min(decoding.max_new_tokens, decoding.max_length - len(request.prompt)),
            # vLLM samples response i with seed + i, as a signed 64-bit number. With 62 bits the sum cannot overflow.
            "seed": int.from_bytes(digest[:8], "big") >> 2,
            # Stop at the renderer's end tokens only, whatever the model's generation config says.
            "ignore_eos": True,
            "stop_token_ids": sorted(end_ids),
        },
    }


@contextmanager
def _local_engine(arguments: dict[str, Any]) -> Iterator[Respond]:
    try:
        engine = VllmEngine(**arguments)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"vLLM failed: {' '.join(str(error).split())[:400]}. Change the backend's settings, or use backend=hf."
        ) from error
    try:
        yield engine.respond
    finally:
        engine.close()


def _check_python(python: str) -> None:
    try:
        result = subprocess.run([python, "-E", "-P", "-c", FIND], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"backend.python={python} cannot be run ({error}). Set it to an interpreter.") from error
    if result.returncode:
        reason = f"it fails: {result.stderr.strip().splitlines()[-1]}" if result.stderr.strip() else "it has no vLLM"
        raise UserError(f"backend.python={python}: {reason}. Install it: {python} -m pip install 'vllm>=0.32,<0.33'")


def _adapter_rank(adapter: str) -> int:
    """Return the smallest rank that vLLM supports and that is at least the adapter's rank."""
    folder = Path(adapter)
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"backend.adapter={adapter} has no adapter_model.safetensors. Set it to an adapter's folder.")
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = max(int(config["r"]), *config.get("rank_pattern", {}).values(), 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"backend.adapter={adapter}: its adapter_config.json cannot be read ({error}). Copy the adapter again."
        ) from error
    if rank > RANKS[-1]:
        raise UserError(
            f"backend.adapter={adapter}: its rank {rank} is above vLLM's largest, {RANKS[-1]}. Merge the adapter."
        )
    return next(supported for supported in RANKS if supported >= rank)
