"""Llama's kind of tokenizer in a tokenizer.json: a SentencePiece model in the clothes of BPE.

"▁" is a blank, and <0x00> to <0xFF> are the bytes of characters that are no token; what is done to
blanks may be other than in Llama.

SentencePiece merges the pair of the highest score, and of equal ones the leftmost; in a
tokenizer.json every pair has a rank of its own. We write the ranks that Hugging Face itself makes
of scores: of equal ones, as of Llama's runs of blanks, the longest halves come first. To read, we
make scores that have the same order. Pairs of one token, and tokens whose pairs are mixed, get one
score, and so lose their order. That can only matter where such pairs are neighbours in a text, and
for Llama 2's vocabulary no such text is known.

Gemma's runs of blanks, spelled "▁▁", are tokens that are looked for and also the first merges; in a
text, it is the merges that find them.

Source: transformers, convert_slow_tokenizer.py, generate_merges.
"""

from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from errors import UserError
from formats.sentencepiece_model import (
    LLAMA,
    Settings,
    make_tokenizer,
    settings_of,
    spelled,
    unlike_pieces,
)
from formats.tokenizer_json import (
    begins_with,
    content_of,
    entry,
    first_token,
    named_beside,
    read_pairs,
    unlike,
    vocabulary,
)
from tokenizer import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    CONTROL_NAME,
    END_NAMES,
    NEVER,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    LlamaTokenizer,
)

LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]
BOS_NAMES, EOS_NAMES = ["<s>", "<bos>"], ["</s>", "<eos>"]
LONGEST_PIECE = 1000  # characters; unless told otherwise, SentencePiece makes none of more than 16
NO_PREFIX = Settings(add_dummy_prefix=False)
# The steps of Llama's kind. In these patterns, ^ and $ would be the ends of a line.
TRIM = {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
SQUEEZE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# Gemma's, which finds nothing after REPLACE.
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
SPLIT |= {"invert": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def read(content: dict[str, Any], source: str | Path) -> LlamaTokenizer:
    """The tokenizer in a tokenizer.json.

    Raises:
        FormatError: it is damaged, or asks for what is not handled.
    """
    model = content["model"]
    tokens, entries = vocabulary(content, source)
    if model.get("ignore_merges"):
        raise unlike(source, "the setting ignore_merges")
    steps = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
    settings = _settings(**steps)
    if not settings:
        raise unlike(source, f"the steps {shortened(steps)} before its model")
    types = _types(tokens, entries, model.get("unk_token"), source)
    if USER_DEFINED in types and settings != NO_PREFIX:
        name = shortened(tokens[types.index(USER_DEFINED)])
        raise unlike(
            source, f"the added token {name}, which is not special, beside {shortened(steps)}"
        )
    pieces = spelled(map(str.encode, tokens), types)
    if what := unlike_pieces(pieces, types):
        raise unlike(source, what)
    pairs = read_pairs(entry(model, "merges", list, source), tokens, source)
    scores = _scores(tokens, types, pairs, source)
    layout = _ends(tokens, types, first_token(content.get("post_processor"), source), source)
    return make_tokenizer(pieces, scores, settings, types, **layout)


def _types(
    tokens: list[str], entries: list[dict[str, Any]], unknown: Any, source: str | Path
) -> list[int]:
    """The type of each token."""
    names = {*map(bytes.decode, BYTE_PIECES)}
    types = [BYTE if token in names else NORMAL for token in tokens]
    # In Llama's layout </s> ends a text, though Phi-3's file does not call it special.
    known = LLAMA_SPECIAL if tokens[:3] == LLAMA_SPECIAL else []
    flags = set()
    for each in entries:
        name, token = each["content"], each["id"]
        special = entry(each, "special", bool, source)
        if special or name in known or CONTROL_NAME.fullmatch(name):
            types[token] = CONTROL
        # Hugging Face looks for "▁" in the text as it is written, where it is nothing special here.
        elif "▁" not in name or each.get("normalized"):
            types[token] = USER_DEFINED
            flags.add(bool(each.get("normalized")))
            if "▁" in name or any(each.get(key) for key in ("single_word", "lstrip", "rstrip")):
                raise unlike(source, f"the added token {shortened(each)}, which is not special")
    if len(flags) > 1:
        raise unlike(source, "added tokens of which some are normalized, and some are not")
    if unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return types


def _ends(
    tokens: list[str], types: list[int], first: str | None, source: str | Path
) -> dict[str, int | bool]:
    """The tokens that begin and end a text, and whether the first is put in front of one."""
    control = {token: id_ for id_, token in enumerate(tokens) if types[id_] == CONTROL}
    beside = [named_beside(source, key) for key in ("bos_token", "eos_token")]
    begin = next((name for name in [first or beside[0], *BOS_NAMES] if name in control), None)
    end = next((name for name in [beside[1], *EOS_NAMES, *END_NAMES] if name in control), begin)
    if begin is None or first not in (None, begin):
        raise unlike(source, f"no special token {first or BOS_NAMES[0]} that begins a text")
    return {"begin": control[begin], "end": control[end], "adds_begin": first is not None}


def _settings(normalizer: Any, pre_tokenizer: Any) -> Settings | None:
    """The settings, if they are all that is done to a text but for writing "▁" for a blank."""
    every = [Settings(prefix, extra) for prefix in (True, False) for extra in (True, False)]
    known = [
        (NO_PREFIX, REPLACE, None),
        (NO_PREFIX, REPLACE, SPLIT),
        *((each, _normalizer(each), None) for each in every),
    ]
    for scheme, settings in {"always": LLAMA, "first": LLAMA, "never": NO_PREFIX}.items():
        known.append((settings, None, METASPACE | {"prepend_scheme": scheme}))
    return next((each for each, *steps in known if steps == [normalizer, pre_tokenizer]), None)


def _normalizer(settings: Settings) -> dict[str, Any]:
    """The steps that do what these settings say; none of them is about a charsmap."""
    steps = [TRIM, SQUEEZE] if settings.remove_extra_whitespaces else []
    steps += [PREPEND] if settings.add_dummy_prefix else []
    return {"type": "Sequence", "normalizers": [*steps, REPLACE]}


def _scores(
    tokens: list[str], types: list[int], pairs: list[tuple[str, str]], source: str | Path
) -> list[float]:
    """Scores that lead to the same merges."""
    texts = {token: id_ for id_, token in enumerate(tokens) if types[id_] == NORMAL}
    for text in texts:
        if " " in text or len(text) > LONGEST_PIECE:
            raise unlike(source, f"the token {shortened(text)}, with a blank or too long")
    pairs = [
        (left, right)
        for left, right in pairs
        if left in texts and right in texts and left + right in texts
    ]
    last = {left + right: number for number, (left, right) in enumerate(pairs)}
    # Each pair is a cut of a token, and none comes twice.
    cuts = ((text[:cut], text[cut:]) for text in last for cut in range(1, len(text)))
    if sum(left in texts and right in texts for left, right in cuts) > len(pairs):
        raise unlike(source, "not all merges that lead to a token, as SentencePiece has them")
    # Where merges to several tokens are mixed, these are of equal score.
    scores = [NEVER if kind == NORMAL else 0.0 for kind in types]
    score, end = 0.0, -1
    for number, (left, right) in enumerate(pairs):
        if number > end:
            score -= 1
        end = max(end, last[left + right])
        scores[texts[left + right]] = score
    return scores


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
    tokens = []
    for piece, kind in zip(pieces, tokenizer.types, strict=True):
        text = piece.decode(errors="replace")
        if text.encode() != piece or (kind in (NORMAL, USER_DEFINED) and "▁" in text):
            raise UserError(
                f"a tokenizer.json cannot have the token {piece!r}: it is no text, or has the ▁ "
                "that stands for a blank there; convert without this tokenizer"
            )
        tokens.append(text.replace(" ", "▁") if kind == NORMAL else text)
    pairs = [(tokens[left], tokens[right]) for left, right in tokenizer.merges()]
    added: dict[bool, list[str]] = {True: [], False: []}
    for token, kind in zip(tokens, tokenizer.types, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added[kind != USER_DEFINED].append(token)
    if added[False] and settings != NO_PREFIX:
        raise UserError(
            f"a tokenizer.json cannot say that {added[False][0]!r} and others are looked for in a "
            "text and blanks are put in front of it or removed, as this tokenizer does; choose "
            "another format"
        )

    made = content_of(tokens, pairs, added[True], added[False])
    unknown = tokens[tokenizer.types.index(UNKNOWN)] if UNKNOWN in tokenizer.types else None
    made["model"] |= {"unk_token": unknown, "byte_fallback": True}
    begin = tokenizer.begin
    return made | {
        "normalizer": _normalizer(settings),
        "post_processor": begins_with(tokens[begin], begin) if tokenizer.adds_begin else None,
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
