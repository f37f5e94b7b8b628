"""Messages to token ids: the one rendering that training, sampling and evaluation share.

The prompt is the tokenizer's chat template up to and including the generation prompt. The response is what the template
adds after it, up to and including the token that ends the turn, tokenized as the prompt's continuation. No token spans
the two, so the boundary is the same in training (where the response is known) and in sampling (where it is not yet).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from selfcontrast.data.example import Example, Message
from selfcontrast.errors import UserError

# A target is an answer without reasoning before it: templates such as Qwen3's then put an empty block of thoughts into
# the generation prompt, and the answer begins right after it. Templates that know no such switch ignore it.
NO_THINKING = {"enable_thinking": False}
# Templates such as Llama 3's write the date of today into the prompt. The same job must render the same prompts
# tomorrow, and no key holds the day: so today is always this one, Llama 3.2's own where there is no clock.
TODAY = datetime(2024, 7, 26)
DIRECTIVES = ("A", "a", "B", "b", "c", "D", "d", "F", "H", "I", "j", "M", "m", "p", "S", "T", "X", "x", "Y", "y")
CLOCK = "strftime_now"  # how a template asks for the time
RANDOM = ("random", "lipsum")  # a filter and a function: what else in Jinja gives another text every time
ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # how Python shows a function or a generator: another in every process
PROBE: list[Message] = [{"role": "user", "content": "ping"}]


def repeatable(template: str | dict[str, str]) -> str | dict[str, str]:
    """A chat template that renders the same every time: the clock that it may read shows `TODAY`.

    transformers' sandbox lets a template keep nothing from one rendering to the next.

    Args:
        template: one, or several by their names.

    Raises:
        UserError: for a template that draws at random.
    """
    if isinstance(template, dict):
        return {name: str(repeatable(each)) for name, each in template.items()}
    if _draws(template):
        raise UserError(
            "the chat template draws at random, so a prompt would be another one every time: give one that does not "
            "with model.chat_template=FILE"
        )
    if CLOCK not in template or template.startswith(FIXED):
        return template
    return FIXED + template


def _draws(template: str) -> bool:
    """Whether a template names something of `RANDOM`: as a filter or a function, or in a text, as `map` takes it."""
    from jinja2 import Environment, TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):  # transformers' own block
        tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        tree = Environment(extensions=[Generation, loopcontrols]).parse(template)
    except TemplateError:
        return False  # it renders nothing, and that is told where it is tried
    named: list[Any] = [node.name for node in tree.find_all(nodes.Filter)]
    named += [node.name for node in tree.find_all(nodes.Name)]
    named += [node.value for node in tree.find_all(nodes.Const)]
    return any(name in named for name in RANDOM)


def refuse_addresses(text: str, messages: Sequence[Message]) -> None:
    """Raise `UserError` for a rendered dialogue with an address of this process's memory in it.

    A template shows one where it forgets the parentheses of a call, or `|list` after a filter such as `map`.
    """
    given = {found for message in messages for found in ADDRESS.findall(message["content"])}
    if shown := set(ADDRESS.findall(text)) - given:
        at = text.index(min(shown))
        raise UserError(
            f"the chat template shows an object instead of its text (…{text[max(0, at - 60) : at + 20]!r}…), which is "
            "another in every process: mend the template"
        )


def _fixed_clock() -> str:
    """A macro in the place of transformers' function: it travels with the template, to servers and lm-eval too."""
    days = "".join(f"|replace('%{d}', '{TODAY.strftime(f'%{d}')}')" for d in DIRECTIVES)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{days} }}}}{{% endmacro %}}{{{{ '' }}}}"


FIXED = _fixed_clock()


class Renderer:
    """Renders dialogues with one tokenizer's chat template.

    A text that spells one of the tokenizer's special tokens is read as that token, as with every chat template.

    Raises:
        UserError: when the tokenizer has no chat template, no end-of-sequence token, or a template whose generation
            prompt does not end exactly where the assistant's answer begins.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the tokenizer has no chat template: give one with model.chat_template=FILE (a Jinja template)"
            )
        tokenizer.chat_template = repeatable(tokenizer.chat_template)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, so no response could ever end")
        self.end_ids = self._end_ids()
        self.end_id = self.response(PROBE, "pong")[-1]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the dialogue and the generation prompt."""
        return self._tokenize(self._text(messages))

    def response(self, messages: Sequence[Message], target: str) -> list[int]:
        """Token ids of `target` as the answer to `messages`, the end-of-turn token included.

        White space around an answer is left out, whoever gives it: a target that kept it beside a rejected answer that
        lost it would teach nothing but the white space.
        """
        prompt, response = self._text(messages), self._response_text(messages, target.strip())
        before, whole = self._tokenize(prompt), self._tokenize(prompt + response)
        # As the continuation of the prompt, which is what a model writes: apart from it, a tokenizer such as Llama's
        # would take the first word for the beginning of a text. Where the two merge into one token, apart it must be.
        ids = whole[len(before) :] if whole[: len(before)] == before else self._tokenize(response)
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        # Templates may add a newline after the end of the turn; sampling never sees it, so training must not either.
        return ids[: ends[0] + 1] if ends else [*ids, self.tokenizer.eos_token_id]

    def example(self, example: Example) -> tuple[list[int], list[int]]:
        """Token ids of an example's prompt and target, none of that where there is no target.

        Raises `UserError` with its id where the template fails.
        """
        try:
            target = self.response(example.prompt, example.target) if example.has_target else []
            return self.prompt(example.prompt), target
        except UserError as error:
            raise UserError(f"the row {example.id}: {error}") from error

    def as_read(self, example: Example) -> Example:
        """The example with its answers as the text of their tokens, as sampled candidates have it.

        That is another text where an answer spells a special token: an end token cuts it, others vanish.
        """
        if not example.has_target:
            return example  # nor has it rejected answers
        answers = (example.target, *example.every_rejected)
        target, *others = (self.text(self.response(example.prompt, answer)) for answer in answers)
        rejected, more = (others[0], others[1:]) if others else ("", [])
        return replace(example, target=target, rejected=rejected, more_rejected=more)

    def check(self, messages: Sequence[Message], target: str) -> None:
        """Raise `UserError` where the template does not render the dialogue with this answer."""
        self._response_text(messages, target)

    def text(self, response_ids: Sequence[int]) -> str:
        """The text of a sampled response, without special tokens."""
        return str(self.tokenizer.decode(list(response_ids), skip_special_tokens=True)).strip()

    def known(self, response_ids: Sequence[int]) -> list[int]:
        """The ids before the first that the tokenizer lacks; an end token where that leaves none.

        Models pad their vocabularies, and a sampler may draw from the padding, which has no text.
        """
        size = len(self.tokenizer)
        at = next((i for i, token in enumerate(response_ids) if not 0 <= token < size), len(response_ids))
        return list(response_ids[:at]) or [self.end_id]

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
        except Exception as error:  # a template is the model author's program: it may raise anything
            raise UserError(f"the chat template fails on {messages[0]['role']!r} … : {error}") from error
        refuse_addresses(text, messages)
        return text

    def _response_text(self, messages: Sequence[Message], target: str) -> str:
        prompt = self._text(messages)
        whole = self._text([*messages, {"role": "assistant", "content": target}], generation_prompt=False)
        response = whole.removeprefix(prompt)
        if not whole.startswith(prompt) or not response.lstrip().startswith(target.strip()):
            raise UserError(
                "the chat template has no generation prompt that ends where the answer begins "
                f"(prompt …{prompt[-40:]!r}, answer {response[:40]!r}…): give another with model.chat_template=FILE"
            )
        return response

    def _tokenize(self, text: str) -> list[int]:
        # The template has already written the special tokens, a beginning-of-sequence token among them.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_ids(self) -> frozenset[int]:
        """The end-of-sequence token, and the special token that the template ends an answer with, if another."""
        ids = self._tokenize(self._response_text(PROBE, "pong"))
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        ends = [token for token in ids if token in special]
        return frozenset([self.tokenizer.eos_token_id, *ends[:1]])
