"""Small tokenizers and what Hugging Face's files have of them, for the tests of these."""

import json
import math
from functools import cache
from pydoc_data.topics import topics

from formats import byte_level, hf_sentencepiece
from formats.byte_level import WORDS, ByteLevelTokenizer
from formats.tokenizer_files import tokenizer_from_bytes
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, BytePairTokenizer, LlamaTokenizer, train_bpe

TRAINED = train_bpe(topics["while"] + topics["string-methods"] + "naïve “quotes” 😀😀", 200)


def llama(texts: dict[str, float]) -> LlamaTokenizer:
    """A tokenizer of Llama's kind with these pieces and scores; the first is token 259."""
    pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, texts)]
    return LlamaTokenizer(pieces, [0.0] * 259 + list(texts.values()))


LLAMA = llama(
    {"  ": -9, "    ": -9, "   ": -9, "ab": -1, " ab": -2, "aa": -3, "éa": -4, "abab": -5}
    | {"\n\n": -6, "no": -1e10, " ": -20, "a": -21, "b": -22, "é": -23, "\n": -24, "n": -25}
    | {"o": -26}
)


def gpt2_content(tokenizer: BytePairTokenizer) -> dict:
    return byte_level.content(byte_level.of_ranks(tokenizer))


def any_ids(tokenizer: BytePairTokenizer) -> ByteLevelTokenizer:
    """Its pieces behind a special token, words as Llama 3 has them, and a token to look for."""
    made, begin = byte_level.of_ranks(tokenizer), {"<|begin_of_text|>": 0}
    pieces = [*made.tokens][: tokenizer.begin]
    return ByteLevelTokenizer(
        [*map(str.encode, begin), *pieces, b"<think>"],
        [(left + 1, right + 1) for left, right in made.merges],
        WORDS["llama-bpe"],
        begin,
        {"<think>": len(pieces) + 1},
        begin=0,
        adds_begin=True,
        ends=[0],
    )


@cache
def small_files() -> tuple[str, ...]:
    """A tokenizer.json of each kind, and one of each with special tokens behind its vocabulary."""
    tiny = train_bpe("abab abab aba", 5)
    special = LlamaTokenizer([*LLAMA.pieces, b"<pad>"], [*LLAMA.scores, -math.inf])
    contents = (
        gpt2_content(tiny),
        hf_sentencepiece.content(LLAMA),
        gpt2_content(BytePairTokenizer(tiny.ranks, ["[PAD]", "<é>"])),
        hf_sentencepiece.content(special),
        byte_level.content(any_ids(tiny)),
    )
    return tuple(map(json.dumps, contents))


def gpt2_file() -> dict:
    return json.loads(small_files()[0])


def llama_file() -> dict:
    return json.loads(small_files()[1])


def loaded(content) -> BytePairTokenizer | LlamaTokenizer:
    return tokenizer_from_bytes(json.dumps(content).encode(), "t/tokenizer.json")
