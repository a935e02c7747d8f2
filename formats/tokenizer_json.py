"""What a tokenizer.json of any kind has: its tokens, those added to them, and its merges.

Source of the format: tokenizers, Tokenizer.save.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from errors import FormatError, UserError

LARGEST_CONFIG = 1 << 20  # bytes
SURROGATE = re.compile("[\ud800-\udfff]")


def unlike(source: str | Path, what: str) -> FormatError:
    """The error for a file that has what is not handled."""
    return FormatError(
        f"{source} has {what}; it is damaged, or a tokenizer of a kind that is not handled here"
    )


def entry(mapping: Any, key: str, kind: type, source: str | Path) -> Any:
    """`mapping[key]`, which must be of that type.

    Raises:
        FormatError: it is not, or not there; as for all that read here.
    """
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        raise unlike(source, f"no {key}, or one of a strange type")
    return value


def named_beside(source: str | Path, key: str) -> str | None:
    """A token that the tokenizer_config.json beside a tokenizer.json names, if there is one."""
    path = Path(source).with_name("tokenizer_config.json")
    if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
        return None
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise FormatError(f"{path} is not JSON, or damaged; get it anew") from None
    token = config.get(key) if isinstance(config, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def vocabulary(
    content: dict[str, Any], source: str | Path
) -> tuple[list[str], list[dict[str, Any]]]:
    """All tokens in the order of their ids, and what the file says of those added."""
    entries = entry(content, "added_tokens", list, source)
    ids = {entry(each, "content", str, source): entry(each, "id", int, source) for each in entries}
    vocab = entry(content["model"], "vocab", dict, source)
    return read_tokens(vocab | ids, source), entries


def read_tokens(vocab: dict[str, Any], source: str | Path) -> list[str]:
    """The tokens in the order of their ids."""
    ids = vocab.values()
    if not all(isinstance(id_, int) for id_ in ids) or sorted(ids) != list(range(len(vocab))):
        raise unlike(source, f"{len(vocab)} tokens whose ids are not 0, 1, 2, ...")
    for token in vocab:
        if not token:
            raise unlike(source, "an empty token")
        if SURROGATE.search(token):
            raise unlike(source, f"the token {shortened(token)}, which is no text")
    return sorted(vocab, key=vocab.__getitem__)


def read_pairs(
    merges: Iterable[Any], tokens: list[str], source: str | Path
) -> list[tuple[str, str]]:
    """The merges, whether written as "a b" or as ["a", "b"]."""
    known = dict(zip(tokens, tokens, strict=True))  # a pair has these, and no copies of them
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)] if {left, right, left + right} <= known.keys():
                pass
            case _:
                what = f"the merge {shortened(merge)}, which is not of two of its tokens"
                raise unlike(source, what)
        if (left, right) in pairs:
            raise unlike(source, f"the merge {shortened(merge)} twice")
        pairs[known[left], known[right]] = None
    return list(pairs)


def unknown_step(step: Any, source: str | Path) -> FormatError:
    """The error for a step that does to a text what is not known."""
    return unlike(source, f"the step {shortened(step)} beside its model")


def steps_of(step: Any, name: str) -> list[Any]:
    """The steps of a sequence, or the one that there is."""
    if isinstance(step, dict) and step.get("type") == "Sequence" and type(step.get(name)) is list:
        return step[name]
    return [] if step is None else [step]


def first_token(post_processor: Any, source: str | Path) -> str | None:
    """The name of the token that is put in front of a text, if one is, and nothing else."""
    first = None
    for step in steps_of(post_processor, "processors"):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "TemplateProcessing" and first is None:
            *before, text = entry(step, "single", list, source) or [None]
            tokens = [entry(each, "SpecialToken", dict, source) for each in before]
            names = [entry(each, "id", str, source) for each in tokens]
            if len(names) > 1 or entry(text, "Sequence", dict, source).get("id") != "A":
                raise unknown_step(step, source)
            first = names[0] if names else None
        elif kind != "ByteLevel":
            raise unknown_step(step, source)
    return first


def begins_with(name: str, id_: int) -> dict[str, Any]:
    """The step that puts this token in front of a text."""
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": each, "type_id": 0}} for each in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {name: {"id": name, "ids": [id_], "tokens": [name]}},
    }


def content_of(
    tokens: list[str],
    pairs: list[tuple[str, str]],
    special: list[str],
    added: Sequence[str] = (),
) -> dict[str, Any]:
    """A tokenizer.json in which nothing is done to a text but merging.

    Args:
        tokens: all of them.
        pairs: the merges, best first.
        special: those that are control tokens.
        added: those that are not, but are looked for in every text.
    """
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(
            "a tokenizer.json cannot have two tokens of one spelling, as this tokenizer has; "
            "convert without it"
        )
    control = set(special)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[token], "content": token, "special": token in control} | flags
            for token in sorted([*special, *added], key=vocab.__getitem__)
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
