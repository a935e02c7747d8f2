#!/usr/bin/env bash
# sentencepiece 0.2.3 (Python 3.11).
#
# A user-defined symbol is promised to be one token wherever it stands. One with a blank in it, such as
# "New York", is taken by the trainer and gets an id, but no text becomes it: when symbols are looked
# for, the text's blanks are already ▁, and the symbol's is not. Where decoding gets its id, it gives
# the text all the same. Spelled with ▁, as pieces are but texts are not, the symbol is found; both may
# be in one vocabulary, with an id each.
#
# Seen on 2026-11-28:
#   'New▁York': 'in New York' -> ['▁in', '▁', 'New▁York']
#   'New York': 'in New York' -> ['▁in', '▁', 'New', '▁', 'Yo', 'rk']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.3
PYTHONIOENCODING=utf-8 "$folder/venv/bin/python" - <<'PYTHON'
import io

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer


def is_found(symbol):
    """Whether the symbol is among the pieces of a text that has it."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["in a row in New York"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=24,
        hard_vocab_limit=False,
        user_defined_symbols=[symbol],
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    token = processor.piece_to_id(symbol)
    assert token != processor.unk_id() and processor.decode([token]) == "New York"
    print(f"{symbol!r}: 'in New York' ->", processor.encode("in New York", out_type=str))
    return token in processor.encode("in New York")


assert is_found("New▁York")
assert not is_found("New York"), "the behaviour has changed"
PYTHON
