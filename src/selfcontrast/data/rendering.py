"""Render messages as token ids, in the same way for training, sampling and evaluation.

The prompt is the tokenizer's chat template up to and including the generation prompt. The response is the text that the
template adds after the generation prompt, up to and including the token that ends the turn. It is tokenized as the
prompt's continuation. No token spans both, so training, which knows the response, and sampling, which does not, have
the same boundary.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from selfcontrast.data.example import Example, Message
from selfcontrast.errors import UserError

# Targets have no reasoning. With this switch, templates such as Qwen3's put an empty block of thoughts into the
# generation prompt, and the answer begins right after it. Other templates ignore it.
NO_THINKING = {"enable_thinking": False}
# Templates such as Llama 3's write today's date into the prompt. A job must render the same prompts tomorrow, and no
# artifact key holds the date. So every date is the one that Llama 3.2's template uses if it has no clock.
TODAY = datetime(2024, 7, 26)
DIRECTIVES = ("A", "a", "B", "b", "c", "D", "d", "F", "H", "I", "j", "M", "m", "p", "S", "T", "X", "x", "Y", "y")
CLOCK = "strftime_now"  # the function from which a template gets the time
RANDOM = ("random", "lipsum")  # the filter and the function of Jinja that return a random text
ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # the address in the repr of a function; it differs in every process
PROBE: list[Message] = [{"role": "user", "content": "ping"}]


def repeatable(template: str | dict[str, str]) -> str | dict[str, str]:
    """Return a chat template that renders the same text every time. A template that reads the clock reads `TODAY`.

    transformers' sandbox keeps no state of a template from one rendering to the next.

    Args:
        template: one template, or several by name.

    Raises:
        UserError: for a template that draws at random.
    """
    if isinstance(template, dict):
        return {name: str(repeatable(each)) for name, each in template.items()}
    if _uses_random(template):
        raise UserError(
            "the chat template draws at random, so a prompt would differ every time. Set another template with "
            "model.chat_template=FILE."
        )
    if CLOCK not in template or template.startswith(FIXED):
        return template
    return FIXED + template


def _uses_random(template: str) -> bool:
    """Return True if a template names an item of `RANDOM`: as a filter, a function, or a string as in map('random')."""
    from jinja2 import Environment, TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):  # a block that transformers adds to Jinja
        tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        tree = Environment(extensions=[Generation, loopcontrols]).parse(template)
    except TemplateError:
        return False  # rendering the template reports the error
    names: list[Any] = [node.name for node in tree.find_all(nodes.Filter)]
    names += [node.name for node in tree.find_all(nodes.Name)]
    names += [node.value for node in tree.find_all(nodes.Const)]
    return any(name in names for name in RANDOM)


def refuse_memory_addresses(text: str, messages: Sequence[Message]) -> None:
    """Raise `UserError` if a rendered dialogue shows a memory address.

    A template shows an address if it omits the parentheses of a call, or `|list` after a filter such as `map`.
    """
    in_messages = {address for message in messages for address in ADDRESS.findall(message["content"])}
    if addresses := set(ADDRESS.findall(text)) - in_messages:
        start = text.index(min(addresses))
        raise UserError(
            f"the chat template shows an object instead of its text (…{text[max(0, start - 60) : start + 20]!r}…), "
            "whose address differs in every process. Correct the template."
        )


def _fixed_clock() -> str:
    """Return a macro that replaces transformers' `strftime_now`. Servers and lm-eval get it with the template."""
    days = "".join(f"|replace('%{d}', '{TODAY.strftime(f'%{d}')}')" for d in DIRECTIVES)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{days} }}}}{{% endmacro %}}{{{{ '' }}}}"


FIXED = _fixed_clock()


class Renderer:
    """Render dialogues with one tokenizer's chat template.

    A text that spells a special token of the tokenizer is read as that token, as with every chat template.

    Raises:
        UserError: if the tokenizer has no chat template or no end-of-sequence token, or if the template's generation
            prompt does not end exactly where the assistant's answer begins.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the tokenizer has no chat template. Set one with model.chat_template=FILE (a Jinja template)."
            )
        tokenizer.chat_template = repeatable(tokenizer.chat_template)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, so no response could end. Use another model.")
        self.end_ids = self._end_ids()
        self.end_id = self.response(PROBE, "pong")[-1]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the dialogue and the generation prompt."""
        return self._tokenize(self._text(messages))

    def response(self, messages: Sequence[Message], target: str) -> list[int]:
        """Return the token ids of `target` as the answer to `messages`, including the end-of-turn token.

        White space around an answer is always removed. If a target kept it and its rejected answer did not, training
        would learn the white space.
        """
        prompt, response = self._text(messages), self._response_text(messages, target.strip())
        prompt_ids, full = self._tokenize(prompt), self._tokenize(prompt + response)
        # Tokenize the response as the prompt's continuation, as a model writes it. Tokenize it alone only if a token
        # spans both, because tokenizers such as Llama's mark the first word of a separate text.
        ids = full[len(prompt_ids) :] if full[: len(prompt_ids)] == prompt_ids else self._tokenize(response)
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        # Templates may add a newline after the end of the turn. Sampling stops before it, so training must too.
        return ids[: ends[0] + 1] if ends else [*ids, self.tokenizer.eos_token_id]

    def example(self, example: Example) -> tuple[list[int], list[int]]:
        """Return the token ids of an example's prompt and of its target; [] for an example without target.

        Raise `UserError` with the example's id on failure.
        """
        try:
            target = self.response(example.prompt, example.target) if example.has_target else []
            return self.prompt(example.prompt), target
        except UserError as error:
            raise UserError(f"the row {example.id}: {error}") from error

    def as_read(self, example: Example) -> Example:
        """Return the example with each answer tokenized and decoded again, like the text of a sampled candidate.

        The text changes if an answer spells a special token: an end token cuts the answer, other ones are removed.
        """
        if not example.has_target:
            return example  # without a target it has no rejected answers
        answers = (example.target, *example.all_rejected)
        target, *others = (self.text(self.response(example.prompt, answer)) for answer in answers)
        rejected, more = (others[0], others[1:]) if others else ("", [])
        return replace(example, target=target, rejected=rejected, more_rejected=more)

    def check(self, messages: Sequence[Message], target: str) -> None:
        """Raise `UserError` if the template does not render the dialogue with this answer."""
        self._response_text(messages, target)

    def text(self, response_ids: Sequence[int]) -> str:
        """Return the text of a sampled response, without special tokens."""
        return str(self.tokenizer.decode(list(response_ids), skip_special_tokens=True)).strip()

    def cut_at_unknown(self, response_ids: Sequence[int]) -> list[int]:
        """Return the ids before the first id that is not in the tokenizer; one end token if no id is left.

        Models pad their vocabularies, and a sampler may draw a padding id, which has no text.
        """
        size = len(self.tokenizer)
        end = next((i for i, token in enumerate(response_ids) if not 0 <= token < size), len(response_ids))
        return list(response_ids[:end]) or [self.end_id]

    def _text(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        try:
            text = str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **NO_THINKING,
                )
            )
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise UserError(
                f"the chat template fails on {messages[0]['role']!r} … ({error}). Correct the row, or set another "
                "template with model.chat_template=FILE."
            ) from error
        refuse_memory_addresses(text, messages)
        return text

    def _response_text(self, messages: Sequence[Message], target: str) -> str:
        prompt = self._text(messages)
        full = self._text([*messages, {"role": "assistant", "content": target}], generation_prompt=False)
        response = full.removeprefix(prompt)
        if not full.startswith(prompt) or not response.lstrip().startswith(target.strip()):
            raise UserError(
                "the chat template has no generation prompt that ends where the answer begins "
                f"(prompt …{prompt[-40:]!r}, answer {response[:40]!r}…). Use another one: model.chat_template=FILE."
            )
        return response

    def _tokenize(self, text: str) -> list[int]:
        # The template has already written all special tokens, also the beginning-of-sequence token.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_ids(self) -> frozenset[int]:
        """Return the end-of-sequence token and, if different, the special token that ends an answer in the template."""
        ids = self._tokenize(self._response_text(PROBE, "pong"))
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        ends = [token for token in ids if token in special]
        return frozenset([self.tokenizer.eos_token_id, *ends[:1]])
