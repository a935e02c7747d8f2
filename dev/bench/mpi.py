"""Measure how training scales over ranks on this machine, and reckon how it would over nodes.

    python dev/bench/mpi.py                                 1, 2, 4, ... ranks, up to the cores
    python dev/bench/mpi.py --preset small --batch-size 8 --seq-len 256
    python dev/bench/mpi.py --mpirun "mpirun --oversubscribe" --ranks 4
    python dev/bench/mpi.py --paper                         2 to 1,024 nodes: see docs/mpi.md

It starts mpirun itself: the trainer's own step, on the same batch again and again, on one thread
per rank, and for comparison on one rank of as many threads. On a shared machine one run says
little, so all take turns, and the medians are given. Efficiency is what one core alone takes,
divided by what so many take: weak, when it has as much to do as each of them; strong, when it has
as much as all of them, and has as many times longer. A barrier before every exchange tells waiting
for a slower rank apart from the exchange itself.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
from tqdm import tqdm

from adam import AdamW
from buffers import check_available, num_elements
from dev.bench.machine import PRESETS, use_threads
from errors import RunError, UserError, at_least
from models.model import NO_DROPOUT
from training.ranks import CHUNK, find_ranks

ROOT = Path(__file__).resolve().parents[2]

# What makes ranks on one machine talk as if they were on two, in Open MPI.
OVER_TCP = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "tcp,self"}

# On paper: links in Gbit/s; and the tokens that all nodes together read in a step, as for GPT-3 of
# the same size (Brown et al. 2020, arXiv 2005.14165, table 2.1) and for Llama 2 (Touvron et al.
# 2023, arXiv 2307.09288, table 1), in sequences of so many.
NODES, LINKS, SEQ_LEN = (1, 2, 4, 16, 64, 256, 1024), (10, 100), 256
LATENCY = 20e-6  # seconds, of a message over TCP
TOKENS = {"gpt2": 2**19, "llama2-7b": 2**22}


class Case(NamedTuple):
    """Ranks of so many threads, with B sequences each, and how they exchange numbers."""

    ranks: int
    threads: int
    batch_size: int
    zero: bool = False
    tcp: bool = False


class Times(NamedTuple):
    """Seconds of a step, and those of them that are spent on waiting and on exchanging numbers."""

    step: float
    waiting: float
    exchange: float


def main() -> None:
    args = parse_args()
    if args.paper:
        print("\n\n".join(paper(*each) for each in itertools.product(TOKENS, args.gflops)))
        return
    config = PRESETS[args.preset][1]
    params = num_elements(config.param_shapes())
    cases = list_cases(args.ranks, args.batch_size)
    for ranks, _, B, *_ in cases:
        numbers = 4 * params + num_elements(config.act_shapes(B, args.seq_len))
        check_available(4 * ranks * numbers, f"by {ranks} ranks", "lower --ranks or --batch-size")
    times: dict[Case, list[Times]] = {case: [] for case in cases}
    runs = args.rounds * cases
    for case in tqdm(runs, desc="runs", disable=None, leave=False):
        times[case] += run(case, args)
    print(f"{args.preset}, {params:,} parameters, T={args.seq_len}")
    print(f"milliseconds per step: medians of {args.rounds} times {args.steps} steps")
    medians = {case: Times(*np.median(each, axis=0)) for case, each in times.items()}
    print(table(medians, params))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    parser.add_argument("--batch-size", type=at_least(1), default=2, help="of each rank")
    parser.add_argument("--seq-len", type=at_least(1), default=64)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    parser.add_argument(
        "--ranks", type=at_least(1), default=cores, help="at most (default: a rank on every core)"
    )
    parser.add_argument("--rounds", type=at_least(1), default=3, help="runs of each")
    parser.add_argument("--steps", type=at_least(1), default=5, help="timed steps of a run")
    parser.add_argument(
        "--mpirun", type=shlex.split, default="mpirun", help="the program, and options for it"
    )
    parser.add_argument("--paper", action="store_true", help="only the tables of docs/mpi.md")
    parser.add_argument(
        "--gflops",
        type=at_least(1.0),
        nargs="+",
        default=[125.0, 4000.0],
        help="for --paper: what a node reaches in training, as the trainer prints it",
    )
    return parser.parse_args()


def list_cases(most: int, batch_size: int) -> list[Case]:
    """1, 2, 4, ... up to `most` ranks: with B sequences each, and sharing those of the most."""
    counts = [2**i for i in range(most.bit_length())]
    together = counts[-1] * batch_size
    cases = [Case(1, counts[-1], together)]
    for n in counts:
        ways = itertools.product((False, True), repeat=2) if n > 1 else [()]
        cases += [Case(n, 1, B, *way) for way in ways for B in (batch_size, together // n)]
    return sorted(set(cases))


def run(case: Case, args: argparse.Namespace) -> list[Times]:
    """The times of a few steps, in processes that mpirun starts.

    Raises:
        UserError: there is no mpirun.
        RunError: it has failed.
    """
    work = args.preset, case.batch_size, args.seq_len, args.steps, case.zero
    source = (
        "from dev.bench import mpi; from errors import run_program; "
        f"run_program(lambda: mpi.step_often{work})"
    )
    command = [*args.mpirun, "-n", str(case.ranks), "--bind-to", "none", sys.executable, "-c"]
    use_threads(case.threads)
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(places)} | (OVER_TCP if case.tcp else {})
    try:
        done = subprocess.run(
            [*command, source], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
        )
    except FileNotFoundError:
        raise UserError(
            f"there is no program {args.mpirun[0]}; install an MPI, or name it with --mpirun"
        ) from None
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise RunError(f"{shlex.join(command[:-2])} has failed: {words}")
    return [Times(*each) for each in json.loads(done.stdout)]


def step_often(preset: str, B: int, T: int, steps: int, zero: bool) -> None:
    """As one of the ranks: take steps of the trainer's, and print their times."""
    from train import take_step  # beside this file, started as a program, lies another train.py

    spent: Counter[str] = Counter()

    def timed(kind: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def measured(value: Any) -> Any:
            begin = time.perf_counter()
            result = call(value)
            spent[kind] += time.perf_counter() - begin
            return result

        return measured

    with find_ranks() as ranks:
        total = ranks.total
        ranks.total = wait = timed("waiting", total)
        for name in ("sum", "sum_parts", "share_parts"):
            exchange = timed("exchange", getattr(ranks, name))
            setattr(ranks, name, lambda flat, exchange=exchange: (wait(0), exchange(flat)))
        model_type, config = PRESETS[preset]
        model = model_type(config, B, T)
        part = ranks.part(model.params.flat.size) if zero else None
        adam = AdamW(
            model.params, model.grads, part=part, total=ranks.total if zero else ranks.mean
        )
        batch = np.random.default_rng(ranks.rank).integers(0, config.vocab_size, (2, B, T))
        run = SimpleNamespace(
            args=SimpleNamespace(grad_accum=1, on_spike="ignore", clip=1.0, zero=zero),
            ranks=ranks,
            model=model,
            optimizer=adam,
            batches=SimpleNamespace(next_batch=lambda: batch),
            finish_saving=lambda: None,
            dropout=lambda batch: NO_DROPOUT,
            losses=[],
        )
        times = []
        for _ in range(steps + 1):
            total(0)
            spent.clear()
            begin = time.perf_counter()
            take_step(run, 1e-4)
            step = time.perf_counter() - begin
            means = [total(spent[kind]) / ranks.size for kind in ("waiting", "exchange")]
            times.append((step, *means))
        print(json.dumps(times[1:]))  # the first step pays for memory


def table(times: Mapping[Case, Times], params: int) -> str:
    """A line for each case: its times, what a rank sends, and the efficiency of its cores."""
    head = (
        "ranks threads   B  exchange          step  waiting  exchange  MB sent  GB/s   weak  strong"
    )
    lines = [head]
    for case, (step, waiting, exchange) in times.items():
        cores, together = case.ranks * case.threads, case.ranks * case.batch_size
        line = f"{case.ranks:>5}{case.threads:>8}{case.batch_size:>4}  "
        if case.ranks > 1:
            way = ("--zero" if case.zero else "all-reduce") + (", TCP" if case.tcp else "")
            sent = bytes_sent(case.ranks, params)
            line += f"{way:<16}{1e3 * step:>6.0f}{1e3 * waiting:>9.0f}{1e3 * exchange:>10.0f}"
            line += f"{sent / 1e6:>9.1f}{sent / exchange / 1e9:>6.1f}"
        else:
            line += f"{'':<16}{1e3 * step:>6.0f}{'':>34}"
        for batch, fold, width in ((together // cores, 1, 7), (together, cores, 8)):
            alone = times.get(Case(1, 1, batch))
            line += f"{alone.step / fold / step:>{width}.0%}" if alone else " " * width
        lines.append(line)
    return "\n".join(lines)


def bytes_sent(n: int, params: int) -> float:
    """What each of n ranks sends in a step: 2 (n - 1) / n times the gradients, in float32.

    A sum over all ranks takes no less (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations"). With --zero it is as much: half of it to bring every
    gradient to the rank that needs it, half to give the parameters to the others.
    """
    return 2 * (n - 1) / n * 4 * params


def exchange_seconds(n: int, params: int, gbits: float, ring: bool = False) -> float:
    """What n nodes take to sum their gradients, on paper.

        2 (n - 1) / n 4 P / W + k h a

    for P parameters in k chunks, links of W bytes per second, and h messages one after another, of
    a seconds each: 2 log2(n) by Rabenseifner's algorithm (Thakur, Rabenseifner and Gropp 2005,
    "Optimization of collective communication operations in MPICH"), 2 (n - 1) around a ring.
    What a rank takes to add numbers and to move them in its memory is left out.
    """
    chunks, messages = math.ceil(params / CHUNK), 2 * (n - 1) if ring else 2 * math.log2(n)
    return bytes_sent(n, params) / (gbits * 1e9 / 8) + chunks * messages * LATENCY


def paper(preset: str, gflops: float) -> str:
    """A table of n nodes of so many GFLOP/s, which share the `TOKENS` of every step."""
    config, together = PRESETS[preset][1], TOKENS[preset]
    params, flops = num_elements(config.param_shapes()), config.step_flops(1, SEQ_LEN) / SEQ_LEN
    per_token = flops / (gflops * 1e9)
    lines = [
        f"{preset}, {params:,} parameters; {together:,} tokens in a step; {gflops:,.0f} GFLOP/s",
        f"{'':>30}" + "".join(f"{link:>20} Gbit/s {'':>7}" for link in LINKS),
        f"{'nodes':>5}{'tokens each':>13}{'compute':>12}"
        + f"{'exchange':>11}{'tokens/s':>12}{'efficiency':>12}" * len(LINKS),
    ]
    for n in NODES:
        compute = together / n * per_token
        line = f"{n:>5}{together // n:>13,}{seconds(compute):>12}"
        for link in LINKS:
            exchange = exchange_seconds(n, params, link)
            step = compute + exchange
            line += f"{seconds(exchange):>11}{together / step:>12,.0f}{compute / step:>12.0%}"
        lines.append(line)
    most = NODES[-1]
    even = [exchange_seconds(most, params, link) / per_token for link in LINKS]
    ring = exchange_seconds(most, params, LINKS[0], ring=True)
    added = ring - exchange_seconds(most, params, LINKS[0])
    lines += [
        f"{most:,} nodes exchange as long as they compute at "
        + " or ".join(f"{n:,.0f}" for n in even)
        + " tokens each;",
        f"around a ring, their messages would wait another {seconds(added)}",
    ]
    return "\n".join(lines)


def seconds(value: float) -> str:
    return f"{value:,.{2 if value < 100 else 0}f} s"
