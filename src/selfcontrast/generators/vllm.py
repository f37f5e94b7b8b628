"""The backend that samples with vLLM: continuous batching, the prompt computed once for its N responses."""

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
from selfcontrast.generators.vllm_worker import Ask, Completion, VllmEngine
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import folder_hash

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM makes room for

FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


def adapter_content(adapter: str | None) -> str | None:
    """What decides the result of sampling through an adapter: its files, not where they lie."""
    return folder_hash(Path(adapter)) if adapter else None


@dataclass(frozen=True)
class VLLM:
    """vLLM's names and meanings, but for `adapter` and `python`. It samples on the devices that its build is for.

    Attributes:
        adapter: a LoRA adapter over the policy, in PEFT's format; None for the policy alone.
        python: an interpreter that has vLLM, to run it in a process of its own; None for this process.
        data_parallel_size: engines side by side, each on `tensor_parallel_size` devices and in a process of its own.
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
            raise UserError(f"backend.dtype={self.dtype}: one of {', '.join(DTYPES)}")

    def check(self) -> None:
        if self.python is None:
            if find_spec("vllm") is None:
                raise UserError(
                    "vLLM is not installed here: pip install -e '.[vllm]', "
                    "or name the interpreter of an environment that has it with backend.python=PATH"
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
                    f"backend.max_length={self.max_length} is below max_length={decoding.max_length}: raise it"
                )
            answers = respond([ask(request, decoding, seed, renderer.end_ids) for request in requests])
            return candidates_of_answers(requests, answers, renderer)

        with self.engine(model) as respond:
            yield sampler

    @contextmanager
    def engine(self, model: Path) -> Iterator[Respond]:
        """vLLM itself, to be asked in its own terms."""
        import torch

        torch.cuda.empty_cache()  # what training holds without using it, vLLM would count as taken
        own = {"options": self._options(model), "adapter": self.adapter and str(Path(self.adapter).resolve())}
        if self.python is None and self.data_parallel_size == 1:
            with _engine_here(own) as respond:
                yield respond
        else:
            with engines(self.python or sys.executable, own, self._devices()) as respond:
                yield respond

    def _options(self, model: Path) -> dict[str, Any]:
        """Keywords of `vllm.LLM`."""
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
            # Half a prompt draws a token too many, which vLLM 0.32 on the CPU cannot undo in a seeded request: it dies.
            "enable_chunked_prefill": False,
            "logprobs_mode": "raw_logprobs",  # of the model's own distribution, before temperature and top_p
            "seed": 0,  # every request brings its own
            **lora,
        }

    def _devices(self) -> list[str | None]:
        """`CUDA_VISIBLE_DEVICES` of each engine."""
        if self.data_parallel_size == 1:
            return [None]
        each, needed = self.tensor_parallel_size, self.tensor_parallel_size * self.data_parallel_size
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = given.split(",") if given else [str(i) for i in range(needed)]
        if len(visible) < needed:
            raise UserError(
                f"backend.data_parallel_size={self.data_parallel_size} times tensor_parallel_size={each} needs "
                f"{needed} devices, and CUDA_VISIBLE_DEVICES={given} names {len(visible)}: lower one of the two"
            )
        return [",".join(visible[i : i + each]) for i in range(0, needed, each)]


def candidates_of_answers(
    requests: Sequence[Request], answers: Sequence[Sequence[Completion]], renderer: Renderer
) -> list[Candidate]:
    """vLLM's answers, cut where they hold an id that the tokenizer lacks, which is counted in a warning."""
    found, cut = list[Candidate](), 0
    for request, responses in zip(requests, answers, strict=True):
        for sample, answer in enumerate(responses):
            ids, finish = renderer.known(answer["token_ids"]), answer["finish_reason"]
            if ids != answer["token_ids"]:
                cut, finish = cut + 1, "length"
            found.append(Candidate(request.id, sample, renderer.text(ids), ids, finish, answer["log_prob"]))
    if cut:
        log.warning(
            "vLLM drew ids that the tokenizer lacks in %d of %d responses, which are cut there: its vocabulary has %d",
            cut,
            len(found),
            len(renderer.tokenizer),
        )
    return found


def ask(request: Request, decoding: Decoding, seed: int, end_ids: frozenset[int]) -> Ask:
    """What vLLM is asked for a request. Its seed is the request's own, so no other request can change the answer."""
    digest = hashlib.sha256(f"{seed}\0{request.id}".encode()).digest()
    return {
        "prompt": request.prompt,
        "params": {
            "n": decoding.samples,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": min(decoding.max_new_tokens, decoding.max_length - len(request.prompt)),
            # vLLM samples response i with seed + i: two bits are left for that in a signed 64-bit number.
            "seed": int.from_bytes(digest[:8], "big") >> 2,
            # The renderer's ends and no others, wherever the model's generation config may want to stop.
            "ignore_eos": True,
            "stop_token_ids": sorted(end_ids),
        },
    }


@contextmanager
def _engine_here(own: dict[str, Any]) -> Iterator[Respond]:
    try:
        engine = VllmEngine(**own)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"vLLM failed: {' '.join(str(error).split())[:400]}") from error
    try:
        yield engine.respond
    finally:
        engine.close()


def _check_python(python: str) -> None:
    try:
        found = subprocess.run([python, "-E", "-P", "-c", FIND], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"backend.python={python}: cannot be run ({error})") from error
    if found.returncode:
        why = f"it fails: {found.stderr.strip().splitlines()[-1]}" if found.stderr.strip() else "it has no vLLM"
        raise UserError(f"backend.python={python}: {why}; install it there: {python} -m pip install 'vllm>=0.32,<0.33'")


def _adapter_rank(adapter: str) -> int:
    """The room that an adapter needs: the least rank of vLLM's that holds its own."""
    folder = Path(adapter)
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"backend.adapter={adapter}: no adapter_model.safetensors there")
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = max(int(config["r"]), *config.get("rank_pattern", {}).values(), 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"backend.adapter={adapter}: its adapter_config.json cannot be read ({error})") from error
    if rank > RANKS[-1]:
        raise UserError(f"backend.adapter={adapter}: its rank {rank} is above vLLM's largest, {RANKS[-1]}: merge it")
    return next(room for room in RANKS if room >= rank)
