"""The tokens that end a text: told by two files of a folder, known where texts are made."""

import json

import pytest
from folders import change_config, config_of, model

from errors import FormatError
from formats.huggingface import read, write
from formats.tokenizer_files import load_tokenizer


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (3, None, {3}),
        ([3, 5], None, {3, 5}),
        (None, None, set()),
        (3, [4, 6], {4, 6}),  # chat models have more of them there
        ([3, 5], 4, {4}),
        (3, "nothing", {3}),
        ([3, 20, -1, 32000], None, {3}),  # a small model has no others
    ],
)
def test_the_ends_are_read(folder, config, generation, ends):
    write(folder, model("tied")[0])
    change_config(folder, eos_token_id=config)
    if generation is not None:
        said = {} if generation == "nothing" else {"eos_token_id": generation}
        (folder / "generation_config.json").write_text(json.dumps(said), "utf-8")
    assert read(folder).ends == ends


@pytest.mark.parametrize("ends", ["</s>", 2.0, True, [3, None], [[3]], {"a": 3}])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ends_that_are_no_tokens_are_refused(folder, file, ends):
    write(folder, model("tied")[0])
    numbers = config_of(folder) | {"eos_token_id": ends}
    (folder / file).write_text(json.dumps(numbers), "utf-8")
    with pytest.raises(FormatError, match=rf"model.{file}: eos_token_id must be a token's number"):
        read(folder)


def test_all_ends_are_written_but_what_stands_in_front_of_each_text(folder):
    tokenizer = load_tokenizer("bytes")
    tokenizer.ends = frozenset({2, 9, 256})
    write(folder, model("mistral", tokenizer=tokenizer)[0])
    assert config_of(folder)["eos_token_id"] == [2, 9, 256]
    assert config_of(folder)["bos_token_id"] == 256
    tokenizer.adds_begin = True
    write(folder.with_name("other"), model("mistral", tokenizer=tokenizer)[0])
    assert config_of(folder.with_name("other"))["eos_token_id"] == [2, 9]


@pytest.mark.parametrize("name", ["gpt2", "mistral", "phi3", "gemma3"])
def test_without_a_tokenizer_no_tokens_of_transformers_own_models_are_left(folder, name):
    write(folder, model(name)[0])
    numbers = config_of(folder)
    assert [numbers[f"{which}_token_id"] for which in ("bos", "eos", "pad")] == [None] * 3
