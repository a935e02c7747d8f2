"""Hugging Face's tokenizer.json, and GPT-2's vocab.json with merges.txt, which came before it.

Handled are the three kinds that tokenizer.py has. GPT-2's kind is BPE on bytes, and every byte is
spelled as a printable character. Llama's kind is a SentencePiece model in the clothes of BPE: "▁"
is a blank, and <0x00> to <0xFF> are the bytes of other characters; what is done to blanks may be
other than in Llama. Either may have special tokens behind its vocabulary, as `add_special_tokens`
adds them. A vocabulary of characters is BPE without merges, which leaves out all others.
Refused: within the vocabulary, special tokens other than <|endoftext|> in GPT-2's kind, and than
<unk>, <s> and </s> in Llama's; behind it, tokens that are not special, for which Hugging Face
searches every text; GPT-2's kind with ids that are not in the order of the merges; whatever else is
done to a text before it is encoded. Not read: what is put around a text; here that is as in GPT-2
and Llama.

Where Hugging Face differs: in a text, it takes "<s>" or "<pad>" for the token and "▁" for a blank,
which are plain text here; and for Llama's kind, version 5 of transformers puts no blank in front of
a text that begins with one, as SentencePiece and we do.

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
import math
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from errors import FormatError, UserError
from files import replacing, without_surrogates
from formats.byte_pairs import byte_characters, cuts, merged_last, merges
from formats.sentencepiece_model import LLAMA, Settings, settings_of
from tokenizer import (
    END_OF_TEXT,
    FIRST_BYTE,
    FIRST_PIECE,
    SPECIAL_PIECES,
    BytePairTokenizer,
    CharTokenizer,
    LlamaTokenizer,
    Tokenizer,
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


def read(
    data: bytes, source: str | Path
) -> BytePairTokenizer | CharTokenizer | tuple[list[bytes], list[float], Settings]:
    """A tokenizer, or the pieces, scores and settings of one of Llama's kind.

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
        ranks = _read_gpt2(tokens, _pairs(_lines_of_merges_txt(source), tokens, source), source)
        return BytePairTokenizer(ranks)

    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unlike(source, f"the setting {key}")
    if model.get("type", "BPE") != "BPE":
        raise _unlike(source, f"a model of the type {shortened(model['type'])}")
    entries = _entry(content, "added_tokens", list, source)
    ids = {
        _entry(each, "content", str, source): _entry(each, "id", int, source) for each in entries
    }
    tokens = _tokens(_entry(model, "vocab", dict, source) | ids, source)
    llama = model.get("byte_fallback")
    tokens, added = _cut(tokens, entries, LLAMA_SPECIAL if llama else [END_OF_TEXT], source)
    added_pieces = [_text(token, source) for token in added]
    pairs = _pairs(_entry(model, "merges", list, source), tokens, source)
    steps = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
    if not (pairs or entries or llama or any(steps.values())):
        return CharTokenizer(_read_characters(tokens, source))
    if llama and model.get("ignore_merges"):
        raise _unlike(source, "the setting ignore_merges")
    settings = (_settings if llama else _splits_like_gpt2)(**steps)
    if not settings:
        raise _unlike(source, f"the steps {shortened(steps)} before its model")
    if not llama:
        return BytePairTokenizer(_read_gpt2(tokens, pairs, source), added)
    pieces, scores = _read_llama(tokens, pairs, source)
    return pieces + added_pieces, scores + [-math.inf] * len(added), settings


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer.json and the tokenizer_config.json that transformers looks for.

    Raises:
        UserError: the tokenizer has tokens that these files cannot express.
        RunError: a file cannot be written.
    """
    if isinstance(tokenizer, BytePairTokenizer):
        content = _gpt2_content(tokenizer)
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


def _cut(
    tokens: list[str], entries: list[dict[str, Any]], known: list[str], source: str | Path
) -> tuple[list[str], list[str]]:
    """The tokens of the vocabulary, of which the `known` ones are special, and those behind it."""
    special = {each["content"]: each.get("special") for each in entries}
    for token in known:
        special.pop(token, None)
    count = len(tokens) - len(special)
    behind = set(tokens[count:])
    for token in special:
        if token not in behind:
            raise _unlike(source, f"the special token {shortened(token)} within its vocabulary")
        if special[token] is not True:
            raise _unlike(source, f"the added token {shortened(token)}, which is not special")
    return tokens[:count], tokens[count:]


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
        if not merged_last(left, right, ranks, halves):
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
    pieces = [_text(token, source) for token in tokens]
    pieces[1:FIRST_BYTE] = SPECIAL_PIECES[1:]

    pairs = [pair for pair in pairs if texts.keys() >= {*pair, "".join(pair)}]
    last = {left + right: number for number, (left, right) in enumerate(pairs)}
    if not {pair for text in last for pair in cuts(text, texts)} <= set(pairs):
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


def _text(token: str, source: str | Path) -> bytes:
    """What a token of Llama's kind stands for."""
    try:
        return token.replace("▁", " ").encode()
    except UnicodeEncodeError:
        raise _unlike(source, f"the token {shortened(token)}, which is no text") from None


def _read_characters(tokens: list[str], source: str | Path) -> str:
    text = "".join(tokens)
    if not text or len(text) > len(tokens) or text != without_surrogates(text):
        raise _unlike(source, "no merges, though its tokens are not characters")
    return text


def _gpt2_content(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    ranks, special = tokenizer.ranks, [END_OF_TEXT, *tokenizer.added]
    characters = byte_characters()

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    tokens = [spell(token) for token in sorted(ranks, key=ranks.__getitem__)]
    pairs = [(spell(left), spell(right)) for left, right in merges(ranks)]
    step = BYTE_LEVEL | {"use_regex": True}
    content = _content([*tokens, *special], pairs, special)
    return content | {"pre_tokenizer": step, "post_processor": step, "decoder": step}


def _llama_content(tokenizer: LlamaTokenizer) -> dict[str, Any]:
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

    content = _content(tokens, pairs, LLAMA_SPECIAL + special)
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
