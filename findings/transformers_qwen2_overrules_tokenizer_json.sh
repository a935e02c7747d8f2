#!/usr/bin/env bash
# transformers 5.24.0 (tokenizers 0.23.3): AutoTokenizer does not take a tokenizer.json as it is, even
# where tokenizer_config.json names the class that does, if config.json says model_type qwen2.
#
# The file below splits a text into words as GPT-2 does, so that the merge of 1 and 2 makes "12" one
# token. Its tokenizer_config.json names PreTrainedTokenizerFast. Guessed before: that AutoTokenizer
# gives the tokens of tokenizer.json whatever kind of model lies beside it, for that class has no ideas
# of its own. That is so for the model_types llama and qwen3. For qwen2 it takes Qwen2Tokenizer all the
# same, which keeps vocabulary and merges but makes words as Qwen2 does, with each digit alone: two
# tokens. PreTrainedTokenizerFast.from_pretrained on the same folder gives the one token.
#
# Seen on 2026-11-28:
#     tokenizers          [256]
#     llama               [256]
#     qwen3               [256]
#     qwen2               [16, 17]
#     qwen2, named class  [256]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3

cat >show.py <<'PY'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

vocab = {each: number for number, each in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab | {"12": 256}, [("1", "2")]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
folder = Path("model")
folder.mkdir()
tokenizer.save(str(folder / "tokenizer.json"))
named = {"tokenizer_class": "PreTrainedTokenizerFast"}
(folder / "tokenizer_config.json").write_text(json.dumps(named))

found = {"tokenizers": tokenizer.encode("12").ids}
for kind in ("llama", "qwen3", "qwen2"):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    found[kind] = AutoTokenizer.from_pretrained(folder)("12")["input_ids"]
found["qwen2, named class"] = PreTrainedTokenizerFast.from_pretrained(folder)("12")["input_ids"]
for name, tokens in found.items():
    print(f"{name:20}{tokens}")
assert found.pop("qwen2") == [vocab["1"], vocab["2"]]
assert set(map(tuple, found.values())) == {(256,)}
PY
venv/bin/python show.py
