"""Vocabularies of characters: our characters.json, and the meta.pkl of nanoGPT's character models.

The first is one JSON string. The second is a pickle of a dict, in which "itos" has the character of
every token and "stoi" the token of every character.

Source of meta.pkl: nanoGPT, data/shakespeare_char/prepare.py.
"""

import json
from pathlib import Path

from errors import FormatError
from files import without_surrogates
from formats.pickle_machine import MAX_BYTES, run

PICKLE = b"\x80"  # how a pickle begins, since Python 2.3
STARTS = b'"', PICKLE


def read(data: bytes, source: str | Path) -> str:
    """The characters in the order of their tokens.

    Args:
        data: the content of a file, which begins as one of `STARTS`.
        source: what error messages call it.

    Raises:
        FormatError: it is damaged, or a vocabulary of something else.
    """
    try:
        characters = _from_pickle(data, source) if data.startswith(PICKLE) else json.loads(data)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes the machine raises nearly anything
        raise FormatError(
            f"{source} is no vocabulary of characters, or a damaged one ({str(error)[:200]}); "
            "prepare it again"
        ) from None
    if not characters or len(set(characters)) < len(characters):
        raise FormatError(f"{source} has no characters, or one of them twice; prepare it again")
    if characters != without_surrogates(characters):
        raise FormatError(f"{source} has halves of characters, which no text can have")
    return characters


def _from_pickle(data: bytes, source: str | Path) -> str:
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data):,} bytes")
    meta = run(source, data, {})
    characters = [meta["itos"][token] for token in range(len(meta["itos"]))]
    for token, character in enumerate(characters):
        if not isinstance(character, str) or len(character) != 1:
            raise ValueError(f"its token {token} is not one character")
    if meta["stoi"] != {character: token for token, character in enumerate(characters)}:
        raise ValueError("its stoi is not the reverse of its itos")
    return "".join(characters)
