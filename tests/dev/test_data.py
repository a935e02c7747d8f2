import hashlib
import io
import re
import urllib.error
import urllib.request

import pytest
from corpora import call, read_documents, read_tokens

from dataloader import DataLoader, count_tokens
from dev import download_starter_pack
from dev.data import corpus, pydocs, textfile, tinyshakespeare, tinystories
from dev.download import download
from errors import RunError, UserError
from files import decode_text
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from tokenizer import BytePairTokenizer


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing but a file on this machine can be fetched."""
    real = urllib.request.urlopen

    def urlopen(url, timeout):
        if url.startswith("file:"):
            return real(url, timeout=timeout)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


# Corpora


def test_documents_come_back_from_the_corpus(tmp_path, capsys):
    train, val = ["one\n", "", "two “quotes”"], ["three"]
    corpus.write_corpus(train, val, tmp_path / "out", "bpe:5")
    assert read_documents(tmp_path / "out", "train") == ["one\n", "two “quotes”"]
    assert read_documents(tmp_path / "out", "val") == ["three"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["tokenizer.tiktoken", "train_000000.bin", "val_000000.bin"]
    told, line = capsys.readouterr().out.splitlines()
    assert told == "bpe:5 became bpe:1, as after so many merges no pair of tokens occurs twice"
    assert line.startswith(str(tmp_path / "out"))
    assert f"{len(read_tokens(tmp_path / 'out' / 'train_000000.bin'))} tokens to train on" in line


def test_long_corpora_become_several_shards_and_no_old_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_TOKENS", 7)
    corpus.write_corpus(["abcdefghijklmnop", "qrs"], ["t"], tmp_path, "bytes")
    shards = [read_tokens(path) for path in sorted(tmp_path.glob("train_*.bin"))]
    assert [len(shard) for shard in shards] == [7, 7, 7]
    tokens = [token for shard in shards for token in shard]
    assert tokens == [256, *b"abcdefghijklmnop", 256, *b"qrs"]
    corpus.write_corpus(["abc"], ["t"], tmp_path, "bytes")
    assert [path.name for path in tmp_path.glob("train_*.bin")] == ["train_000000.bin"]


def test_a_failure_leaves_the_corpus_that_was_there(tmp_path):
    corpus.write_corpus(["abc"], ["d"], tmp_path, "bytes")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"no text for .*val_000000\.bin"):
        corpus.write_corpus(["efg"], [" "], tmp_path, "bpe:3")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failure_leaves_no_folder_that_was_not_there(tmp_path):
    def stories():
        yield "abc"
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="no text"):
        corpus.write_corpus(["efg"], [" "], tmp_path / "new" / "newer", "bytes")
    with pytest.raises(KeyboardInterrupt):
        corpus.write_corpus(stories(), ["d"], tmp_path / "new", "bytes")
    assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_is_trained_on_the_training_split_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BPE_CHARACTERS", 4)
    corpus.write_corpus(["ab", "ab", "cd" * 9, "ef" * 99], ["ghghgh"], tmp_path, "bpe:9")
    ranks = load_tokenizer(tmp_path / "tokenizer.tiktoken").ranks
    assert list(ranks)[256:] == [b"ab"]


def test_a_corpus_of_llamas_kind_begins_every_document_with_s(tmp_path, starter):
    source, folder = starter / "tok512.bin", tmp_path / "out"
    corpus.write_corpus(["Once.", " two  blanks “é” 😀\n"], ["three"], folder, str(source))
    assert (folder / "tokenizer.bin").read_bytes() == source.read_bytes()
    llama = load_tokenizer(source)
    tokens = [1, *llama.encode("Once."), 1, *llama.encode(" two  blanks “é” 😀\n")]
    assert read_tokens(folder / "train_000000.bin") == tokens
    assert read_documents(folder, "train") == ["Once.", " two  blanks “é” 😀\n"]
    assert read_documents(folder, "val") == ["three"]


def test_characters_are_those_of_the_training_split(tmp_path, capsys):
    corpus.write_corpus(["abä", "ca\n"], ["cadüa\ufeff", "üüü"], tmp_path, "chars")
    tokenizer = load_tokenizer(tmp_path / "characters.json")
    assert tokenizer.characters == "\nabcä"
    assert read_tokens(tmp_path / "train_000000.bin") == tokenizer.encode("\nabä\nca\n")
    assert read_tokens(tmp_path / "val_000000.bin") == tokenizer.encode("\ncaa")
    told = capsys.readouterr().out.splitlines()[1]
    assert told == r"left out were 6 characters that the vocabulary has not: 'ü' 'd' '\ufeff'"
    corpus.write_corpus(["xäx"], ["b"], tmp_path / "other", str(tmp_path / "characters.json"))
    assert read_tokens(tmp_path / "other" / "train_000000.bin") == tokenizer.encode("\nä")
    assert capsys.readouterr().out.endswith(": 'x'\n")


def test_without_a_line_end_a_text_of_characters_begins_as_well(tmp_path):
    corpus.write_corpus(["ba"], ["a"], tmp_path, "chars")
    assert read_tokens(tmp_path / "train_000000.bin") == [0, 2, 1]


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_marks_between_documents_are_told(tmp_path, capsys, tokenizer):
    train, val = ["a<|endoftext|>b", "a</s>"], ["a<|endoftext|><|endoftext|>"]
    corpus.write_corpus(train, val, tmp_path, tokenizer)
    told = {line.split()[3]: line for line in capsys.readouterr().out.splitlines()[-2:]}
    assert told["<|endoftext|>"].startswith(
        "the text has <|endoftext|> 3 times, which is learnt as"
    )
    assert told["<|endoftext|>"].endswith('--split-on "<|endoftext|>" makes documents of it')
    assert "</s> 1 times" in told["</s>"]
    corpus.write_corpus(["a"], ["a"], tmp_path, tokenizer)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_corpus_has_one_tokenizer(tmp_path, starter):
    ours = tmp_path / "tokenizer.model"  # somebody's own file, which is not the corpus's
    ours.write_bytes(b"precious")
    names = {"bytes": "tokenizer.tiktoken", str(starter / "tok512.bin"): "tokenizer.bin"}
    names["chars"] = "characters.json"
    for tokenizer, name in [*names.items(), *reversed(names.items())]:
        corpus.write_corpus(["abc"], ["a"], tmp_path, tokenizer)
        assert find_tokenizer(tmp_path) == tmp_path / name
        assert {path.name for path in tmp_path.iterdir()} == {
            name,
            ours.name,
            "train_000000.bin",
            "val_000000.bin",
        }
    assert ours.read_bytes() == b"precious"


def test_a_corpus_can_be_made_again_with_its_own_tokenizer(tmp_path, starter):
    corpus.write_corpus(["abc"], ["d"], tmp_path, str(starter / "tok512.bin"))
    corpus.write_corpus(["efg"], ["h"], tmp_path, str(tmp_path / "tokenizer.bin"))
    assert read_documents(tmp_path, "train") == ["efg"]


@pytest.mark.parametrize("name", ["bpe:", "bpe:x", "bpe:-1", "bpe:65280"])
def test_a_senseless_number_of_merges_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} must be bpe: and a number .* 0 to 65279"):
        corpus.write_corpus(["a"], ["b"], tmp_path / "out", name)


def test_a_vocabulary_too_large_for_16_bits_takes_32(tmp_path):
    singles = {bytes([byte]): byte for byte in range(256)}
    pairs = {bytes([a, b]): 256 * (a + 1) + b for a in range(256) for b in range(256)}
    BytePairTokenizer(singles | pairs).save(tmp_path / "large.tiktoken")
    corpus.write_corpus(["éa"], ["b"], tmp_path / "out", str(tmp_path / "large.tiktoken"))
    assert count_tokens(tmp_path / "out" / "*.bin") == [3, 2]
    loader = DataLoader(tmp_path / "out" / "train_*.bin", 1, 2, vocab_size=65793)
    tokens, targets = loader.next_batch()
    assert (tokens.tolist(), targets.tolist()) == ([[65792, 0xC3]], [[0xC3, 0xAA * 256 + 0x61]])


def test_one_document_in_ten_is_for_validation():
    train, val = map(list, corpus.split_documents([str(i) for i in range(25)]))
    assert val == ["5", "15"]
    assert sorted(train + val, key=int) == [str(i) for i in range(25)]
    assert [len(list(part)) for part in corpus.split_documents(list("0123456789"))] == [9, 1]


def test_few_documents_are_cut_at_a_line_end():
    lines = "".join(f"line {i}\n" for i in range(100))
    (train, second), (val, last) = corpus.split_documents([lines, "x" * 100])
    assert train + val == lines
    assert train.endswith("\n")
    assert len(val) == pytest.approx(len(lines) / 10, abs=8)
    assert (len(second), len(last)) == (90, 10)


# Scripts


def test_pydocs_is_text_that_a_model_can_train_on(tmp_path, monkeypatch):
    call(monkeypatch, pydocs, "--out", tmp_path, "--tokenizer", "bpe:50")
    train, val = read_documents(tmp_path, "train"), read_documents(tmp_path, "val")
    assert len(train) + len(val) == len(pydocs.documents())
    assert any(text.startswith('The "del" statement\n') for text in train + val)
    assert not any(re.search(r"^[*=+|-]{4,}$", text, re.MULTILINE) for text in train + val)
    known = {paragraph for text in train for paragraph in text.split("\n\n")}
    paragraphs = [p for text in val for p in text.split("\n\n") if len(p) > 80]
    assert len(paragraphs) > 20
    assert sum(p in known for p in paragraphs) < len(paragraphs) / 20
    loader = DataLoader(tmp_path / "train_*.bin", 4, 64, vocab_size=256 + 50 + 1)
    assert loader.next_batch()[0].shape == (4, 64)


def test_tinyshakespeare_is_cut_into_speeches(tmp_path, monkeypatch, starter):
    source = starter / "tinyshakespeare.txt"
    call(monkeypatch, tinyshakespeare, "--from", source, "--out", tmp_path)
    train, val = read_documents(tmp_path, "train"), read_documents(tmp_path, "val")
    assert train[0].startswith("First Citizen:\nBefore we proceed")
    assert "".join(train + val).strip() == source.read_text(encoding="utf-8").strip()
    assert len(val) == pytest.approx(0.1 * len(train + val), abs=1)
    assert load_tokenizer(tmp_path / "tokenizer.tiktoken").ranks == load_tokenizer("gpt2").ranks


def test_tinyshakespeare_of_characters_is_nanogpts(tmp_path, monkeypatch, starter, capsys):
    monkeypatch.setattr(corpus, "DATA", tmp_path)
    source = starter / "tinyshakespeare.txt"
    call(monkeypatch, tinyshakespeare, "--from", source, "--tokenizer", "chars")
    folder = tmp_path / "tinyshakespeare-chars"
    # As in nanoGPT's data/shakespeare_char/prepare.py.
    data = source.read_text(encoding="utf-8")
    stoi = {ch: i for i, ch in enumerate(sorted(set(data)))}
    n = len(data)
    train_ids = [stoi[c] for c in data[: int(n * 0.9)]]
    val_ids = [stoi[c] for c in data[int(n * 0.9) :]]
    assert (len(stoi), len(train_ids), len(val_ids)) == (65, 1003854, 111540)
    assert read_tokens(folder / "train_000000.bin") == [stoi["\n"], *train_ids]
    assert read_tokens(folder / "val_000000.bin") == [stoi["\n"], *val_ids]
    assert load_tokenizer(folder / "characters.json").characters == "".join(stoi)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("vocabulary of 65")


def test_tinystories_reads_stories_across_blocks(tmp_path, monkeypatch):
    stories = [f"Story {i} of “Lily”.\n" + "She ran. " * i for i in range(250)]
    path = tmp_path / "stories.txt"
    path.write_bytes("\n<|endoftext|>\n".join(stories).encode())
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 1000)
    expected = [story.strip() for story in stories]
    assert list(tinystories.Stories(path)) == expected
    arguments = ["--from", path, "--out", tmp_path / "out", "--tokenizer", "bytes"]
    call(monkeypatch, tinystories, *arguments)
    assert read_documents(tmp_path / "out", "val") == [expected[99], expected[199]]
    train = expected[:99] + expected[100:199] + expected[200:]
    assert read_documents(tmp_path / "out", "train") == train


def test_tinystories_names_the_place_of_a_wrong_byte(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(b"one<|endoftext|>two<|endoftext|>th\xffree")
    with pytest.raises(UserError, match=r"stories\.txt is not UTF-8: byte 0xff at offset 34 "):
        list(tinystories.Stories(path))


def test_tinystories_downloads_both_files_once(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DATA", tmp_path)
    monkeypatch.setattr(tinystories, "URL", (tmp_path / "web").as_uri())
    (tmp_path / "web-train.txt").write_text("one<|endoftext|>two", encoding="utf-8")
    (tmp_path / "web-valid.txt").write_text("three", encoding="utf-8")
    arguments = ["--out", tmp_path / "out", "--tokenizer", "bytes"]
    call(monkeypatch, tinystories, *arguments)
    (tmp_path / "web-train.txt").unlink()
    call(monkeypatch, tinystories, *arguments)
    assert read_documents(tmp_path / "out", "train") == ["one", "two"]
    assert read_documents(tmp_path / "out", "val") == ["three"]


def test_text_is_decoded_the_same_way_everywhere(tmp_path):
    assert decode_text("\ufeffé\r\n\n\ufeff".encode(), tmp_path) == "é\n\n\ufeff"
    with pytest.raises(UserError, match=r"f\.txt is not UTF-8: byte 0xff at offset 12 is wrong;"):
        decode_text(b"ab\xff", tmp_path / "f.txt", offset=10)


@pytest.mark.parametrize("module", [pydocs, textfile, tinyshakespeare, tinystories])
def test_the_help_tells_what_tokenizers_there_are(monkeypatch, capsys, module):
    with pytest.raises(SystemExit):
        call(monkeypatch, module, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "gpt2, bytes, a .tiktoken, tokenizer.bin" in text


def test_tinystories_has_a_small_vocabulary_and_says_why(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, tinystories, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: bpe:4096)" in text
    assert "most of a small model" in text


@pytest.mark.parametrize("module", [tinyshakespeare, tinystories])
def test_a_missing_source_is_named(tmp_path, monkeypatch, module):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.txt"):
        call(monkeypatch, module, "--from", tmp_path / "nowhere.txt")


@pytest.mark.parametrize("module", [tinyshakespeare, tinystories])
def test_without_network_the_address_and_the_way_out_are_named(tmp_path, monkeypatch, module):
    monkeypatch.setattr(corpus, "DATA", tmp_path)
    with pytest.raises(RunError, match=r"cannot fetch https://.*\(no network\).* --from FILE"):
        call(monkeypatch, module, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Downloads


def test_a_download_is_complete(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(3_000_000))
    sha256 = hashlib.sha256(bytes(3_000_000)).hexdigest()
    download(source.as_uri(), tmp_path / "new" / "file", "do this", sha256)
    assert (tmp_path / "new" / "file").read_bytes() == bytes(3_000_000)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_file_with_another_sum_is_not_kept(tmp_path):
    (tmp_path / "source").write_bytes(b"abc")
    with pytest.raises(RunError, match=r"SHA-256 is ba7816bf.* instead of 00.*; do this"):
        download((tmp_path / "source").as_uri(), tmp_path / "file", "do this", "00" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_download_cut_short_is_not_kept(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        response = io.BytesIO(b"abc")
        response.headers = {"Content-Length": "10"}
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(RunError, match=r"https://x/y \(only 3 of 10 bytes came\); do this"):
        download("https://x/y", tmp_path / "file", "do this")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A starter pack of two files, to be put into an empty folder."""
    source = tmp_path / "source"
    (source / "b").mkdir(parents=True)
    (source / "a.txt").write_bytes(b"abc")
    (source / "b" / "c").write_bytes(b"")
    files = {
        name: (f"https://x/{name}", hashlib.sha256((source / name).read_bytes()).hexdigest())
        for name in ("a.txt", "b/c")
    }
    monkeypatch.setattr(download_starter_pack, "FILES", files)
    monkeypatch.setattr(download_starter_pack, "STARTER", tmp_path / "starter")
    return source


def test_the_starter_pack_keeps_what_is_right_and_mends_the_rest(pack, monkeypatch, capsys):
    call(monkeypatch, download_starter_pack, "--from", pack)
    starter = download_starter_pack.STARTER
    assert capsys.readouterr().out.count("fetched") == 2
    (starter / "a.txt").write_bytes(b"damaged")
    call(monkeypatch, download_starter_pack, "--from", pack)
    assert capsys.readouterr().out.count("fetched") == 1
    assert (starter / "a.txt").read_bytes() == b"abc"
    call(monkeypatch, download_starter_pack)  # nothing is left to fetch from the network
    assert capsys.readouterr().out.count("fetched") == 0


def test_the_starter_pack_says_what_is_missing(pack, monkeypatch):
    with pytest.raises(RunError, match=r"https://x/a\.txt \(no network\).* --from DIR"):
        call(monkeypatch, download_starter_pack)
    (pack / "a.txt").write_bytes(b"other")
    with pytest.raises(RunError, match=r"a\.txt \(its SHA-256 is .* --from DIR"):
        call(monkeypatch, download_starter_pack, "--from", pack)
    (pack / "a.txt").unlink()
    with pytest.raises(RunError, match=r"source/a\.txt \(.*No such file.* --from DIR"):
        call(monkeypatch, download_starter_pack, "--from", pack)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        call(monkeypatch, download_starter_pack, "--from", pack / "nowhere")
    assert [path for path in download_starter_pack.STARTER.rglob("*") if path.is_file()] == []


def test_tiktoken_finds_the_files_by_their_addresses():
    names = [name for name in download_starter_pack.FILES if name.startswith("tiktoken/")]
    assert len(names) == 2
    for name in names:
        url, _ = download_starter_pack.FILES[name]
        assert name == f"tiktoken/{hashlib.sha1(url.encode()).hexdigest()}"
