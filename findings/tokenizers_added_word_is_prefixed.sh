#!/usr/bin/env bash
# tokenizers 0.23.3 (Python 3.11).
#
# A word given to add_tokens goes through the tokenizer's normaliser itself, so as to be found in
# normalised text. Where the normaliser puts a ▁ in front of a text, as in tokenizer.json files of
# Llama 2, the word gets one, too: it is found only where a blank or the beginning is in front of it,
# whose ▁ it then swallows, and never inside a word. One would expect that an added word is found
# wherever it is spelled, as it is without that normaliser, or when it is added as a special token.
#
# Seen on 2026-11-28:
#   a word, no prefix: 'a<w>b' -> ['a', '<w>', 'b']
#   a word, no prefix: 'a <w>b' -> ['a', '▁', '<w>', 'b']
#   a word, prefix: 'a<w>b' -> ['▁', 'a', '<', 'w', '>', 'b']
#   a word, prefix: 'a <w>b' -> ['▁', 'a', '▁<w>', 'b']
#   special, prefix: 'a<w>b' -> ['▁', 'a', '<w>', '▁', 'b']
#   special, prefix: 'a <w>b' -> ['▁', 'a', '▁', '<w>', '▁', 'b']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
PYTHONIOENCODING=utf-8 "$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import AddedToken, Tokenizer, models, normalizers

CHARACTERS = {character: number for number, character in enumerate("▁ab<w>")}


def found(name, prefix, special):
    """Whether the added word is one token of each text."""
    tokenizer = Tokenizer(models.BPE(vocab=CHARACTERS, merges=[]))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if special:
        tokenizer.add_special_tokens(["<w>"])
    else:
        tokenizer.add_tokens(["<w>"])
    word = tokenizer.token_to_id("<w>")
    result = []
    for text in ("a<w>b", "a <w>b"):
        encoding = tokenizer.encode(text)
        print(f"{name}: {text!r} -> {encoding.tokens}")
        result.append(word in encoding.ids)
    return result


assert found("a word, no prefix", prefix=False, special=False) == [True, True]
assert found("a word, prefix", prefix=True, special=False) == [False, True], "it has changed"
assert found("special, prefix", prefix=True, special=True) == [True, True]
PYTHON
