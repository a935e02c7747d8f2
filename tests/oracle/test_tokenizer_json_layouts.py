"""Llama's kind of tokenizer.json, as models of several families have it, against its library."""

import json
from pydoc_data.topics import topics

import pytest
from odd_texts import odd_texts
from sentencepiece_models import MARKS, known, train

from errors import FormatError
from formats.hf_sentencepiece import METASPACE
from formats.hf_tokenizer import write
from formats.tokenizer_files import load_tokenizer, tokenizer_from_bytes
from tokenizer import CONTROL, USER_DEFINED

tokenizers = pytest.importorskip("tokenizers")

PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
GEMMA = PLAIN | {"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
GEMMA |= {"eos_piece": "<eos>", "bos_piece": "<bos>", "control_symbols": "<start_of_turn>"}
GEMMA |= {"user_defined_symbols": "\n,\n\n,\n\n\n,▁▁,▁▁▁,▁▁▁▁,\t,\t\t,<h1>,</h1>,<b>,</b>,中"}


def written(folder, **options):
    """A trained tokenizer, and the content of the tokenizer.json that we write of it."""
    write(folder, tokenizer_from_bytes(train(**options), "t.model"))
    return json.loads((folder / "tokenizer.json").read_bytes())


def check_that_they_agree(folder, content, count=4000, marks=MARKS):
    """Whether the library and we make the same of a file; in the texts is no special token."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    ours, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    prefix = theirs.pre_tokenizer is not None and ours.encode("a")[:1] != ours.encode(" a")[:1]
    compared = 0
    for text in odd_texts(count, marks):
        # In front of a blank, Metaspace puts none, as SentencePiece and we do.
        if any(name in text for name in ours.special) or (prefix and text.startswith(" ")):
            continue
        tokens = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == tokens, text
        assert ours.decode(tokens) == theirs.decode(tokens), text
        compared += 1
    assert compared > count * 0.7
    assert theirs.encode("a").ids == ours.encode_prompt("a")
    return ours


def add(content, name, **flags):
    vocab = content["model"]["vocab"]
    token = {"id": vocab.get(name, len(vocab)), "content": name, "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | flags
    content["added_tokens"].append(token)
    vocab[name] = token["id"]


def test_phi_3s_way(tmp_path):
    content = written(tmp_path, **PLAIN)
    content["added_tokens"][2] |= {"special": False, "rstrip": True}  # </s>
    for name in ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"):
        add(content, name, rstrip=True)
    content["post_processor"]["single"] = content["post_processor"]["single"][1:]
    ours = check_that_they_agree(tmp_path, content)
    assert {ours.pieces[token] for token in ours.ends} == {
        *(b"<s>", b"</s>", b"<|end|>", b"<|endoftext|>")
    }
    assert (ours.end, ours.adds_begin) == (2, False)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    assert load_tokenizer(tmp_path / "tokenizer.json").end == ours.special["<|endoftext|>"]


def test_mistrals_way(tmp_path):
    content = written(tmp_path, **PLAIN, control_symbols="[INST],[/INST],[control_8]")
    content |= {"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "first"}}
    ours = check_that_they_agree(tmp_path, content)
    assert ours.special["[INST]"] == 3
    assert ours.encode("[INST]") == known(
        train(**PLAIN, control_symbols="[INST],[/INST],[control_8]")
    )[1].encode("[INST]")


def test_what_is_written_of_gemmas_kind(tmp_path):
    content = written(tmp_path, **GEMMA)
    marks = GEMMA["user_defined_symbols"].replace("▁", " ").split(",")
    ours = check_that_they_agree(tmp_path, content, 20_000, MARKS + marks)
    assert ours == known(train(**GEMMA))[0]
    assert ours.special == known(train(**GEMMA))[0].special


def test_gemmas_own_way(tmp_path):
    """Runs of blanks are looked for where they are spelled ▁, and are pairs that merge first."""
    content = written(tmp_path, **GEMMA)
    model, blanks = content["model"], ["  ", "   ", "    "]
    spelled = {blank: "▁" * len(blank) for blank in blanks}
    model["vocab"] = {spelled.get(name, name): id_ for name, id_ in model["vocab"].items()}
    for token in content["added_tokens"]:
        token["content"] = spelled.get(token["content"], token["content"])
    pairs = [["▁▁▁", "▁"], ["▁▁", "▁▁"], ["▁▁", "▁"], ["▁", "▁▁▁"], ["▁", "▁▁"], ["▁", "▁"]]
    model["merges"] = [*pairs, *model["merges"]]
    split = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous").__getstate__()
    content |= {"pre_tokenizer": json.loads(split)}
    content["normalizer"] = content["normalizer"]["normalizers"][0]
    marks = GEMMA["user_defined_symbols"].replace("▁", " ").split(",")
    ours = check_that_they_agree(tmp_path, content, 20_000, MARKS + marks)
    for text in odd_texts(4000, MARKS + marks):
        assert ours.encode(text) == known(train(**GEMMA))[0].encode(text), text


@pytest.mark.parametrize("normalized", [True, False])
def test_tokens_that_are_looked_for(tmp_path, normalized):
    content = written(tmp_path, **PLAIN, add_dummy_prefix=False)
    marks = ["<tool>", "<to", "ol", "a b", "  ", "é", "str", "\n\n"]
    for mark in marks:
        add(content, mark, special=False, normalized=normalized)
    ours = check_that_they_agree(tmp_path, content, marks=marks)
    kinds = dict(zip(ours.pieces, ours.types, strict=True))
    assert {kinds[mark.encode()] for mark in marks} == {USER_DEFINED}


def test_marks_of_a_chat_are_control_tokens_whatever_the_file_says(tmp_path):
    content = written(tmp_path, **PLAIN)
    add(content, "<|user|>", special=False)
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    ours, theirs = (
        load_tokenizer(tmp_path / "t.json"),
        tokenizers.Tokenizer.from_str(json.dumps(content)),
    )
    token = theirs.token_to_id("<|user|>")
    assert token in theirs.encode("a<|user|>").ids
    assert token not in ours.encode("a<|user|>")
    assert ours.types[token] == CONTROL


def test_a_vocabulary_that_this_library_trains_is_refused(tmp_path):
    """Its merges are those that it has learnt, and not all that lead to a token."""
    model = tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>")
    trained = tokenizers.Tokenizer(model)
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    trained.train_from_iterator(topics.values(), trainer)
    content = json.loads(trained.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    with pytest.raises(FormatError, match="not all merges that lead to a token"):
        tokenizer_from_bytes(json.dumps(content).encode(), "t/tokenizer.json")
