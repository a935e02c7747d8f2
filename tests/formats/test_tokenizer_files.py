"""Tokenizers' files: read as they were written, and refused with a sentence where they are not."""

import struct
from pydoc_data.topics import topics

import pytest
import requests
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from errors import FormatError, UserError
from formats.tokenizer_files import find_tokenizer, load_tokenizer, tokenizer_from_bytes
from tokenizer import BYTE_PIECES, SPECIAL_PIECES, CharTokenizer, LlamaTokenizer, train_bpe


def llama(texts: dict[str, float]) -> LlamaTokenizer:
    """A tokenizer of Llama's kind with these pieces and scores."""
    pieces = [*SPECIAL_PIECES, *BYTE_PIECES, *map(str.encode, texts)]
    return LlamaTokenizer(pieces, [0.0] * 259 + list(texts.values()))


BYTES = load_tokenizer("bytes")
TRAINED = train_bpe(topics["while"], 20)
LLAMA = llama({" ": -9, "a": -9, "é": -9, " a": -1, "aa": -2, "é“": -5})
CHARS = CharTokenizer("\n ab“\ufffd😀é")
ALL = pytest.mark.parametrize(
    "tokenizer", [BYTES, TRAINED, LLAMA, CHARS], ids=["bytes", "trained", "llama", "chars"]
)


@ALL
def test_a_saved_tokenizer_loads_again(tmp_path, tokenizer):
    path = tmp_path / "any name"
    BYTES.save(path)
    tokenizer.save(path)
    again = load_tokenizer(str(path))
    assert type(again) is type(tokenizer)
    assert again.to_bytes() == tokenizer.to_bytes() == path.read_bytes()
    assert again.encode("aab “é“") == tokenizer.encode("aab “é“")
    assert list(tmp_path.iterdir()) == [path]


def test_line_ends_of_windows_editors_do_no_harm():
    data = TRAINED.to_bytes().replace(b"\n", b"\r\n")
    assert tokenizer_from_bytes(data, "t").ranks == TRAINED.ranks


def test_ranks_that_meta_calls_a_model_are_refused(tmp_path):
    """Those of Llama 3: GPT-2's words would be others, and no text would have its begin."""
    TRAINED.save(tmp_path / "tokenizer.model")
    with pytest.raises(FormatError, match="as Meta has them for Llama 3"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_a_corpus_has_one_tokenizer_or_none(tmp_path):
    assert find_tokenizer(tmp_path) is None
    names = {"tokenizer.bin": LLAMA, "tokenizer.tiktoken": BYTES, "characters.json": CHARS}
    for name, tokenizer in names.items():
        folder = tmp_path / name.replace(".", "_")
        tokenizer.save(folder / tokenizer.file_name)
        assert find_tokenizer(folder) == folder / name


def _with_line(number: int, line: str) -> bytes:
    lines = BYTES.to_bytes().splitlines()
    lines[number - 1] = line.encode()
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (_with_line(3, "Ag=="), "v.tiktoken, line 3: 'Ag==' is not a token"),
        (_with_line(3, "Ag== two"), "v.tiktoken, line 3: 'Ag== two' is not a token"),
        (_with_line(3, "A?== 2"), r"v.tiktoken, line 3: 'A\?== 2' is not a token"),
        (_with_line(3, "é 2"), "v.tiktoken, line 3: 'é 2' is not a token"),
        (_with_line(3, ""), "v.tiktoken, line 3: '' is not a token"),
        (_with_line(3, "Ag== 1"), "v.tiktoken, line 3: rank 1 where 2 is next"),
        (_with_line(3, "Ag== 3"), "v.tiktoken, line 3: rank 3 where 2 is next"),
        (_with_line(3, "AQ== 2"), r"v.tiktoken, line 3: the token b'\\x01' is already on line 2"),
        (_with_line(3, "YWI= 2"), "v.tiktoken: the byte 2 has no rank"),
        (b"\n" + BYTES.to_bytes(), "v.tiktoken, line 1: '' is not a token"),
        (b"", "v.tiktoken: the byte 0 has no rank"),
        (b"\xff\xfe\x00", r"v\.tiktoken is not a tokenizer; give a .* or \.model file"),
    ],
)
def test_a_damaged_vocabulary_is_refused_with_its_line(data, sentence):
    with pytest.raises(FormatError, match=sentence):
        tokenizer_from_bytes(data, "v.tiktoken")


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(UserError, match="there is no tokenizer gpt3; give gpt2, bytes, or a"):
        load_tokenizer("gpt3")


def test_gpt2_is_openais(starter, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    gpt2 = load_tokenizer("gpt2")
    assert (gpt2.vocab_size, gpt2.begin) == (50257, 50256)
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    text = topics["string-methods"]
    assert gpt2.encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_no_network_says_what_to_do_instead(monkeypatch):
    def fail(name):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match=r"TIKTOKEN_CACHE_DIR.*download_starter_pack.*bpe:1024"):
        load_tokenizer("gpt2")


def test_the_file_has_a_line_of_base64_and_rank_per_token():
    lines = train_bpe("ab ab", 1).to_bytes().splitlines()
    assert (lines[0], lines[97], lines[256]) == (b"AA== 0", b"YQ== 97", b"YWI= 256")


TINY = llama({" ": 0.0, "a": 0.0}).to_bytes()


def test_a_tokenizer_bin_has_llama2_c_s_layout():
    data = llama({" ": -0.5, "é“": -2.0}).to_bytes()
    assert data[:17] == struct.pack("<IfI5s", 6, 0.0, 5, b"<unk>")  # of all, <0x00> is longest
    records = struct.pack("<fI1sfI5s", -0.5, 1, b" ", -2.0, 5, "é“".encode())
    assert data.endswith(b"<0xFF>" + records)


@pytest.mark.parametrize("name", ["llama2_tokenizer.bin", "tok512.bin"])
def test_real_files_come_back_byte_by_byte(starter, name):
    tokenizer = load_tokenizer(starter / name)
    assert tokenizer.vocab_size == {"llama2_tokenizer.bin": 32000, "tok512.bin": 512}[name]
    assert tokenizer.to_bytes() == (starter / name).read_bytes()


def test_a_token_as_long_as_a_book_is_refused():
    data = llama({"x" * 5000: 0.0}).to_bytes()
    with pytest.raises(FormatError, match=r"book.bin has a token of 5,000 bytes, b'xxx"):
        tokenizer_from_bytes(data, "book.bin")


@pytest.mark.parametrize("longest", [10, 1000])  # 10 is a line end, as at the start of a .model
def test_a_tokenizer_bin_may_begin_with_any_length(longest):
    tokenizer = llama({" " * longest: 0.0})
    assert [*tokenizer_from_bytes(tokenizer.to_bytes(), "t.bin").pieces] == [*tokenizer.pieces]


def test_a_tokenizer_bin_cut_inside_a_token_is_refused():
    for length in [*range(0, len(TINY), 101), *range(len(TINY) - 40, len(TINY))]:
        try:
            tokenizer = tokenizer_from_bytes(TINY[:length], "t.bin")
        except FormatError as error:
            assert str(error).startswith("t.bin")
        else:  # the format cannot tell that whole tokens are missing at the end
            assert tokenizer.vocab_size == 259 + (length - len(TINY) + 18) / 9


def _with_bytes(position: int, new: bytes) -> bytes:
    position %= len(TINY)
    return TINY[:position] + new + TINY[position + len(new) :]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (_with_bytes(-5, b"\xff\xff\xff\xff"), "it ends inside token 260; give another"),
        (_with_bytes(-5, b"\x02"), "it ends inside token 260; give another"),
        (_with_bytes(0, b"\x07"), "its longest token has 6 bytes instead of 7; give another"),
        (_with_bytes(0, b"\x05"), "its longest token has 6 bytes instead of 5; give another"),
        (bytes(4), "t.bin: the tokens 3 to 258 are not the bytes <0x00> to <0xFF>"),
        (bytes(4004), "t.bin: the tokens 3 to 258 are not the bytes <0x00> to <0xFF>"),
        (bytes(4003), "t.bin is not a tokenizer.bin, or a damaged one: it ends inside token 499"),
        (TINY.replace(b"<0x41>", b"<0x61>"), "t.bin: the tokens 3 to 258 are not the bytes"),
    ],
)
def test_a_damaged_tokenizer_bin_is_refused(data, sentence):
    with pytest.raises(FormatError, match=sentence):
        tokenizer_from_bytes(data, "t.bin")


@given(data=st.binary(max_size=300), start=st.sampled_from([b"", TINY[:4], TINY[:-10]]))
def test_noise_is_no_tokenizer(data, start):
    try:
        tokenizer = tokenizer_from_bytes(start + data, "noise")
    except UserError as error:
        assert str(error).startswith("noise")
    else:
        assert tokenizer.to_bytes() == start + data
