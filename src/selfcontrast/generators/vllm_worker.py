"""vLLM's engine, asked in plain values; in this process, or at the other end of a pipe.

As a program it imports nothing but vLLM, so it runs in an environment that has no more than that:

    python -E -P vllm_worker.py      one JSON document a line: the engine's options, then asks; answered line by line
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

GRACE = 60  # seconds that an engine has to end by itself


class Ask(TypedDict):
    """A prompt's token ids, and how to continue it: keywords of `vllm.SamplingParams`."""

    prompt: list[int]
    params: dict[str, Any]


class Completion(TypedDict):
    """A response; its log-probability is the sum over its tokens, in nats, at temperature 1.

    Where `prompt_logprobs` was asked for: of every token of the prompt but the first its log-probability, and its rank
    among all tokens, from 1.
    """

    token_ids: list[int]
    finish_reason: str
    log_prob: float
    prompt_log_probs: NotRequired[list[tuple[float, int]]]


class VllmEngine:
    """A model in vLLM, with a LoRA adapter over it or without.

    Args:
        options: keywords of `vllm.LLM`.
        adapter: a folder in PEFT's format.
    """

    def __init__(self, options: dict[str, Any], adapter: str | None) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.llm = LLM(**options)
        self.adapter = LoRARequest("adapter", 1, adapter) if adapter else None

    def respond(self, asks: list[Ask]) -> list[list[Completion]]:
        """All responses to each ask, in the order of the asks. They do not depend on what was asked before."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Which requests share a step decides the last bits of a logit. So nothing is left of earlier asks, and the
        # engine starts when it has them all, not when the first arrives.
        self.llm.reset_prefix_cache()
        self.llm.sleep(level=0)
        self.llm.enqueue(
            [{"prompt_token_ids": ask["prompt"]} for ask in asks],
            [
                SamplingParams(**ask["params"], logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
                for ask in asks
            ],
            lora_request=self.adapter,
            use_tqdm=False,
        )
        self.llm.wake_up(["scheduling"])
        outputs = self.llm.wait_for_completion(use_tqdm=False)
        return [[_answer(response, output) for response in output.outputs] for output in outputs]

    def close(self) -> None:
        """Ends the engine's processes, and with them their memory."""
        self.llm.llm_engine.engine_core.shutdown()


def _answer(response: Any, output: Any) -> Completion:
    if response.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"a request ended with {response.finish_reason!r}")
    answer: Completion = {
        "token_ids": list(response.token_ids),
        "finish_reason": response.finish_reason,
        "log_prob": response.cumulative_logprob,
    }
    if output.prompt_logprobs is not None:
        own = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        answer["prompt_log_probs"] = [(found[token].logprob, found[token].rank) for token, found in own]
    return answer


def main() -> None:
    # vLLM prints, and so do its processes: standard output is standard error from here on, and the pipe ours alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asks = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A forked engine would hold the pipe open after our death.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    waiting = threading.Event()
    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asks, inbox, waiting), daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    engine = None
    try:
        engine = VllmEngine(**json.loads(inbox.get() or "{}"))
        say({"answers": []})
        while True:
            waiting.set()
            line = inbox.get()
            waiting.clear()
            if line is None:
                break
            say({"answers": engine.respond(json.loads(line))})
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc()  # first: who hears of the error may let us go at once
        waiting.set()
        say({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        sys.exit(1)
    finally:
        if engine is not None:
            engine.close()


def _listen(lines: Iterable[str], inbox: "queue.SimpleQueue[str | None]", waiting: threading.Event) -> None:
    """Hands over what arrives. Once nobody is at the other end, work under way ends at once, an idle engine gently."""
    for line in lines:
        inbox.put(line)
    inbox.put(None)
    if waiting.is_set():
        time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)  # the engine's processes too: whoever starts this gives it a group of its own


if __name__ == "__main__":
    main()
