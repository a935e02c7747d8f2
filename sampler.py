"""Continue texts, one or many side by side: which token comes next, and the cache behind it.

    source = open_model(Path("stories15M.bin"))
    model = source.load(seq_len=256)
    for piece in generate(model, source.tokenizer, "Once upon a time", temperature=0.8):
        print(piece, end="", flush=True)

There is no memory here but a few numbers: the keys and values of the positions so far lie where the
trainer's activations lie, and `model.forward(tokens, start=start)` computes only what is new.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import own_imports
from errors import RunError, UserError
from layers.tiles import row_tiles, run_tiles
from models.model import Model
from tokenizer import Decoder, Tokenizer

LARGEST = 1e6  # of numbers that float32 logits are divided by: all effect is long reached


@dataclass(frozen=True)
class Settings:
    """How the next token is chosen.

    Attributes:
        temperature: the logits are divided by it; 0 always takes the likeliest token.
        top_k: only the k likeliest tokens, and those as likely as the last of them, take part; 0
            for all.
        top_p: only the likeliest tokens that together have this probability take part
            (Holtzman et al. 2020, arXiv 1904.09751, section 3.1); 1 for all.
        repetition_penalty: a positive logit of a token that the text has already is divided by
            it, a negative one multiplied; 1 for none (Keskar et al. 2019, arXiv 1909.05858,
            section 4.1).

    Raises:
        UserError: a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= LARGEST:
            raise UserError(
                f"the temperature must be from 0 to {LARGEST:g}, not {self.temperature}"
            )
        if self.top_k < 0:
            raise UserError(f"top-k must be 1 or more, or 0 for all tokens, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not 1 / LARGEST <= self.repetition_penalty <= LARGEST:
            raise UserError(
                f"the repetition penalty must be from {1 / LARGEST:g} to {LARGEST:g}, 1 for none, "
                f"not {self.repetition_penalty}"
            )

    def pick(
        self, logits: np.ndarray, texts: Iterable[np.ndarray], rngs: Iterable[np.random.Generator]
    ) -> np.ndarray:
        """A token for each of B texts, (B,) integers.

        Args:
            logits: (B, V), overwritten.
            texts: the tokens of each so far.
            rngs: where each one's chances come from.

        Raises:
            RunError: a logit is not finite.
        """
        if not np.isfinite(logits.max(axis=1)).all():  # NaN is the maximum wherever there is one
            raise RunError("the model's logits are not finite: its training has diverged")
        if self.repetition_penalty != 1:
            for row, text in zip(logits, texts, strict=True):
                said = row[text]
                penalty = self.repetition_penalty
                row[text] = np.where(said > 0, said / penalty, said * penalty)
        # Division by a temperature next to 0 would overflow, and change nothing.
        if self.temperature < 1e-6:
            return logits.argmax(axis=1)

        def work(rows: slice) -> None:
            weights = logits[rows]
            weights -= weights.max(axis=1, keepdims=True)
            weights /= self.temperature
            np.exp(weights, out=weights)
            for text in weights:
                self._keep_likely(text)

        run_tiles(work, row_tiles(logits))
        return draw(logits, np.array([rng.random() for rng in rngs]))

    def _keep_likely(self, weights: np.ndarray) -> None:
        """Take the weight, (V,), of the tokens that `top_k` and `top_p` leave out."""
        if 0 < self.top_k < len(weights):
            weights[weights < np.partition(weights, -self.top_k)[-self.top_k]] = 0
        if self.top_p < 1:
            total = weights.sum()
            # All tokens below this together cannot have 1 - top_p: most need not be sorted.
            likely = weights[weights >= (1 - self.top_p) * total / len(weights)]
            falling = -np.sort(-likely)
            last = np.searchsorted(np.cumsum(falling, dtype=np.float64), self.top_p * total)
            weights[weights < falling[min(last, len(falling) - 1)]] = 0


def draw(weights: np.ndarray, chances: np.ndarray, block: int = 128) -> np.ndarray:
    """The tokens at `chances`, from 0 to 1, of the way through all weights laid end to end.

    First the block of tokens is found, then the token in it: a running sum over all of them, which
    cannot be vectorised, would take longer than all the rest of `Settings.pick`.

    Args:
        weights: (B, V), in each row at least one above 0.
        chances: (B,).

    Returns:
        (B,) integers.
    """
    V = weights.shape[1]
    blocks = np.add.reduceat(weights, np.arange(0, V, block), axis=1)
    number, place = _find(blocks, chances * blocks.sum(axis=1, dtype=np.float64))
    tokens = number[:, None] * block + np.arange(block)
    members = np.take_along_axis(weights, np.minimum(tokens, V - 1), axis=1)
    members[tokens >= V] = 0
    member, _ = _find(members, place)
    return number * block + member


def _find(parts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In each row the part that lies at `places`, and how far into it that is: (B,) and (B,)."""
    ends = np.cumsum(parts, axis=1, dtype=np.float64)
    places = np.minimum(places, np.nextafter(ends[:, -1], 0))  # sums of other parts round otherwise
    found = (ends <= places[:, None]).sum(axis=1)
    begins = np.take_along_axis(ends - parts, found[:, None], axis=1)[:, 0]
    return found, places - begins


class Cache:
    """Texts side by side in a model's buffers, each token's keys and values computed once.

    Texts of different lengths are aligned at their ends, with padding in front of the shorter ones.
    When the longest fills the context, the older half of all positions is forgotten and the rest
    entered again: one pass over half a context for every half a context of tokens, so that on
    average each token costs about what two do. What was forgotten has no influence any more.

    Whoever else uses the model in between costs a pass over all that is remembered, and no more.

    Args:
        model: made for as many sequences; its activations are overwritten.
        texts: at least one token each.

    Raises:
        UserError: a text is longer than the context.
    """

    def __init__(self, model: Model, texts: Sequence[Sequence[int]]) -> None:
        self.model = model
        lengths = np.array([len(text) for text in texts])
        self.length = lengths.max()  # of the longest
        self._check_length(self.length)
        self.padding = self.length - lengths
        self._tokens = np.zeros((len(texts), model.seq_len), np.int64)
        for row, start, text in zip(self.tokens, self.padding, texts, strict=True):
            row[start:] = text
        self._entered = 0  # how many positions the buffers hold
        self._pass = None  # the model's pass that entered the last of them

    @property
    def tokens(self) -> np.ndarray:
        """(B, length): what is remembered of all texts, with padding."""
        return self._tokens[:, : self.length]

    def texts(self) -> list[np.ndarray]:
        """The tokens of each text, as far as they are remembered."""
        return [row[start:] for row, start in zip(self.tokens, self.padding, strict=True)]

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens, (B, n), one column or several.

        Raises:
            UserError: they are more than the context.
        """
        count = tokens.shape[1]
        self._check_length(count)
        older_half = (self.model.seq_len + 1) // 2
        while self.length + count > self.model.seq_len:
            forgotten = min(older_half, self.length)
            self.length -= forgotten
            self._tokens[:, : self.length] = self._tokens[:, forgotten:][:, : self.length]
            self.padding = np.maximum(self.padding - forgotten, 0)
            self._entered = 0
        self.length += count
        self.tokens[:, -count:] = tokens

    def next_logits(self) -> np.ndarray:
        """Enter what is new, and return the logits of what comes next: (B, V), a view.

        A pass takes as many positions as the model has rows for: nearly always all at once.
        """
        if self.model.passes != self._pass:  # somebody else has used the buffers
            self._entered = 0
        columns = self.model.rows // len(self.tokens)
        self._entered = min(self._entered, self.length - 1)  # asked again: the last once more
        while self._entered < self.length:
            new = self.tokens[:, self._entered : self._entered + columns]
            padding = self.padding if self.padding.any() else None
            logits = self.model.forward(new, start=self._entered, padding=padding, last_only=True)
            self._entered += new.shape[1]
        self._pass = self.model.passes
        return logits[:, 0]

    def _check_length(self, length: int) -> None:
        if length > self.model.seq_len:
            raise UserError(
                f"the prompt has {length} tokens, but this model sees {self.model.seq_len}; "
                "shorten it"
            )


@dataclass
class Stats:
    """What a generation took; the prompts' pass includes the first token it leads to."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0  # in all

    def __str__(self) -> str:
        return (
            f"{_speed(self.tokens, self.seconds)}; "
            f"of that the prompt, {_speed(self.prompt_tokens, self.prompt_seconds)}"
        )


def _speed(tokens: int, seconds: float) -> str:
    return f"{tokens} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):.0f} tokens/s"


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str | None = None,
    max_tokens: int = 200,
    rng: np.random.Generator | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Continue a prompt, piece of text by piece of text.

    Args:
        model: its activations serve as the cache, and are overwritten.
        tokenizer: the one that the model was trained with.
        prompt: what to continue; without one, a new text begins.
        max_tokens: how many tokens to add at the most.
        rng: where the chances come from; by default a generator seeded with 0.
        settings: see `Settings`.

    Raises:
        UserError: the prompt is empty or longer than the context, or a setting out of its range.
        RunError: the model's logits are no numbers.
    """
    pieces = generate_many(model, tokenizer, [prompt], max_tokens, rng, **settings)
    return (piece for _, piece in pieces)


def generate_many(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str | None],
    max_tokens: int = 200,
    rng: np.random.Generator | None = None,
    stats: Stats | None = None,
    **settings: Any,
) -> Iterator[tuple[int, str]]:
    """Continue many prompts at once, of any lengths: (number of the prompt, piece of its text).

    What one says has nothing to do with what the others say, for each has its own chances, until
    the longest text fills the context: what a `Cache` forgets, it forgets of all.

    Args:
        model: made for at least as many sequences as there are prompts.
        prompts: as in `generate`, whose arguments all others are, too.
        stats: filled in on the way.

    Raises:
        UserError: as `generate`.
    """
    if not prompts:
        return iter(())
    texts = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    cache, choice = Cache(model, texts), Settings(**settings)
    rng = np.random.default_rng(0) if rng is None else rng
    stats = Stats() if stats is None else stats
    stats.prompt_tokens += sum(map(len, texts))
    return continue_texts(cache, tokenizer, max_tokens, tokenizer.ends, choice, rng, stats)


def continue_texts(
    cache: Cache,
    tokenizer: Tokenizer,
    max_tokens: int,
    ends: Iterable[int],
    settings: Settings,
    rng: np.random.Generator,
    stats: Stats,
) -> Iterator[tuple[int, str]]:
    """Continue the texts in a cache as `generate_many` does, each until one of `ends`."""
    decoders = [Decoder(tokenizer, last) for last in cache.tokens[:, -1]]
    steps = generate_tokens(cache, max_tokens, ends, settings, rng, tokenizer.vocab_size)
    begin = time.perf_counter()
    tokens = next(steps, {})
    stats.prompt_seconds += time.perf_counter() - begin
    while tokens:
        stats.tokens += len(tokens)
        for number, token in tokens.items():
            if piece := decoders[number].feed(token):
                yield number, piece
        tokens = next(steps, {})
    stats.seconds += time.perf_counter() - begin
    for number, decoder in enumerate(decoders):
        if piece := decoder.finish():
            yield number, piece


def generate_tokens(
    cache: Cache,
    max_tokens: int,
    ends: Iterable[int] = (),
    settings: Settings = Settings(),
    rng: np.random.Generator | None = None,
    vocab_size: int | None = None,
) -> Iterator[dict[int, int]]:
    """Continue the texts in a cache by one token at a time, each until one of `ends`.

    Args:
        cache: gets every token, also the one that ended a text.
        max_tokens: how many to add to each text at the most.
        ends: tokens that end a text; they are not returned.
        settings: how tokens are chosen.
        rng: gives each text a generator of its own; by default it is seeded with 0.
        vocab_size: how many tokens there are, if the model's table has rows for more.

    Returns:
        {number of the text: its next token} for those that have not ended, step by step.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    rngs = [np.random.default_rng(seed) for seed in rng.integers(2**63, size=len(cache.tokens))]
    going = range(len(cache.tokens))
    for _ in range(max_tokens):
        tokens = settings.pick(cache.next_logits()[:, :vocab_size], cache.texts(), rngs)
        cache.append(tokens[:, None])
        going = [number for number in going if tokens[number] not in ends]
        if not going:
            return
        yield {number: int(tokens[number]) for number in going}
