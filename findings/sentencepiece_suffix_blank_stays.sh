#!/usr/bin/env bash
# sentencepiece 0.2.3 (Python 3.11).
#
# With treat_whitespace_as_suffix, encoding puts the dummy blank behind a text instead of in front of
# it. Decoding does not know that: it leaves the blank behind, and still takes a blank away in front,
# which is the text's own. So a text without extra blanks comes back with one more at its end, and one
# more again each time it goes through, and a text that begins with a blank comes back without that.
# One would expect the mirror image of the default, under which both come back as they were.
#
# Seen on 2026-11-28:
#   default: 'an ant' -> ['▁an', '▁an', 't'] -> 'an ant'
#   default: ' an ant' -> ['▁', '▁an', '▁an', 't'] -> ' an ant'
#   suffix: 'an ant' -> ['an▁', 'an', 't▁'] -> 'an ant '
#   suffix: ' an ant' -> ['▁', 'an▁', 'an', 't▁'] -> 'an ant '
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.3
PYTHONIOENCODING=utf-8 "$folder/venv/bin/python" - <<'PYTHON'
import io

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

TEXTS = ["an ant", " an ant"]


def there_and_back(suffix):
    """What the texts are after encoding and decoding."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["an ant and an art"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=12,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        treat_whitespace_as_suffix=suffix,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    back = []
    for text in TEXTS:
        pieces = processor.encode(text, out_type=str)
        back.append(processor.decode(pieces))
        print("suffix:" if suffix else "default:", repr(text), "->", pieces, "->", repr(back[-1]))
    return back


assert there_and_back(suffix=False) == TEXTS
assert there_and_back(suffix=True) == ["an ant ", "an ant "], "the behaviour has changed"
PYTHON
