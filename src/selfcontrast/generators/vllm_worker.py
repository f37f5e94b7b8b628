"""Run vLLM's engine with plain values, in this process or at the other end of a pipe.

As a program it imports only the standard library and vLLM, so its environment needs no other package:

    python -E -P vllm_worker.py

It reads one JSON document per line: first the engine's options, then lists of requests. Each line gets a line in reply.
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

GRACE = 60  # seconds for an engine to end by itself


class CompletionRequest(TypedDict):
    """A prompt's token ids, and keywords of `vllm.SamplingParams` for the responses."""

    prompt: list[int]
    params: dict[str, Any]


class Completion(TypedDict):
    """A response. `log_prob` is the sum over its tokens, in nats, at temperature 1.

    `prompt_log_probs` is set if the request has `prompt_logprobs`. It holds, for each prompt token after the first, the
    log-probability and the rank among all tokens, from 1.
    """

    token_ids: list[int]
    finish_reason: str
    log_prob: float
    prompt_log_probs: NotRequired[list[tuple[float, int]]]


class VllmEngine:
    """A model in vLLM, with an optional LoRA adapter.

    Args:
        options: keywords of `vllm.LLM`.
        adapter: a folder in PEFT's format.
    """

    def __init__(self, options: dict[str, Any], adapter: str | None) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # FlashInfer calls `ninja` by name. That program is in the interpreter's folder, which is not on PATH if the
        # environment is not activated.
        programs, path = os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)
        if programs not in path.split(os.pathsep):
            os.environ["PATH"] = programs + os.pathsep + path
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.llm = LLM(**options)
        self.adapter = LoRARequest("adapter", 1, adapter) if adapter else None

    def respond(self, requests: list[CompletionRequest]) -> list[list[Completion]]:
        """Return all responses to each request, in the order of the requests.

        The responses do not depend on earlier calls.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # The last bits of a logit depend on the requests that share a step. So the cache is cleared of earlier
        # requests, and the engine starts only when it has all requests.
        self.llm.reset_prefix_cache()
        self.llm.sleep(level=0)
        self.llm.enqueue(
            [{"prompt_token_ids": request["prompt"]} for request in requests],
            [
                SamplingParams(
                    **request["params"], logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
                )
                for request in requests
            ],
            lora_request=self.adapter,
            use_tqdm=False,
        )
        self.llm.wake_up(["scheduling"])
        outputs = self.llm.wait_for_completion(use_tqdm=False)
        return [[_answer(response, output) for response in output.outputs] for output in outputs]

    def close(self) -> None:
        """End the engine's processes, which frees their memory."""
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
        tokens = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        answer["prompt_log_probs"] = [(log_probs[token].logprob, log_probs[token].rank) for token, log_probs in tokens]
    return answer


def main() -> None:
    # vLLM and its processes print. Redirect standard output to standard error, so the pipe has only answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A forked engine would keep the pipe open after this process has died.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    idle = threading.Event()
    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox, idle), daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    engine = None
    try:
        engine = VllmEngine(**json.loads(inbox.get() or "{}"))
        send({"answers": []})
        while True:
            idle.set()
            line = inbox.get()
            idle.clear()
            if line is None:
                break
            send({"answers": engine.respond(json.loads(line))})
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc()  # first, because the parent may end this process once it has the error
        idle.set()
        send({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        sys.exit(1)
    finally:
        if engine is not None:
            engine.close()


def _listen(lines: Iterable[str], inbox: "queue.SimpleQueue[str | None]", idle: threading.Event) -> None:
    """Queue the lines that arrive. When the pipe closes, end the process: after `GRACE` if it is idle, else at once."""
    for line in lines:
        inbox.put(line)
    inbox.put(None)
    if idle.is_set():
        time.sleep(GRACE)
    # This also ends the engine's processes: the parent starts this program in a process group of its own.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
