"""Converse with a model in the words that it was trained on, all turns in one cache.

    source = open_model("SmolLM2-135M-Instruct.Q4_1.gguf")
    template = find_template(source.tokenizer, source.chat_template)
    chat = Chat(source.load(seq_len=2048), source.tokenizer, template)
    for piece in chat.answer("What is the capital of France?"):
        print(piece, end="", flush=True)

A model's file says how its conversations are written by a template, a program in Jinja that makes
one text of all messages. It is not run: its kind is recognised by its marks, and each kind is
written by hand here, with the same tokens as a result. Only tokens of the template are control
tokens; what looks like one in a message or a system prompt is encoded as the plain text it is.

Between two control tokens, the words of a template and of a person are encoded as one text, which
in a tokenizer of SentencePiece's kind begins with a blank, if its texts do.

Handled: the templates in `TEMPLATES`, with the system prompt that one puts in if nobody gives
another, and with Llama 3.1's line for today's date.
Not handled: tools, and what a model has thought: it stays in the conversation, though Qwen3's
template takes it out of all answers but the last.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np

import own_imports
from errors import UserError
from models.model import Model
from sampler import Cache, Settings, Stats, continue_texts
from tokenizer import LlamaTokenizer, Tokenizer


@dataclass(frozen=True)
class Template:
    """How conversations are written, as forms to fill in.

    In a form, <|this|> is a control token, {begin} the one that begins a text and {end} the one
    that ends it.

    Attributes:
        name: what people call it.
        marks: what a program in Jinja that does the same has in it, its \\n being line ends and
            its quotes '.
        message: from a message, {message}, to where its answer begins; {system} is the place of the
            system prompt's form before the first message, and nothing before others.
        end: the token that ends an answer.
        after: what comes after that.
        system: the form of a system prompt, {text}; "" if the template has no place for one.
        text: of the system prompt.
        header: what stands in front of that; if both are empty, there is no system prompt.
        opening: what comes before all.
        is_text: whether a mark is plain text if the tokenizer has no such token.
    """

    name: str
    marks: tuple[str, ...]
    message: str
    end: str
    after: str
    system: str
    text: str = ""
    header: str = ""
    opening: str = ""
    is_text: bool = False


TEMPLATES = (
    Template(
        "ChatML",
        marks=("<|im_start|>", "<|im_end|>"),
        message="{system}<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        system="<|im_start|>system\n{text}<|im_end|>\n",
    ),
    Template(
        "Llama 3",
        marks=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        message="{system}<|start_header_id|>user<|end_header_id|>\n\n{message}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        after="",
        system="<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>",
    ),
    Template(
        "Gemma",
        marks=("<start_of_turn>", "<end_of_turn>", "'model'"),
        message="<start_of_turn>user\n{system}{message}<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        after="\n",
        system="{text}\n\n",
    ),
    Template(  # its tokens swallow the line ends that its program puts behind them
        "Phi-3",
        marks=("<|user|>", "<|assistant|>", "<|end|>"),
        message="{system}<|user|>{message}<|end|><|assistant|>",
        end="<|end|>",
        after="",
        system="<|system|>{text}<|end|>",
    ),
    Template(
        "Zephyr",
        marks=("'<|user|>\n' + message['content'] + eos_token", "<|assistant|>"),
        message="{system}<|user|>\n{message}{end}\n<|assistant|>\n",
        end="{end}",
        after="\n",
        system="<|system|>\n{text}{end}\n",
        is_text=True,
    ),
    # Touvron et al. 2023 (arXiv 2307.09288), appendix A.3.3; Meta's code begins each turn anew.
    Template(
        "Llama 2",
        marks=("bos_token + '[INST] '", "<<SYS>>"),
        message="{begin}[INST] {system}{message} [/INST]",
        end="{end}",
        after="",
        system="<<SYS>>\n{text}\n<</SYS>>\n\n",
        is_text=True,
    ),
)
LLAMA_2 = TEMPLATES[-1]
# In programs that are ChatML's otherwise: Phi-4's, SmolLM3's, and of models that must think.
UNLIKE = ("<|im_sep|>", "## Metadata", "assistant\n<think>")
BEGINS = ("bos_token", "<|begin_of_text|>", "<bos>")
DEFAULTS = (
    r"""(?s)(['"])<\|im_start\|>system(?:\n|\\n)(?P<text>(?:(?!\1).)+?)<\|im_end\|>""",
    r"""(?s)set (?:default_)?system_message ?= ?(['"])(?P<text>.*?)\1""",
)
FIELDS = re.compile(r"(<\|\w+\|>|<(?:start|end)_of_turn>|\{\w+\})")


def find_template(
    tokenizer: Tokenizer,
    program: str | None,
    system: str | None = None,
    today: date | None = None,
) -> Template:
    """How conversations with a model are written.

    Args:
        tokenizer: the model's.
        program: the text of its template, as in `Source`; None, of a file that has no place for
            one, means Llama 2's for a model with Llama's tokenizer.
        system: how it shall answer; by default what the template itself says of that.
        today: what Llama 3.2's template says of the date; by default this day.

    Raises:
        UserError: the model has no template, or one that is not known here, that its tokenizer has
            not the tokens for, or that has no place for a system prompt.
    """
    if program == "":
        raise UserError(
            "the model has no chat template: it is a base model, which continues texts; give it a "
            "--prompt"
        )
    if program is not None:
        template = _recognise(program, today or date.today())
    elif isinstance(tokenizer, LlamaTokenizer):
        template = LLAMA_2
    else:
        raise UserError(
            "the model's file does not say how a conversation is written, and without that only a "
            "model with Llama's tokenizer can have one, in Llama 2's way; give it a --prompt"
        )
    marks = FIELDS.findall(template.message + template.end + template.system)
    missing = [mark for mark in marks if mark[0] == "<" and mark not in tokenizer.special]
    if missing and not template.is_text:
        raise UserError(
            f"the model's chat template is {template.name}'s and needs the token {missing[0]}, "
            "which its tokenizer has not; give the --tokenizer that it was trained with"
        )
    if system and not template.system:
        raise UserError(
            f"the model's chat template, {template.name}'s, has no place for a system prompt; "
            "leave out --system"
        )
    return replace(template, text=system.strip()) if system else template


def _recognise(program: str, today: date) -> Template:
    """The template that does what a program in Jinja does, as far as its marks tell."""
    spelled = program.replace("\\n", "\n").replace('"', "'")
    known = (each for each in TEMPLATES if all(mark in spelled for mark in each.marks))
    template = next(known, None)
    if template is None or any(mark in spelled for mark in UNLIKE):
        raise UserError(
            f"the model's chat template is none of {', '.join(each.name for each in TEMPLATES)}, "
            f"and begins with {program.strip().partition(chr(10))[0]!r:.80}; give it a --prompt"
        )
    opening, system = template.opening, template.system
    if template is not LLAMA_2 and any(mark in program for mark in BEGINS):
        opening = "{begin}"
    unspoken = system.startswith("<|system|>") and "<|system|>" not in program
    if unspoken or "System role not supported" in program:
        system = ""
    defaults = (re.search(pattern, program) for pattern in DEFAULTS)
    text = next((found["text"] for found in defaults if found), "").replace("\\n", "\n")
    header = _header(program, today)
    return replace(template, opening=opening, system=system, text=text, header=header)


def _header(program: str, today: date) -> str:
    """The dates that Llama 3.1's and 3.2's programs put in front of a system prompt."""
    known = re.search(r"Cutting Knowledge Date: ([\w ]+)", program)
    if not known:
        return ""
    fixed = re.search(r"""set date_string = ["']([\w ]+)["']""", program)
    day = fixed[1] if fixed and "strftime_now" not in program else f"{today:%d %b %Y}"
    return f"Cutting Knowledge Date: {known[1]}\nToday Date: {day}\n\n"


class Chat:
    """A conversation, all its turns in one cache.

    When the context is full, its older half is forgotten, and with it the system prompt.

    Args:
        model: its activations serve as the cache, and are overwritten.
        tokenizer: the one that the model was trained with.
        template: what `find_template` returns for it.
        max_tokens: of an answer.
        rng: where the chances come from; by default a generator seeded with 0.
        settings: see `Settings`.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        template: Template,
        max_tokens: int = 200,
        rng: np.random.Generator | None = None,
        **settings: Any,
    ) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_tokens, self.settings = max_tokens, Settings(**settings)
        self.rng = np.random.default_rng(0) if rng is None else rng
        self.stats = Stats()
        end = tokenizer.begin if tokenizer.end is None else tokenizer.end
        self._control = {**tokenizer.special, "{begin}": tokenizer.begin, "{end}": end}
        self._end = self._control[template.end]
        self._cache: Cache | None = None

    def answer(self, message: str) -> Iterator[str]:
        """The answer to a message, piece by piece; a turn ends when all pieces were taken.

        Raises:
            UserError: the message is empty or longer than the context.
        """
        message = message.strip()
        if not message:
            raise UserError("the message is empty; say something")
        template, cache, ends = self.template, self._cache, self.tokenizer.ends | {self._end}
        if cache is None:
            tokens = self._encode(template.opening, message, system=template.header + template.text)
            self._cache = cache = Cache(self.model, [tokens])
        else:
            tokens = self._encode(template.after, message)
            if cache.tokens[0, -1] in ends:
                cache.tokens[0, -1] = self._end  # whichever the model chose; it is not entered yet
            else:
                tokens = [self._end, *tokens]
            cache.append(np.array([tokens]))
        self.stats.prompt_tokens += len(tokens)
        pieces = continue_texts(
            cache, self.tokenizer, self.max_tokens, ends, self.settings, self.rng, self.stats
        )
        return (piece for _, piece in pieces)

    def _encode(self, before: str, message: str, system: str = "") -> list[int]:
        """The tokens of a form, of a system prompt if there is one, and of a message."""
        form = self.template.message.replace("{system}", self.template.system if system else "")
        texts = {"{text}": system, "{message}": message}
        tokens, text = [], ""
        for part in FIELDS.split(before + form):
            if part in self._control:
                tokens += [*self.tokenizer.encode(text), self._control[part]]
                text = ""
            else:
                text += texts.get(part, part)
        return tokens + self.tokenizer.encode(text)
