"""Hugging Face's tokenizer.json, and GPT-2's vocab.json with merges.txt, which came before it.

Handled are BPE on bytes, in which every byte is spelled as a printable character: GPT-2's kind and
that of byte_level.py; and Llama's kind, a SentencePiece model in the clothes of BPE: "▁" is a
blank, and <0x00> to <0xFF> are the bytes of other characters; what is done to blanks may be other
than in Llama. Added tokens may be anywhere; those that are not special are looked for in a text. A
vocabulary of characters is BPE without merges, which leaves out all others.
Refused by name: every step before the model that is not known here, and around a text all but a
token in front of it; tokens that are looked for and ask something of the text around them
(single_word, lstrip, rstrip), or, in Llama's kind, are looked for where blanks are put in front of
a text or removed: Hugging Face would do that to what is behind such a token, too. What special
tokens ask of the text around them does not matter, since they are not looked for.

Where Hugging Face differs: in a text, it takes "<s>" or "<pad>" for the token and "▁" for a blank,
which are plain text here; and for Llama's kind, version 5 of transformers puts no blank in front of
a text that begins with one, as SentencePiece and we do. Beside a model of the type qwen2, its
AutoTokenizer makes words as Qwen2 does, whatever the files say; PreTrainedTokenizerFast does not.

tokenizer_json.py has what the kinds share, hf_byte_level.py the first kind, hf_sentencepiece.py
Llama's.

Sources of the formats: tokenizers, Tokenizer.save; GPT-2, encoder.py.
"""

import json
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from errors import FormatError
from files import replacing, without_surrogates
from formats import byte_level, hf_byte_level, hf_sentencepiece
from formats.byte_level import ByteLevelTokenizer
from formats.tokenizer_json import content_of, read_pairs, read_tokens, unlike, vocabulary
from tokenizer import BytePairTokenizer, CharTokenizer, Tokenizer


def read(data: bytes, source: str | Path) -> Tokenizer:
    """The tokenizer of a file.

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
        tokens = read_tokens(content, source)
        pairs = read_pairs(_lines_of_merges_txt(source), tokens, source)
        return hf_byte_level.read_vocab_json(tokens, pairs, source)

    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise unlike(source, f"the setting {key}")
    if model.get("type", "BPE") != "BPE":
        raise unlike(source, f"a model of the type {shortened(model['type'])}")
    if model.get("byte_fallback"):
        return hf_sentencepiece.read(content, source)
    steps = (content.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer"))
    if model.get("merges") == [] and not any(steps):
        return CharTokenizer(_read_characters(content, source))
    return hf_byte_level.read(content, source)


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer.json and the tokenizer_config.json that transformers looks for.

    Raises:
        UserError: the tokenizer has tokens that these files cannot express.
        RunError: a file cannot be written.
    """
    if isinstance(tokenizer, BytePairTokenizer):
        content = byte_level.content(byte_level.of_ranks(tokenizer))
    elif isinstance(tokenizer, ByteLevelTokenizer):
        content = byte_level.content(tokenizer)
    elif isinstance(tokenizer, CharTokenizer):
        content = content_of([*tokenizer.characters], [], special=[])
        content["decoder"] = {"type": "Fuse"}
    else:
        content = hf_sentencepiece.content(tokenizer)
    names = {token: name for name, token in tokenizer.special.items()}
    roles = {"bos_token": tokenizer.begin, "eos_token": tokenizer.end}
    roles = {role: names[token] for role, token in roles.items() if token in names}
    if content["model"]["unk_token"]:
        roles["unk_token"] = content["model"]["unk_token"]
    # This class does what tokenizer.json says; those named after a model do what they think best.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {"tokenizer.json": content, "tokenizer_config.json": config | roles}
    for name, value in files.items():
        with replacing(folder / name) as file:
            file.write(json.dumps(value, ensure_ascii=False, indent=2).encode())


def _lines_of_merges_txt(source: str | Path) -> list[str]:
    path = Path(source).with_name("merges.txt")
    if not path.is_file():
        raise FormatError(
            f"{source} needs the merges.txt that belongs to it; put it into its folder"
        )
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if not line.startswith("#version")]


def _read_characters(content: dict[str, Any], source: str | Path) -> str:
    tokens, _ = vocabulary(content, source)
    text = "".join(tokens)
    if not text or len(text) > len(tokens) or text != without_surrogates(text):
        raise unlike(source, "no merges, though its tokens are not characters")
    return text
