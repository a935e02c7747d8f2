"""Fetch the real files that some tests need, and a learner may like, into data/starter/.

A trained Llama 2 of 260,000 parameters with its tokenizer, the Llama 2 tokenizer in two formats,
tinyshakespeare, and GPT-2's vocabulary: about 5 MB. Files that are there and right are kept.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import hashlib
from pathlib import Path

from dev.download import download
from errors import UserError

STARTER = Path(__file__).resolve().parents[1] / "data" / "starter"

TINYLLAMAS = "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K"
LLAMA2_C = "https://raw.githubusercontent.com/karpathy/llama2.c/master"
CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master"
GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"

# name in data/starter: (address, SHA-256). tiktoken names a file by the SHA-1 of its address.
FILES = {
    "stories260K.bin": (
        f"{TINYLLAMAS}/stories260K.bin",
        "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
    ),
    "tok512.bin": (
        f"{TINYLLAMAS}/tok512.bin",
        "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
    ),
    "llama2_tokenizer.bin": (
        f"{LLAMA2_C}/tokenizer.bin",
        "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361",
    ),
    "llama2_tokenizer.model": (
        f"{LLAMA2_C}/tokenizer.model",
        "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347",
    ),
    "tinyshakespeare.txt": (
        f"{CHAR_RNN}/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "tiktoken/6d1cbeee0f20b3d9449abfede4726ed8212e3aee": (
        f"{GPT2}/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "tiktoken/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": (
        f"{GPT2}/encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take the files from this folder instead of the network",
    )
    source = parser.parse_args().source
    if source and not source.is_dir():
        raise UserError(f"{source} is not a folder; --from needs the folder that has the files")
    for name, (url, sha256) in FILES.items():
        path = STARTER / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            continue
        address = (source / name).resolve().as_uri() if source else url
        download(address, path, f"get it elsewhere, as DIR/{name}, and use --from DIR", sha256)
        print(f"{path}: fetched")
    print(f"{STARTER}: all {len(FILES)} files are there")
