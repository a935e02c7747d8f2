"""Llama's kind of tokenizer in a tokenizer.json: a SentencePiece model in the clothes of BPE.

"▁" is a blank, and <0x00> to <0xFF> are the bytes of characters that are no token; what is done to
blanks may be other than in Llama.

SentencePiece merges the pair of the highest score, and of equal ones the leftmost; in a
tokenizer.json every pair has a rank of its own. We write the ranks that Hugging Face itself makes
of scores: of equal ones, as of Llama's runs of blanks, the longest halves come first. To read, we
make scores that have the same order. Pairs of one token, and tokens whose pairs are mixed, get one
score, and so lose their order. That can only matter where such pairs are neighbours in a text, and
for Llama 2's vocabulary no such text is known.

Source: transformers, convert_slow_tokenizer.py, generate_merges.
"""

import math
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from errors import UserError
from formats.byte_pairs import cuts
from formats.sentencepiece_model import LLAMA, Settings, settings_of
from formats.tokenizer_json import content_of, cut_added, entry, read_pairs, unlike, vocabulary
from tokenizer import FIRST_BYTE, FIRST_PIECE, SPECIAL_PIECES, LlamaTokenizer

LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]
LONGEST_PIECE = 1000  # characters; unless told otherwise, SentencePiece makes none of more than 16
NO_PREFIX = Settings(add_dummy_prefix=False)
NEVER = -1e10  # the score of a piece that no merge makes
# The steps of Llama's kind. In these patterns, ^ and $ would be the ends of a line.
TRIM = {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
SQUEEZE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def read(content: dict[str, Any], source: str | Path) -> tuple[list[bytes], list[float], Settings]:
    """The pieces, scores and settings of the tokenizer in a tokenizer.json.

    Raises:
        FormatError: it is damaged, or not laid out like Llama's.
    """
    model = content["model"]
    tokens, entries = vocabulary(content, source)
    tokens, added = cut_added(tokens, entries, LLAMA_SPECIAL, source)
    added_pieces = [_text(token) for token in added]
    pairs = read_pairs(entry(model, "merges", list, source), tokens, source)
    if model.get("ignore_merges"):
        raise unlike(source, "the setting ignore_merges")
    steps = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
    settings = _settings(**steps)
    if not settings:
        raise unlike(source, f"the steps {shortened(steps)} before its model")
    pieces, scores = _read_llama(tokens, pairs, source)
    return pieces + added_pieces, scores + [-math.inf] * len(added), settings


def _settings(normalizer: Any, pre_tokenizer: Any) -> Settings | None:
    """The settings, if they are all that is done to a text but for writing "▁" for a blank."""
    every = [Settings(prefix, extra) for prefix in (True, False) for extra in (True, False)]
    known = [(NO_PREFIX, REPLACE, None), *((each, _normalizer(each), None) for each in every)]
    for scheme, settings in {"always": LLAMA, "first": LLAMA, "never": NO_PREFIX}.items():
        known.append((settings, None, METASPACE | {"prepend_scheme": scheme}))
    return next((each for each, *steps in known if steps == [normalizer, pre_tokenizer]), None)


def _normalizer(settings: Settings) -> dict[str, Any]:
    """The steps that do what these settings say; none of them is about a charsmap."""
    steps = [TRIM, SQUEEZE] if settings.remove_extra_whitespaces else []
    steps += [PREPEND] if settings.add_dummy_prefix else []
    return {"type": "Sequence", "normalizers": [*steps, REPLACE]}


def _read_llama(
    tokens: list[str], pairs: list[tuple[str, str]], source: str | Path
) -> tuple[list[bytes], list[float]]:
    """The pieces, and scores that lead to the same merges."""
    if tokens[: len(LLAMA_SPECIAL)] != LLAMA_SPECIAL:
        raise unlike(source, "other first tokens than <unk>, <s> and </s>")
    texts = {token: id_ for id_, token in enumerate(tokens) if id_ >= FIRST_PIECE}
    for text in texts:
        if " " in text or len(text) > LONGEST_PIECE:
            raise unlike(source, f"the token {shortened(text)}, with a blank or too long")
    pieces = [_text(token) for token in tokens]
    pieces[1:FIRST_BYTE] = SPECIAL_PIECES[1:]

    pairs = [pair for pair in pairs if texts.keys() >= {*pair, "".join(pair)}]
    last = {left + right: number for number, (left, right) in enumerate(pairs)}
    if not {pair for text in last for pair in cuts(text, texts)} <= set(pairs):
        raise unlike(source, "not all merges that lead to a token, as SentencePiece has them")
    # Where merges to several tokens are mixed, these are of equal score.
    scores = [0.0] * FIRST_PIECE + [NEVER] * len(texts)
    score, end = 0.0, -1
    for number, (left, right) in enumerate(pairs):
        if number > end:
            score -= 1
        end = max(end, last[left + right])
        scores[texts[left + right]] = score
    return pieces, scores


def _text(token: str) -> bytes:
    """What a token of Llama's kind stands for."""
    return token.replace("▁", " ").encode()


def content(tokenizer: LlamaTokenizer) -> dict[str, Any]:
    """A tokenizer.json.

    Raises:
        UserError: none can express the tokenizer.
    """
    pieces, settings = tokenizer.pieces, settings_of(tokenizer)
    if settings.charsmap:  # the step Precompiled applies rules to other stretches of a text
        raise UserError(
            "a tokenizer.json cannot say how this one replaces characters; choose another format"
        )
    tokens = LLAMA_SPECIAL + [piece.decode() for piece in pieces[len(LLAMA_SPECIAL) : FIRST_PIECE]]
    for piece in pieces[FIRST_PIECE:]:
        text = piece.decode(errors="replace")
        if text.encode() != piece or "▁" in text:
            raise UserError(
                f"a tokenizer.json cannot have the token {piece!r}: it is no text, or has the ▁ "
                "that stands for a blank there; convert without this tokenizer"
            )
        tokens.append(text.replace(" ", "▁"))
    pairs = [(tokens[left], tokens[right]) for left, right in tokenizer.merges()]
    scores = zip(tokens, tokenizer.scores, strict=True)
    special = [token for token, score in scores if score == -math.inf]

    made = content_of(tokens, pairs, LLAMA_SPECIAL + special)
    made["model"] |= {"unk_token": LLAMA_SPECIAL[0], "byte_fallback": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return made | {
        "normalizer": _normalizer(settings),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, begin, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([STRIP] if tokenizer.drops_blank else []),
            ],
        },
    }
