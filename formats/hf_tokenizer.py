"""Hugging Face's tokenizer.json, and GPT-2's vocab.json with merges.txt, which came before it.

Handled are the three kinds that tokenizer.py has. GPT-2's kind is BPE on bytes, and every byte is
spelled as a printable character. Llama's kind is a SentencePiece model in the clothes of BPE: "▁"
is a blank, and <0x00> to <0xFF> are the bytes of other characters; what is done to blanks may be
other than in Llama. A vocabulary of characters is BPE without merges, which leaves out all others.
Refused: special tokens other than <|endoftext|> in GPT-2's kind, and than <unk>, <s> and </s> in
Llama's; GPT-2's kind with ids that are not in the order of the merges; whatever else is done to a
text before it is encoded. Not read: what is put around a text; here that is as in GPT-2 and Llama.

Where Hugging Face differs: in a text, it takes "<s>" for the token and "▁" for a blank, which are
plain text here; and for Llama's kind, version 5 of transformers puts no blank in front of a text
that begins with one, as SentencePiece and we do.

SentencePiece merges the pair of the highest score, and of equal ones the leftmost; in a
tokenizer.json every pair has a rank of its own. We write the ranks that Hugging Face itself makes
of scores: of equal ones, as of Llama's runs of blanks, the longest halves come first. To read, we
make scores that have the same order. Pairs of one token, and tokens whose pairs are mixed, get one
score, and so lose their order. That can only matter where such pairs are neighbours in a text, and
for Llama 2's vocabulary no such text is known.

Sources of the formats: tokenizers, Tokenizer.save; transformers, convert_slow_tokenizer.py,
generate_merges; GPT-2, encoder.py.
"""

import json
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, AnyStr

from errors import FormatError, UserError
from files import replacing
from formats.sentencepiece_model import LLAMA, Settings, settings_of
from tokenizer import (
    END_OF_TEXT,
    FIRST_BYTE,
    FIRST_PIECE,
    SPECIAL_PIECES,
    CharTokenizer,
    LlamaTokenizer,
    Tokenizer,
    without_surrogates,
)

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": GPT2_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}

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


@cache
def byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in GPT-2's files.

    Source: GPT-2, encoder.py, bytes_to_unicode.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two tokens that each token of several bytes is made of, in order of rank.

    Args:
        ranks: of a `BytePairTokenizer`.

    Raises:
        UserError: there is a token that merging never makes.
    """
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        for left, right in _cuts(token, ranks):
            if _merged_last(left, right, ranks, halves):
                halves[token] = left, right
                break
        else:
            if len(token) > 1:
                raise UserError(
                    f"the tokenizer has the token {token!r}, which no merge of two earlier ones "
                    "makes, and such tokens cannot be written; use another tokenizer"
                )
    return list(halves.values())


def _cuts(text: AnyStr, tokens: Container[AnyStr]) -> Iterator[tuple[AnyStr, AnyStr]]:
    """All pairs of tokens that are `text` when joined, the shortest left one first."""
    for cut in range(1, len(text)):
        left, right = text[:cut], text[cut:]
        if left in tokens and right in tokens:
            yield left, right


def _merged_last(
    left: bytes, right: bytes, ranks: dict[bytes, int], halves: dict[bytes, tuple[bytes, bytes]]
) -> bool:
    """Whether merging makes `left` and `right` of their bytes before it merges across the border.

    The merges are undone here, the last one first. The tokens that then meet at the border must not
    be a pair that comes before the merge just undone: one of a lower rank, or of the same rank but
    further left.

    Args:
        halves: what each token of several bytes is made of; without those that are still to come.
    """
    while left in halves or right in halves:
        left_rank = ranks[left] if left in halves else -1
        right_rank = ranks[right] if right in halves else -1
        if left_rank > right_rank:
            left, limit = halves[left][1], left_rank
        else:
            right, limit = halves[right][0], right_rank + 1
        if ranks.get(left + right, limit) < limit:
            return False
    return len(left) == len(right) == 1


def read(
    data: bytes, source: str | Path
) -> dict[bytes, int] | tuple[list[bytes], list[float], Settings] | str:
    """What a tokenizer is made of: ranks, or pieces, scores and settings, or characters.

    Args:
        data: the content of a tokenizer.json or a vocab.json, which begins with "{".
        source: the name of that file; the merges.txt of a vocab.json is beside it.

    Raises:
        FormatError: it is damaged, or a tokenizer of a kind that is not handled.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError(f"{source} is not JSON, or damaged; get it anew") from None
    model = content.get("model")
    if not isinstance(model, dict):  # in a vocab.json, "model" is a token like others
        tokens = _tokens(content, source)
        return _read_gpt2(tokens, _pairs(_lines_of_merges_txt(source), tokens, source), source)

    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unlike(source, f"the setting {key}")
    if model.get("type", "BPE") != "BPE":
        raise _unlike(source, f"a model of the type {shortened(model['type'])}")
    added = {
        _entry(token, "content", str, source): _entry(token, "id", int, source)
        for token in _entry(content, "added_tokens", list, source)
    }
    tokens = _tokens(_entry(model, "vocab", dict, source) | added, source)
    pairs = _pairs(_entry(model, "merges", list, source), tokens, source)
    llama = model.get("byte_fallback")
    for token in added:
        if token not in (LLAMA_SPECIAL if llama else [END_OF_TEXT]):
            raise _unlike(source, f"the special token {shortened(token)}")
    steps = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
    if not (pairs or added or llama or any(steps.values())):
        return _read_characters(tokens, source)
    if llama and model.get("ignore_merges"):
        raise _unlike(source, "the setting ignore_merges")
    settings = (_settings if llama else _splits_like_gpt2)(**steps)
    if not settings:
        raise _unlike(source, f"the steps {shortened(steps)} before its model")
    table = (_read_llama if llama else _read_gpt2)(tokens, pairs, source)
    return (*table, settings) if llama else table


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer.json and the tokenizer_config.json that transformers looks for.

    Raises:
        UserError: the tokenizer has tokens that these files cannot express.
        RunError: a file cannot be written.
    """
    if hasattr(tokenizer, "ranks"):
        content = _gpt2_content(tokenizer.ranks)
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    elif isinstance(tokenizer, CharTokenizer):
        content = _content([*tokenizer.characters], [], special=[]) | {"decoder": {"type": "Fuse"}}
        names = {}
    else:
        content = _llama_content(tokenizer)
        names = dict(zip(("unk_token", "bos_token", "eos_token"), LLAMA_SPECIAL, strict=True))
    # This class does what tokenizer.json says; those named after a model do what they think best.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {"tokenizer.json": content, "tokenizer_config.json": config | names}
    for name, value in files.items():
        with replacing(folder / name) as file:
            file.write(json.dumps(value, ensure_ascii=False, indent=2).encode())


def _unlike(source: str | Path, what: str) -> FormatError:
    return FormatError(
        f"{source} has {what}; it is damaged, or a tokenizer unlike GPT-2's and Llama 2's, which "
        "is not handled here"
    )


def _entry(mapping: Any, key: str, kind: type, source: str | Path) -> Any:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        raise _unlike(source, f"no {key}, or one of a strange type")
    return value


def _tokens(vocab: dict[str, Any], source: str | Path) -> list[str]:
    """The tokens in the order of their ids."""
    ids = vocab.values()
    if not all(isinstance(id_, int) for id_ in ids) or sorted(ids) != list(range(len(vocab))):
        raise _unlike(source, f"{len(vocab)} tokens whose ids are not 0, 1, 2, ...")
    if "" in vocab:
        raise _unlike(source, "an empty token")
    return sorted(vocab, key=vocab.__getitem__)


def _pairs(merges: list[Any], tokens: list[str], source: str | Path) -> list[tuple[str, str]]:
    """The merges, whether written as "a b" or as ["a", "b"]."""
    known = set(tokens)
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(token, str) for token in pair)
            or not known.issuperset((*pair, "".join(pair)))
        ):
            raise _unlike(
                source, f"the merge {shortened(merge)}, which is not of two of its tokens"
            )
        if tuple(pair) in pairs:
            raise _unlike(source, f"the merge {shortened(merge)} twice")
        pairs[tuple(pair)] = None
    return list(pairs)


def _lines_of_merges_txt(source: str | Path) -> list[str]:
    path = Path(source).with_name("merges.txt")
    if not path.is_file():
        raise FormatError(
            f"{source} needs the merges.txt that belongs to it; put it into its folder"
        )
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if not line.startswith("#version")]


def _splits_like_gpt2(normalizer: Any, pre_tokenizer: Any) -> bool:
    """Whether a text is split into words as GPT-2 does it, and nothing else is done to it."""
    for trim in (True, False):  # about positions in the text, not tokens
        step = BYTE_LEVEL | {"trim_offsets": trim}
        split = {"type": "Sequence", "pretokenizers": [SPLIT, step | {"use_regex": False}]}
        if pre_tokenizer in (step, step | {"use_regex": True}, split):
            return normalizer is None
    return False


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


def _read_gpt2(
    tokens: list[str], pairs: list[tuple[str, str]], source: str | Path
) -> dict[bytes, int]:
    """The ranks, if to merge by them is to merge these pairs in this order."""
    if tokens[-1:] != [END_OF_TEXT]:
        raise _unlike(source, f"a last token that is not {END_OF_TEXT}")
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}

    def spelled(token: str) -> bytes:
        try:
            return bytes([byte_of[character] for character in token])
        except KeyError:
            raise _unlike(
                source, f"the token {shortened(token)}, which does not spell bytes"
            ) from None

    ranks = {spelled(token): rank for rank, token in enumerate(tokens[:-1])}
    for byte, character in enumerate(byte_characters()):
        if bytes([byte]) not in ranks:
            raise _unlike(source, f"no token {character} for the byte {byte}")
    if ["".join(pair) for pair in pairs] != [token for token in tokens[:-1] if len(token) > 1]:
        raise _unlike(source, "tokens whose ids are not in the order of the merges")
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for pair in pairs:
        left, right = map(spelled, pair)
        if not _merged_last(left, right, ranks, halves):
            raise _unlike(
                source, f"the merge {shortened(pair)}, which other merges make impossible"
            )
        halves[left + right] = left, right
    return ranks


def _read_llama(
    tokens: list[str], pairs: list[tuple[str, str]], source: str | Path
) -> tuple[list[bytes], list[float]]:
    """The pieces, and scores that lead to the same merges."""
    if tokens[: len(LLAMA_SPECIAL)] != LLAMA_SPECIAL:
        raise _unlike(source, "other first tokens than <unk>, <s> and </s>")
    texts = {token: id_ for id_, token in enumerate(tokens) if id_ >= FIRST_PIECE}
    for text in texts:
        if " " in text or len(text) > LONGEST_PIECE:
            raise _unlike(source, f"the token {shortened(text)}, with a blank or too long")
    try:
        pieces = [token.replace("▁", " ").encode() for token in tokens]
    except UnicodeEncodeError as error:
        raise _unlike(source, f"the token {shortened(error.object)}, which is no text") from None
    pieces[1:FIRST_BYTE] = SPECIAL_PIECES[1:]

    pairs = [pair for pair in pairs if texts.keys() >= {*pair, "".join(pair)}]
    last = {left + right: number for number, (left, right) in enumerate(pairs)}
    if not {pair for text in last for pair in _cuts(text, texts)} <= set(pairs):
        raise _unlike(source, "not all merges that lead to a token, as SentencePiece has them")
    # Where merges to several tokens are mixed, these are of equal score.
    scores = [0.0] * FIRST_PIECE + [NEVER] * len(texts)
    score, end = 0.0, -1
    for number, (left, right) in enumerate(pairs):
        if number > end:
            score -= 1
        end = max(end, last[left + right])
        scores[texts[left + right]] = score
    return pieces, scores


def _read_characters(tokens: list[str], source: str | Path) -> str:
    text = "".join(tokens)
    if not text or len(text) > len(tokens) or text != without_surrogates(text):
        raise _unlike(source, "no merges, though its tokens are not characters")
    return text


def _gpt2_content(ranks: dict[bytes, int]) -> dict[str, Any]:
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    tokens = [spell(token) for token in sorted(ranks, key=ranks.__getitem__)]
    pairs = [(spell(left), spell(right)) for left, right in merges(ranks)]
    step = BYTE_LEVEL | {"use_regex": True}
    content = _content([*tokens, END_OF_TEXT], pairs, special=[END_OF_TEXT])
    return content | {"pre_tokenizer": step, "post_processor": step, "decoder": step}


def _llama_content(tokenizer: LlamaTokenizer) -> dict[str, Any]:
    pieces, scores, settings = tokenizer.pieces, tokenizer.scores, settings_of(tokenizer)
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
    texts = dict(zip(tokens[FIRST_PIECE:], scores[FIRST_PIECE:], strict=True))
    pairs = [pair for text in texts if texts[text] > NEVER for pair in _cuts(text, texts)]
    # Of equal scores the longest halves come first, which in a run of blanks are the leftmost.
    pairs.sort(key=lambda pair: (-texts["".join(pair)], -len(pair[0]), -len(pair[1])))

    content = _content(tokens, pairs, LLAMA_SPECIAL)
    content["model"] |= {"unk_token": LLAMA_SPECIAL[0], "byte_fallback": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return content | {
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


def _content(tokens: list[str], pairs: list[tuple[str, str]], special: list[str]) -> dict[str, Any]:
    """A tokenizer.json in which nothing is done to a text but merging."""
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(
            "a tokenizer.json cannot have two tokens of one spelling, as this tokenizer has; "
            "convert without it"
        )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[token], "content": token, "special": True} | flags for token in special
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": pairs,
        },
    }
