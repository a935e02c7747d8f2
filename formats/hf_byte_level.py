"""BPE on bytes in Hugging Face's files: GPT-2's kind, and that of byte_level.py.

Every byte is spelled as a printable character.

Sources of the format: GPT-2, encoder.py; tokenizers, Tokenizer.save.
"""

from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from formats.byte_level import (
    BYTES,
    COVERING,
    DIGIT,
    GPT2_PATTERN,
    NFC,
    PATTERNS,
    WORDS,
    ByteLevelTokenizer,
    Words,
    make_tokenizer,
)
from formats.tokenizer_json import (
    entry,
    first_token,
    named_beside,
    read_pairs,
    steps_of,
    unknown_step,
    unlike,
    vocabulary,
)
from tokenizer import END_OF_TEXT, BytePairTokenizer

# What an added token may ask of the text around it, which is not handled.
AROUND = ("single_word", "lstrip", "rstrip")


def read(content: dict[str, Any], source: str | Path) -> BytePairTokenizer | ByteLevelTokenizer:
    """The tokenizer in a tokenizer.json.

    Raises:
        FormatError: it is damaged, or asks for something that is not known here.
    """
    model = content["model"]
    tokens, entries = vocabulary(content, source)
    pairs = read_pairs(entry(model, "merges", list, source), tokens, source)
    normalizer = content.get("normalizer")
    if normalizer not in (None, NFC):
        raise unknown_step(normalizer, source)
    patterns = _patterns(content.get("pre_tokenizer"), source)
    words = Words(patterns, normalizer == NFC, bool(model.get("ignore_merges")))
    special, added = {}, {}
    for each in entries:
        name, id_ = each["content"], each["id"]
        if _flag(each, "special", source):
            special[name] = id_
            continue
        added[name] = id_
        # A normalized token is looked for in the text after NFC, and that is the same without.
        for key in (*AROUND, *(["normalized"] if words.nfc else [])):
            if _flag(each, key, source):
                raise unlike(source, f"the token {shortened(name)} with the setting {key}")

    first = first_token(content.get("post_processor"), source)
    if "begin" in model:
        begin, ends = entry(model, "begin", int, source), entry(model, "ends", list, source)
    else:
        begin, end = (special.get(named_beside(source, key)) for key in ("bos_token", "eos_token"))
        ends = [] if end is None else [end]
    if first is not None:
        begin = special.get(first, -1)
    for each in (*ends, begin):
        if each is not None and (type(each) is not int or each not in special.values()):
            raise unlike(source, "a begin or an end of texts that is no special token")
    return make_tokenizer(
        tokens, pairs, words, special, added, begin, first is not None, ends, source
    )


def read_vocab_json(
    tokens: list[str], pairs: list[tuple[str, str]], source: str | Path
) -> BytePairTokenizer:
    """GPT-2's tokenizer of its tokens and merges.

    Raises:
        FormatError: it is another, of which these files do not say how a text becomes words.
    """
    special = {END_OF_TEXT: tokens.index(END_OF_TEXT)} if END_OF_TEXT in tokens else {}
    made = make_tokenizer(tokens, pairs, WORDS["gpt-2"], special, {}, None, False, [], source)
    if not isinstance(made, BytePairTokenizer):
        raise unlike(source, "another order of tokens than GPT-2's, and needs a tokenizer.json")
    return made


def _flag(added: dict[str, Any], name: str, source: str | Path) -> bool:
    """What an added token says under this name, by default no."""
    return entry({name: False} | added, name, bool, source)


def _patterns(pre_tokenizer: Any, source: str | Path) -> tuple[str, ...]:
    """The patterns that part a text before its bytes are spelled."""
    *splits, last = steps_of(pre_tokenizer, "pretokenizers") or [None]
    patterns = [_pattern(step, source) for step in splits]
    # trim_offsets is about positions in the text, not tokens.
    if not isinstance(last, dict) or last | {"trim_offsets": True, "use_regex": True} != BYTES:
        raise unknown_step(last, source)
    if last.get("use_regex", True):
        patterns.append(GPT2_PATTERN)
    if not patterns or len(set(patterns)) < len(patterns):
        raise unknown_step(pre_tokenizer, source)
    return tuple(patterns)


def _pattern(step: Any, source: str | Path) -> str:
    if step == {"type": "Digits", "individual_digits": True}:
        return DIGIT
    for pattern in PATTERNS:
        split = {"type": "Split", "pattern": {"Regex": pattern}}
        kept = {"behavior": "Isolated", "invert": False}, {"behavior": "Removed", "invert": True}
        if step in [split | each for each in kept[: 1 + (pattern in COVERING)]]:
            return pattern
    raise unknown_step(step, source)
