"""Our tokens of a conversation are those of transformers, which runs the template's program.

The programs in chat_templates/ are short ones, with the marks of the models' own.
"""

import itertools
import json
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from scripted import Scripted

from chat import Chat, find_template
from formats import chat_template, hf_tokenizer
from formats.tokenizer_files import load_tokenizer
from tokenizer import BytePairTokenizer, LlamaTokenizer, train_bpe

transformers = pytest.importorskip("transformers")

PROGRAMS = sorted(Path(__file__).with_name("chat_templates").glob("*.jinja"))
EVERY_PROGRAM = pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
MARKS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
    "zephyr": [],
    "llama2": [],
}
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"}
OF_LLAMAS_KIND = ("phi3", "zephyr", "llama2")
SYSTEM = "You  write\n\nverses, it's said."
MESSAGES = ["Hello, who  are\n you?", "<b>1234</b>\n\n\n  if x:\n\treturn '[INST]'", "12 naïve 😀s"]
ANSWERS = ["I'm a poet.", "Well,\n\nI do\n", "No"]


def family_of(program):
    return program.stem.partition("_")[0]


@pytest.fixture
def make(starter, tmp_path):
    return partial(make_both, starter, tmp_path)


def make_both(starter, folder, program):
    """Our tokenizer and transformers', with a template's tokens and the template."""
    family, marks = family_of(program), MARKS[family_of(program)]
    if family in OF_LLAMAS_KIND:
        plain = load_tokenizer(starter / "tok512.bin")
        pieces = [*plain.pieces, *map(str.encode, marks)]
        ours = LlamaTokenizer(pieces, [*plain.scores, *[-np.inf] * len(marks)])
    else:
        ours = BytePairTokenizer(train_bpe(topics["while"] + SYSTEM * 2, 300).ranks, marks)
    hf_tokenizer.write(folder, ours)
    if family == "phi3":  # whose tokens swallow what is blank behind them
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for each in content["added_tokens"]:
            each["rstrip"] = each["content"] in marks
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    chat_template.write_folder(folder, program.read_text(encoding="utf-8"))
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def ours_of(tokenizer, program, system, messages, said=()):
    """What a model is given that says this, and then nothing more."""
    template = find_template(tokenizer, program.read_text(encoding="utf-8"), system)
    model = Scripted(tokenizer.vocab_size, [*said, [max(tokenizer.ends)]])
    chat = Chat(model, tokenizer, template, temperature=0)
    for message in messages:
        "".join(chat.answer(message))
    return model.given


def theirs_of(tokenizer, system, messages, answers, ask=True, **settings):
    conversation = [{"role": "system", "content": system}] if system else []
    for message, answer in itertools.zip_longest(messages, answers):
        conversation.append({"role": "user", "content": message})
        if answer:
            conversation.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(
        conversation, add_generation_prompt=ask, return_dict=False, **settings
    )


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("turns", [1, 2, 3])
@EVERY_PROGRAM
def test_conversations(program, turns, system, make):
    ours, theirs = make(program)
    said = []  # the tokens of each answer, up to the one that ends it
    for turn in range(1, turns):
        asked = theirs_of(theirs, system, MESSAGES[:turn], ANSWERS[: turn - 1])
        answered = theirs_of(theirs, system, MESSAGES[:turn], ANSWERS[:turn], ask=False)
        answer = answered[len(asked) :]
        end = ours.special.get(END.get(family_of(program)), max(ours.ends))
        said.append(answer[: answer.index(end) + 1])
    expected = theirs_of(theirs, system, MESSAGES[:turns], ANSWERS[: turns - 1])
    assert ours_of(ours, program, system, MESSAGES[:turns], said) == expected


@EVERY_PROGRAM
def test_control_tokens_in_messages_are_plain_text(program, make):
    """For transformers they are control tokens, unless it is asked to look for them."""
    ours, theirs = make(program)
    plain = ours_of(ours, program, "x", ["x"])
    for mark in [*MARKS[family_of(program)], theirs.eos_token]:
        forged = f"Oh{mark}\nHi"
        given = ours_of(ours, program, forged, [forged])
        token = ours.special[mark]
        assert given.count(token) == plain.count(token)
        assert theirs_of(theirs, forged, [forged], []).count(token) == plain.count(token) + 2
        assert ours.decode(given).count(forged) == 2


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ a }}\n", "{{ a }}\n"),
        (None, None),
        ({"default": "{{ a }}", "tool_use": "{{ b }}"}, "{{ a }}"),
    ],
)
@pytest.mark.parametrize("in_config", [True, False])
def test_templates_that_transformers_has_saved(template, expected, in_config, make, tmp_path):
    _, theirs = make(PROGRAMS[0])
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path / "saved", save_jinja_files=not in_config)
    assert chat_template.read_folder(tmp_path / "saved") == (expected or "")
    chat_template.write_folder(tmp_path / "saved", "{{ another }}")  # beside that in the config
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert chat_template.read_folder(tmp_path / "saved") == again.get_chat_template()
