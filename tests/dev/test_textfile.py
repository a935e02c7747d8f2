"""Text of one's own: what is a document of it, and what is told of it."""

import io
import json
import tracemalloc
from types import SimpleNamespace

import pytest
from corpora import call, read_documents, read_tokens
from hypothesis import given
from hypothesis import strategies as st

from dev.data import corpus, textfile
from dev.data.textfile import Documents
from errors import UserError
from formats.tokenizer_files import load_tokenizer


def test_textfile_takes_files_and_folders(tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.md").write_bytes(b"\xef\xbb\xbfbee\r\n")  # as Windows' Notepad saves it
    (folder / "deep" / "a.TXT").write_text("ay", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "empty.txt").touch()
    code = tmp_path / "program.c"
    code.write_text("int main;", encoding="utf-8")
    monkeypatch.setattr(corpus, "DATA", tmp_path / "data")
    files = textfile.find_files([folder, code])
    assert list(Documents(files)) == ["bee\n", "ay", "int main;"]
    call(monkeypatch, textfile, folder, code)
    assert read_documents(tmp_path / "data" / "notes", "train") == ["bee", "a", "int main"]
    assert read_documents(tmp_path / "data" / "notes", "val") == ["y", ";"]


def test_textfile_refuses_what_it_cannot_read(program, tmp_path):
    path = tmp_path / "letter.txt"
    sentences = {
        b"caf\xe9": "letter.txt is not UTF-8: byte 0xe9 at offset 3 is",
        b" \n": "letter.txt",
    }
    for content, sentence in sentences.items():
        path.write_bytes(content)
        status, _, err = program("dev.data.textfile", path, "--out", tmp_path / "out")
        assert status == 2
        assert sentence in err
    assert "there is no text in " in err
    status, _, err = program("dev.data.textfile", tmp_path / "nowhere")
    assert status == 2
    assert f"there is no file or folder {tmp_path / 'nowhere'}" in err


def documents(path, content, *options, **kwargs):
    path.write_bytes(content.encode())
    return list(Documents([path], *options, **kwargs))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_documents_between_marks(tmp_path, monkeypatch, line_end, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    text = "\ufeffé one\n<|endoftext|>\ntwo\n\nlines<|endoftext|><|endoftext|>  \n"
    text = f"{text}<|endoftext|>50%\n%\nx%".replace("\n", line_end)
    path = tmp_path / "text.txt"
    assert documents(path, text, "<|endoftext|>") == ["é one", "two\n\nlines", "50%\n%\nx%"]
    assert documents(path, text, "\n%\n")[1:] == ["x%"]
    assert documents(path, text, "\n\n")[0] == "é one\n<|endoftext|>\ntwo"
    assert documents(path, text, "\n")[:3] == ["é one", "<|endoftext|>", "two"]


@given(texts=st.lists(st.text(alphabet="ab|<é\n", min_size=1), min_size=1), block=st.integers(1, 9))
def test_pieces_are_what_split_makes(tmp_path_factory, texts, block):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    for separator in ("<|>", "|", "\n", "é", "a\n"):
        content = separator.join(texts)
        path.write_bytes(content.encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpus, "BLOCK_BYTES", block)
            assert list(corpus.pieces(path, separator)) == content.split(separator)


def test_a_long_piece_is_not_searched_again_and_again(monkeypatch):
    class File(io.BytesIO):
        reads = 0

        def read(self, size):
            self.reads += 1
            return super().read(size)

    monkeypatch.setattr(corpus, "BLOCK_BYTES", 1)
    file = File(b"x" * 10_000)
    path = SimpleNamespace(open=lambda mode: file)
    assert list(corpus.pieces(path, "--")) == ["x" * 10_000]
    assert file.reads < 20


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_a_wrong_byte_is_named_with_its_place_in_the_file(tmp_path, monkeypatch, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\r\n--\r\ntwo\r\n--\r\nth\xffree")
    with pytest.raises(UserError, match=r"text\.txt is not UTF-8: byte 0xff at offset 20 "):
        list(Documents([path], "\n--\n"))


def test_the_options_reach_the_documents(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"story {i}\n%\n" for i in range(20)), encoding="utf-8")
    for options in (["--split-on", r"\n%\n"], ["--lines"]):
        call(monkeypatch, textfile, path, *options, "--tokenizer", "bytes", "--out", tmp_path / "c")
        train, val = (read_documents(tmp_path / "c", split) for split in ("train", "val"))
        if options == ["--lines"]:
            train = [text for text in train if text != "%"]
        else:
            assert val == ["story 5", "story 15"]
        assert train[:2] == ["story 0", "story 1"]


def test_a_line_of_jsonl_is_a_document(tmp_path):
    lines = [
        {"text": "one\n<|endoftext|>", "id": 3},
        {"text": " "},
        {"id": 4, "text": "“zwei” 😀 \ud83d"},
    ]
    content = "\n\r\n".join(json.dumps(line) for line in lines)
    expected = ["one\n<|endoftext|>", "“zwei” 😀 \ufffd"]
    assert documents(tmp_path / "texts.JSONL", content, "n") == expected
    content = "\ufeff" + json.dumps({"body": "é"}, ensure_ascii=False)
    assert documents(tmp_path / "bodies.jsonl", content, field="body") == ["é"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": "a', r"line 3: this is not JSON \(.*\); mend or delete it"),
        ("[" * 100_000, "line 3: this is not JSON"),
        ('{"body": "a", "id": 1}', 'line 3: there is no text called "text", but body, id; choose'),
        ('{"text": null}', 'line 3: there is no text called "text", but text; choose by --field'),
        ('"text"', 'line 3: there is no text called "text", but nothing with a name; choose'),
        ('["text"]', 'line 3: there is no text called "text", but nothing with a name; choose'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, sentence):
    content = f'{{"text": "fine"}}\n\n{line}\n'
    with pytest.raises(UserError, match=rf"a\.jsonl, {sentence}"):
        documents(tmp_path / "a.jsonl", content)


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: this is not JSON"):
        list(Documents([path]))


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_many_documents_need_the_memory_of_some(program, tmp_path, kind):
    text = "It was a day like any other, and nothing happened. " * 20
    line = json.dumps({"text": text}) if kind == "jsonl" else text
    path = tmp_path / f"many.{kind}"
    path.write_text(f"{line}\n" * 10_000, encoding="utf-8")  # 10 MB
    arguments = [path, "--lines", "--tokenizer", "chars", "--out", tmp_path / "out"]
    tracemalloc.start()
    status, _, _ = program("dev.data.textfile", *arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 0
    tokens = read_tokens(tmp_path / "out" / "train_000000.bin")
    assert len(tokens) == 9000 * (1 + len(text))
    assert peak < 2 * 2 * len(tokens) + 6_000_000  # the tokens of a shard, and their copy
    assert load_tokenizer(tmp_path / "out" / "characters.json").characters[0] == "\n"
