"""SmolLM2-135M-Instruct and Gemma 3 270M, quantised as people have them, against transformers.

What transformers computes with is our conversion into its folder, so that both have the same
numbers; that these are read right is seen from how well the models know English.
"""

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from real_models import GEMMA_3, SMOLLM2, greedy, real_model
from scripted import Scripted

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import models, pre_tokenizers  # noqa: E402

from chat import Chat, find_template  # noqa: E402
from formats import huggingface  # noqa: E402
from formats.gguf_header import read_header  # noqa: E402
from formats.protobuf import write_message  # noqa: E402
from formats.sentencepiece_model import BLANK  # noqa: E402
from load import open_model  # noqa: E402
from sampler import generate  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

WORDS = ["the", " The", " king", "'s", "'LL", " it’s", "1234567", " 12", "½", "٣", "==", "_", "#"]
WORDS += ["  ", "    if", "\n", "\n\n\n", "\t\t", "\r\n", "\u00a0", "\u2003", "\u200b", "\x00"]
WORDS += ["é", "e\u0301", "naïve", "中文", "漢字かな", "한국어", "ไทย", "😀", "👩‍👩‍👧", "𝔘"]
WORDS += ["“q”", "…", "</s>", "<table>", "<b>"]


def thousand_texts():
    rng = random.Random(0)
    lines = [line for topic in topics.values() for line in topic.splitlines() if line.strip()]
    return rng.sample(lines, 500) + ["".join(rng.choices(WORDS, k=12)) for _ in range(500)]


# The fields of a SentencePiece model by their numbers; its type 2 is BPE.
MODEL = {1: "piece", 2: "trainer", 3: "normalizer"}
PIECE = {1: "text", 2: "score", 3: "type"}
TRAINER = {3: "type", 35: "fallback", 40: "unk", 41: "bos", 42: "eos", 43: "pad"}
NORMALIZER = {1: "name", 3: "prefix", 4: "squeeze"}


def reference(path):
    """What encodes a text: the libraries' own tokenizers, of what there is of one in a file."""
    _, values, _ = read_header(path)
    model, tokens, joins, scores, types = (
        values.get(f"tokenizer.ggml.{name}")
        for name in ("model", "tokens", "merges", "scores", "token_type")
    )
    if model == "gpt2":  # as in SmolLM2's own tokenizer.json
        vocab = {token.decode(): id_ for id_, token in enumerate(tokens)}
        pairs = [tuple(join.decode().split(" ")) for join in joins]
        bpe = tokenizers.Tokenizer(models.BPE(vocab, pairs))
        digits = pre_tokenizers.Digits(individual_digits=True)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
        return lambda text: bpe.encode(text).ids
    pieces = [
        write_message(PIECE, text=token.replace(b" ", BLANK), score=float(score), type=int(kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
    trainer = write_message(TRAINER, type=2, fallback=1, unk=3, bos=2, eos=1, pad=0)
    normalizer = write_message(NORMALIZER, name=b"identity", prefix=0, squeeze=0)
    proto = [write_message(MODEL, piece=piece) for piece in pieces]
    proto.append(write_message(MODEL, trainer=trainer, normalizer=normalizer))
    return sentencepiece.SentencePieceProcessor(model_proto=b"".join(proto)).encode


def test_tokens_of_a_thousand_texts(model_file):
    ours, encode = open_model(model_file).tokenizer, reference(model_file)
    for text in thousand_texts():
        tokens = ours.encode(text)
        assert tokens == encode(text), text
        assert ours.decode(tokens) == text


@pytest.fixture(scope="module")
def both(model_file, tmp_path_factory):
    """Our source, our model, transformers' model and its tokenizer."""
    source, folder = open_model(model_file), tmp_path_factory.mktemp("real") / "model"
    huggingface.write(folder, source.weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    return source, source.load(seq_len=512), theirs.eval(), tokenizer


PROSE = """\
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be \
in want of a wife. However little known the feelings or views of such a man may be on his first \
entering a neighbourhood, this truth is so well fixed in the minds of the surrounding families, \
that he is considered as the rightful property of some one or other of their daughters."""


@torch.no_grad()
def test_logits_of_64_positions(both):
    """Both models know the book, which they do only if every number is where it belongs."""
    source, ours, theirs, _ = both
    tokens = np.array([source.tokenizer.encode_prompt(PROSE)[:64]])
    assert tokens.shape == (1, 64)
    expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = ours.forward(tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * abs(expected).max())
    assert ours.forward(tokens[:, :-1], tokens[:, 1:]) < 4


def test_greedy_text_of_40_tokens(both):
    source, ours, theirs, tokenizer = both
    prompt = "The three largest cities of France are"
    tokens = source.tokenizer.encode_prompt(prompt)
    assert tokens == tokenizer(prompt)["input_ids"]
    text = prompt + "".join(generate(ours, source.tokenizer, prompt, 40, temperature=0))
    expected = greedy(theirs, tokens, 40)
    assert text == tokenizer.decode(tokens + expected, skip_special_tokens=True)
    assert "Paris" in text


@pytest.mark.parametrize("model_file", [SMOLLM2], indirect=True)
def test_a_chat_of_two_turns(both, capsys):
    """A person may read it: pytest --capture=no."""
    source, ours, theirs, tokenizer = both
    template = find_template(source.tokenizer, source.chat_template)
    chat = Chat(ours, source.tokenizer, template, temperature=0, max_tokens=60)
    conversation = []
    for message in ("What is the capital of France?", "And what is it famous for?"):
        conversation.append({"role": "user", "content": message})
        prompt = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        answer = "".join(chat.answer(message))
        assert answer == tokenizer.decode(greedy(theirs, prompt, 60))
        conversation.append({"role": "assistant", "content": answer})
        print(f"> {message}\n{answer}")
    assert "Paris" in conversation[1]["content"]


@pytest.mark.parametrize("model_file", [GEMMA_3], indirect=True)
def test_gemmas_template_in_its_own_tokens(both):
    """As its brother has it, which was trained to converse."""
    source, _, _, tokenizer = both
    program = Path(__file__).with_name("chat_templates") / "gemma.jinja"
    system, message = "Answer\n\nin verses.", "Who  are you?\n\n\t<b>1234</b> 😀"
    conversation = [{"role": "system", "content": system}, {"role": "user", "content": message}]
    expected = tokenizer.apply_chat_template(
        conversation,
        chat_template=program.read_text(encoding="utf-8"),
        add_generation_prompt=True,
        return_dict=False,
    )
    template = find_template(source.tokenizer, program.read_text(encoding="utf-8"), system)
    model = Scripted(source.tokenizer.vocab_size, [[max(source.tokenizer.ends)]])
    assert "".join(Chat(model, source.tokenizer, template, temperature=0).answer(message)) == ""
    assert model.given == expected


def test_to_speak_takes_little_more_memory_than_the_weights(model_file):
    """The rest of Python, NumPy, the vocabulary and what is computed included."""
    # A process's peak begins with that of the one that started it, and this one has PyTorch.
    command = [sys.executable, "dev/bench/load.py", model_file, "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert 10 < int(re.search(r"and (\d+) more", done.stdout)[1]) < 100


def test_a_base_model_says_that_it_is_none(program):
    status, out, err = program("sample", real_model(GEMMA_3), "--chat")
    assert (status, out) == (2, "")
    assert "it is a base model" in err
