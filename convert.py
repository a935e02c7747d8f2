"""Tell what a model's file is, or write the model in another format.

    python convert.py stories260K.bin                        what is it?
    python convert.py gpt2/ gpt2.gguf --dtype float16        from Hugging Face's folder to llama.cpp
    python convert.py runs/tiny my-gpt2/                     what was trained here, for transformers
    python convert.py ckpt.pt model.bin                      from a pickle to llm.c or llama2.c

Every format that is written is read, too, and a few more; load.py recognises them. Weights go
through memory part by part, so that a model may be larger than it; only our own checkpoint is
written from a whole model in memory.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from buffers import Buffer, check_available, num_elements
from errors import UserError
from formats import gguf, huggingface, llama2_c, llm_c
from formats.checkpoint import save_checkpoint
from formats.tokenizer_files import padded
from formats.weights import FLOATS, Parts, Weights
from load import Source, fill, model_meta, open_model, tell_spare_rows
from models import FAMILIES
from models.model import unpadded_shapes
from tokenizer import LlamaTokenizer


def write_checkpoint(
    path: Path, weights: Weights, dtype: str, positions: int | None = None
) -> None:
    """Write a checkpoint of this project, whatever the weights come from.

    Unlike the other formats it takes the whole model in memory, as using it would.

    Args:
        positions: how many were trained; by default all that the model has.

    Raises:
        UserError: there is not as much memory, or the model has no tokenizer.
    """
    if not weights.tokenizer:
        raise UserError(f"cannot write {path} without the model's tokenizer; add --tokenizer")
    config = FAMILIES[weights.kind].config(**weights.config)
    shapes = config.param_shapes()
    check_available(4 * num_elements(shapes), f"to write {path}", "choose another format")
    params = Buffer(shapes, dtype)
    fill(params, weights)
    positions = positions or config.seq_len
    template = weights.chat_template
    meta = model_meta(weights.kind, config, positions, weights.tokenizer, template)
    save_checkpoint(path, meta, {"params": params.flat})


class Target(NamedTuple):
    """A format to write: by what, and in which types of numbers."""

    write: Callable[[Path, Weights, str], None]
    dtypes: tuple[str, ...]


TARGETS = {
    "huggingface": Target(huggingface.write, huggingface.DTYPES),
    "gguf": Target(gguf.write, gguf.DTYPES),
    "llm.c": Target(llm_c.write, llm_c.DTYPES),
    "llama2.c": Target(llama2_c.write, llama2_c.DTYPES),
    "llama2.c-1": Target(partial(llama2_c.write, version=1), llama2_c.DTYPES),
    "llama2.c-2": Target(partial(llama2_c.write, version=2), llama2_c.DTYPES),
    "llm.np": Target(write_checkpoint, ("float32",)),
}


def main() -> None:
    args = make_parser().parse_intermixed_args()  # options may stand between input and output
    if not args.output and (args.to or args.dtype):
        raise UserError("a model is written only where an output is named; name one")
    source = open_model(args.input, args.tokenizer)
    if source.tokenizer:
        tell_spare_rows(source.tokenizer, source.config.vocab_size)
    if not args.output:
        describe(source)
        return
    output = Path(args.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already; choose another name, or delete it")
    to = args.to or guess_target(args.output, source.kind)
    if output.is_dir() and to != "huggingface":
        raise UserError(f"{output} is a folder, and {to} is one file; name a file")
    dtype = args.dtype or natural_type(source.weights, TARGETS[to].dtypes)
    if dtype not in TARGETS[to].dtypes:
        known = " or ".join(TARGETS[to].dtypes)
        raise UserError(f"{to} cannot hold {dtype}; choose --dtype {known}")
    weights, tokenizer = replace(source.weights, tokenizer=source.tokenizer), source.tokenizer
    write, positions = TARGETS[to].write, source.positions
    if to == "llm.np":  # alone it tells how many were trained, and so keeps them all
        write = partial(write, positions=positions)
    else:
        weights = with_positions(weights, positions)
    with progress("writing", weights) as bar:
        write(output, watched(weights, bar), dtype)
    numbers = f" in {dtype}" if len(TARGETS[to].dtypes) > 1 else ""
    print(f"wrote {output}: {FAMILIES[source.kind].title}{numbers}, for {to}")
    if weights.note:
        print(weights.note)
    if weights.config["seq_len"] < source.config.seq_len:
        print(f"it has the {positions} of {source.config.seq_len} positions that were trained")
    if not tokenizer:
        print(f"it has no tokenizer, for {source.tokenizer_source}; --tokenizer gives it one")
    elif to.startswith(("llm.c", "llama2.c")):  # whose models' files have none
        if type(tokenizer) is LlamaTokenizer:  # of which run.c reads a token for each row
            tokenizer = LlamaTokenizer(*padded(tokenizer, source.config.vocab_size))
        beside = output.with_name(f"{output.stem}.{tokenizer.file_name}")
        tokenizer.save(beside)
        print(f"wrote {beside}: its tokenizer")


def guess_target(output: str, kind: str) -> str:
    """The format that the name of a file stands for; a folder is Hugging Face's.

    Raises:
        UserError: it stands for none.
    """
    suffixes = {
        "": "huggingface",
        ".gguf": "gguf",
        ".bin": "llm.c" if kind == "gpt2" else "llama2.c",
        ".npz": "llm.np",
    }
    if output.endswith(("/", os.sep)) or Path(output).is_dir():
        return "huggingface"
    if Path(output).suffix not in suffixes:
        raise UserError(
            f"the name {output} does not tell the format; add --to {', '.join(TARGETS)}, or a / "
            "for a folder of Hugging Face's"
        )
    return suffixes[Path(output).suffix]


def with_positions(weights: Weights, count: int) -> Weights:
    """The same model with no more than its first `count` positions."""
    tensors = dict(weights.tensors)
    if "wpe" in tensors:  # a row for each
        wpe = tensors["wpe"]
        shape = (count, *wpe.shape[1:])
        tensors["wpe"] = Parts(shape, wpe.dtype, [lambda: wpe[0][:count]], wpe.stored)
    return replace(weights, config=weights.config | {"seq_len": count}, tensors=tensors)


def natural_type(weights: Weights, dtypes: Sequence[str]) -> str:
    """The type of the largest tensor, if it is one of `dtypes`, else float32."""
    largest = max(weights.tensors.values(), key=lambda parts: math.prod(parts.shape))
    return largest.dtype.name if largest.dtype.name in dtypes else "float32"


def describe(source: Source) -> None:
    """Print what a file is, and a line for each of its tensors."""
    weights, tokenizer = source.weights, source.tokenizer
    known = f"{tokenizer.vocab_size:,} tokens: " if tokenizer else "unknown: "
    size = num_elements(unpadded_shapes(source.config))
    print(f"format      {weights.format}")
    if weights.note:
        print(f"note        {weights.note}")
    print(f"model       {FAMILIES[source.kind].title}, {size:,} parameters")
    for name, value in asdict(source.config).items():
        print(f"  {name:<14} {value}")
    if source.positions < source.config.seq_len:
        print(f"  {'trained':<14} {source.positions} of its {source.config.seq_len} positions")
    print(f"tokenizer   {known}{source.tokenizer_source}")
    print(f"{'tensor':<10} {'shape':<22} {'type':<9} {'mean':>12} {'deviation':>12}")
    with progress("reading", weights) as bar:
        for name, parts in watched(weights, bar).tensors.items():
            mean, deviation = statistics(parts)
            line = f"{name:<10} {parts.shape!s:<22} {parts.stored:<9}"
            tqdm.write(f"{line} {mean:>12.5g} {deviation:>12.5g}")


def statistics(parts: Parts) -> tuple[float, float]:
    """The mean of a tensor's numbers, and their standard deviation."""
    count, total, squares = math.prod(parts.shape), 0.0, 0.0
    for block in parts.all_blocks():
        block = block.astype(np.float64)
        total += block.sum()
        squares += np.vdot(block, block)
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean**2, 0))


def watched(weights: Weights, bar: tqdm) -> Weights:
    """The same weights; the bar moves on whenever a part of them is looked up."""

    def watch(parts: Parts) -> Parts:
        def make(index: int) -> np.ndarray:
            part = parts[index]
            bar.update(part.size)
            return part

        def blocks(index: int) -> Iterator[np.ndarray]:
            for block in parts.blocks(index):
                bar.update(block.size)
                yield block

        makers, pieces = ([partial(each, i) for i in range(len(parts))] for each in (make, blocks))
        return Parts(parts.shape, parts.dtype, makers, parts.stored, pieces)

    return replace(weights, tensors={name: watch(p) for name, p in weights.tensors.items()})


def progress(what: str, weights: Weights) -> tqdm:
    """A bar on stderr that counts numbers."""
    total = sum(math.prod(parts.shape) for parts in weights.tensors.values())
    return tqdm(desc=what, total=total, unit=" weights", unit_scale=True, disable=None, leave=False)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tell what a model's file is, or write the model in another format."
    )
    parser.add_argument("input", type=Path, help="a model's file or folder, of any format")
    parser.add_argument("output", nargs="?", help="what to write (default: nothing)")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        metavar="FORMAT",
        help=f"{', '.join(TARGETS)}; llama2.c-1 is its version 1, and llama2.c-2 has integers of 8 "
        "bits, for runq.c (default: what the output's name says: a folder, .gguf, .bin or .npz)",
    )
    parser.add_argument(
        "--dtype",
        choices=FLOATS,
        help="the type of the numbers (default: as they are, where the format has it)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="gpt2, or the file of one, or a model's file or folder (default: the one in the "
        "model's file or beside it)",
    )
    return parser
