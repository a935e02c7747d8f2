"""Train a model: what gpt2_train.py and llama2_train.py have in common, which is nearly everything.

`prepare` puts a run together, and `train` is the loop. Under MPI every rank goes through both; only
rank 0 writes.
"""

import argparse
import itertools
import math
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adam import AdamW, cosine_schedule
from buffers import num_elements
from checkpoint import (
    CHECKPOINT,
    OLDER,
    Pieces,
    drop_older,
    load_arrays,
    read_meta,
    save_checkpoint,
)
from dataloader import DataLoader
from errors import DivergedError, RunError, UserError
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from load import FAMILIES, fill
from model import Model
from options import check_vocabulary, find_corpus, read_arguments
from ranks import Ranks, find_ranks
from report import Log, check_memory, command, draw_memory_map, matmul_peak
from sampler import generate
from timing import Profile
from tokenizer import Tokenizer

NOT_SAVED = ("out", "resume", "init_from", "memory_map", "profile", "batch_size")

# A spike is a loss that is so many standard deviations, and so many nats, above the mean of the
# losses before it.
SPIKE_DEVIATIONS, SPIKE_NATS = 6, 0.5
SPIKE_LOSSES = 20, 50  # how many losses that mean needs, and has at most

MOST_ROLLBACKS = 3  # to the same checkpoint


def main(kind: str) -> None:
    """Train a model of one of the `FAMILIES`, as the command line says."""
    with find_ranks() as ranks:
        run = prepare(kind, ranks)
        if not run:
            return
        try:
            train(run)
        except BrokenPipeError:  # nobody reads our output any more
            if run.step > run.saved_step:
                run.save()
            raise
        finally:
            run.finish_saving()


def prepare(kind: str, ranks: Ranks) -> "Run | None":
    """All that the command line asks to train; None if it asks for something else, which is done.

    Raises:
        UserError: what it asks cannot be.
    """
    family = FAMILIES[kind]
    args, source = read_arguments(kind, ranks)
    folder = ranks.first(lambda: find_corpus(args.data))
    tokenizer = load_tokenizer(find_tokenizer(folder))

    # The model's numbers: those of the run or checkpoint to go on with, else the preset's.
    if source:
        config = source.config
        check_vocabulary(source, tokenizer, folder)
    else:
        config = replace(family.presets[args.preset], vocab_size=tokenizer.vocab_size)
    B, T = args.batch_size, args.seq_len or min(config.seq_len, 256)

    # The tables of shapes tell what will be allocated, to the byte.
    params, acts = config.param_shapes(), config.act_shapes(B, T, recompute=args.recompute)
    _, channels = params["wte"]
    args.lr = 0.4 / channels if args.lr is None else args.lr
    if args.min_lr > args.lr:
        raise UserError(f"--min-lr {args.min_lr} is above --lr {args.lr}; lower it")
    if len(tokenizer.encode_prompt(args.prompt)) > T:
        raise UserError(f"--prompt has more tokens than the {T} that the model sees; shorten it")
    num_params = num_elements(params)
    part = ranks.part(num_params) if args.zero else slice(0, num_params)
    moments = {"part": (part.stop - part.start,)} if args.zero else params
    buffers = {
        "parameters": params,
        "gradients": params,
        "Adam's m": moments,
        "Adam's v": moments,
        "activations": acts,
    }
    if args.memory_map:
        if ranks.rank == 0:
            draw_memory_map(buffers, args.memory_map)
        print(f"wrote {args.memory_map}")
        return None
    advice = "lower --batch-size or --seq-len, or choose a smaller --preset"
    check_memory(buffers, advice, processes=ranks.on_machine)

    shards = {
        "vocab_size": config.vocab_size,
        "seed": args.seed,
        "rank": ranks.rank,
        "num_ranks": ranks.size,
    }
    model = family.model(config, B, T, seed=None if source else args.seed, recompute=args.recompute)
    run = Run(
        kind=kind,
        args=args,
        ranks=ranks,
        corpus=folder,
        tokenizer=tokenizer,
        model=model,
        optimizer=AdamW(
            model.params,
            model.grads,
            betas=(args.beta1, args.beta2),
            weight_decay=args.weight_decay,
            part=part,
            total=ranks.total if args.zero else float,
        ),
        batches=DataLoader(folder / "train_*.bin", B, T, **shards),
        val_batches=DataLoader(folder / "val_*.bin", B, T, shuffle=False, **shards),
        rng=np.random.default_rng(args.seed),
        positions=max(T, source.positions if source else 0),
    )
    if args.resume:
        run.restore(source.path)
    elif source:
        fill(model.params, source.weights)
    if args.profile:
        profile = Profile(model, run.optimizer, lambda: take_step(run, args.lr))
        print(profile.table(matmul_peak()))
        return None
    return run


def train(run: "Run") -> None:
    """Train until `--steps`, an interruption, or a loss that is no number.

    Raises:
        RunError: the loss or the gradients are not finite, or the loss has jumped where that is to
            stop the run; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step was finished and saved.
    """
    args, ranks, model = run.args, run.ranks, run.model
    batches_per_step = args.grad_accum * ranks.size
    tokens_per_step = batches_per_step * model.batch_size * model.seq_len
    gflop_per_step = (
        batches_per_step * model.config.step_flops(model.batch_size, model.seq_len) / 1e9
    )
    peak = ranks.total(matmul_peak())
    print(f"{model.params.flat.size:,} parameters on {run.corpus}; the run is in {args.out}")
    print(f"this machine multiplies matrices at {peak:.0f} GFLOP/s", flush=True)
    if ranks.size > 1:
        print(ranks.describe(), flush=True)

    log = Log(args.out / "log.csv", run.step) if ranks.rank == 0 else None
    stop = StopRequest()
    if args.on_spike == "rollback" and run.step == 0:
        run.save()  # something to go back to
    while run.step < args.steps:
        step = run.step + 1
        last = step == args.steps
        validating = last or step % args.val_every == 0
        lr = cosine_schedule(run.step, args.lr, args.min_lr, args.warmup, args.steps)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # the loss will show it
                begin = time.perf_counter()
                loss, norm = take_step(run, lr)
                seconds = time.perf_counter() - begin
                stopping = ranks.total(stop.requested) > 0
                saving = last or stopping or step % args.save_every == 0
                # That loss was the one before the update: what is saved has to be seen to work.
                seen = run.validate(validating) if saving or validating else loss
            if not math.isfinite(seen):
                raise DivergedError(f"the validation loss is {seen}")
        except DivergedError as error:
            recover(run, error)
            if log:
                log.drop_after(run.step)
            continue
        run.step = step
        speed = gflop_per_step / seconds
        print(
            f"step {step:>4}/{args.steps}  loss {loss:.4f}  norm {norm:.2f}  lr {lr:.2e}  "
            f"{1e3 * seconds:.0f} ms  {tokens_per_step / seconds:,.0f} tokens/s  "
            f"{speed:.0f} GFLOP/s ({speed / peak:.0%} of peak)",
            flush=True,
        )
        if validating:
            print(f"step {step:>4}/{args.steps}  validation loss {seen:.4f}", flush=True)
        if log:
            log.write(
                step,
                loss,
                seen if validating else None,
                norm,
                lr,
                1e3 * seconds,
                tokens_per_step / seconds,
                run.rollbacks,
            )
        if ranks.rank == 0 and (last or step % args.sample_every == 0):
            print(f"--- a sample ---\n{run.speak()}\n----------------", flush=True)
        if saving:
            run.save()
            if log:
                log.draw(args.out / "loss.png", f"{args.preset} on {run.corpus.name}")
        if stopping and not last:
            raise KeyboardInterrupt(
                f"stopped after step {step}, which is saved; "
                f"go on with: {command(f'{run.kind}_train.py', '--resume', args.out)}"
            )

    run.finish_saving()
    print(f"wrote {args.out / CHECKPOINT}, {args.out / 'log.csv'} and {args.out / 'loss.png'}")
    print(f"let it speak: {command('sample.py', args.out, '--prompt', args.prompt)}")


def take_step(run: "Run", lr: float) -> tuple[float, float]:
    """One step of the optimiser, on the mean of `--grad-accum` batches of every rank.

    Returns:
        The loss before the step, and the norm of its gradient.

    Raises:
        DivergedError: one of them is not finite, or the loss has jumped where that matters; the
            parameters are unchanged.
    """
    args, ranks, model = run.args, run.ranks, run.model
    n = args.grad_accum * ranks.size
    loss = 0.0
    model.zero_grad()
    for _ in range(args.grad_accum):
        tokens, targets = run.batches.next_batch()
        loss += model.forward(tokens, targets) / n
        model.backward(1 / n)
    run.finish_saving()  # the parameters are about to change
    loss = ranks.total(loss)
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss}")
    if args.on_spike != "ignore" and is_spike(loss, run.losses):
        usual = statistics.mean(run.losses)
        raise DivergedError(f"the loss has jumped to {loss:.4f} from a mean of {usual:.4f}")
    max_norm = args.clip or math.inf
    if args.zero:
        ranks.sum_parts(model.grads.flat)
        norm = run.optimizer.step(lr, max_norm)
        ranks.share_parts(model.params.flat)
    else:
        ranks.sum(model.grads.flat)
        norm = run.optimizer.step(lr, max_norm)
    run.losses.append(loss)
    return loss, norm


def is_spike(loss: float, losses: Sequence[float]) -> bool:
    """Whether a loss stands out above those before it."""
    if len(losses) < SPIKE_LOSSES[0]:
        return False
    usual, deviation = statistics.mean(losses), statistics.stdev(losses)
    return loss > usual + max(SPIKE_DEVIATIONS * deviation, SPIKE_NATS)


def recover(run: "Run", error: DivergedError) -> None:
    """Go back to the last checkpoint, if that is what `--on-spike` says.

    Raises:
        RunError: it says something else, or going back has not helped.
    """
    args = run.args
    reason = f"step {run.step + 1}: {error}"
    if args.on_spike != "rollback" or not run.roll_back():
        kept = f"{args.out} has step {run.saved_step}" if run.saved_step else "nothing is saved yet"
        raise RunError(f"{reason}, so training has stopped; {kept}; try a lower --lr") from error
    print(f"{reason}; back to step {run.step}, without the batches since then", flush=True)


@dataclass
class Run:
    """All that a run consists of, and all that has to be saved of it."""

    kind: str
    args: argparse.Namespace
    ranks: Ranks
    corpus: Path
    tokenizer: Tokenizer
    model: Model
    optimizer: AdamW
    batches: DataLoader
    val_batches: DataLoader
    rng: np.random.Generator  # of the samples
    positions: int  # that any run has trained, of those the model has
    step: int = 0
    saved_step: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_LOSSES[1]))
    rollbacks: int = 0

    def __post_init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future | None = None
        self._newest = self.args.out / CHECKPOINT
        self._last = self._newest  # what the run has saved, or has been restored from

    def validate(self, thoroughly: bool) -> float:
        """The mean loss over the first batches of the validation split, or over the very first."""
        self.val_batches.reset()
        count = min(self.args.val_batches, len(self.val_batches)) if thoroughly else 1
        losses = [self.model.forward(*self.val_batches.next_batch()) for _ in range(count)]
        return self.ranks.total(sum(losses)) / (count * self.ranks.size)

    def speak(self) -> str:
        """How the model continues `--prompt`."""
        settings = {"temperature": 0.8, "top_p": 0.9, "rng": self.rng}
        prompt = self.args.prompt
        return prompt + "".join(generate(self.model, self.tokenizer, prompt, 64, **settings))

    def save(self) -> None:
        """Write the checkpoint: what `restore` needs to go on as if nothing had happened.

        With `--checkpoint-async` this begins it, and `finish_saving` waits for its end.
        """
        self.finish_saving()
        settings = {name: value for name, value in vars(self.args).items() if name not in NOT_SAVED}
        meta = {
            "model": self.kind,
            "config": asdict(self.model.config),
            "positions": self.positions,
            "step": self.step,
            "batch_size": self.args.batch_size * self.ranks.size,  # the same for any number of them
            "loader": self.batches.state(),
            "rng": self.rng.bit_generator.state,
            "losses": list(self.losses),
            "rollbacks": self.rollbacks,
            "settings": settings | {"data": str(self.corpus.resolve())},
            # JSON holds text, and latin-1 has a character for every byte.
            "tokenizer": self.tokenizer.to_bytes().decode("latin-1"),
        }
        if self.args.checkpoint_async:
            self._saving = self._writer.submit(self._write, meta)
        else:
            self._write(meta)

    def finish_saving(self) -> None:
        """Wait until the checkpoint that is being written is whole.

        Raises:
            RunError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def _write(self, meta: dict[str, Any]) -> None:
        """Write a checkpoint of parameters and moments as they are."""
        params, m, v = self.model.params.flat, self.optimizer.m, self.optimizer.v
        if self.args.zero:
            m, v = (Pieces(params.size, self.ranks.collect(part, params.size)) for part in (m, v))
        if self.ranks.rank == 0:
            arrays = {"params": params, "m": m, "v": v}
            # What a run did not go on from is broken, or has gone another way: it is not kept.
            keeping = self.saved_step and self.args.keep and self._last == self._newest
            older = self.args.out / OLDER.format(self.saved_step)
            save_checkpoint(self._newest, meta, arrays, older if keeping else None)
            drop_older(self.args.out, self.saved_step, self.args.keep)
        elif self.args.zero:
            for _ in itertools.chain(m.pieces, v.pieces):
                pass  # rank 0 gets nothing: this is what sends it this rank's
        self.saved_step, self._last = meta["step"], self._newest

    def restore(self, path: Path) -> None:
        """Go to where the run was when a checkpoint was saved."""
        params, optimizer = self.model.params.flat, self.optimizer
        load_arrays(path, {"params": params})
        moments = {"m": optimizer.m, "v": optimizer.v}
        load_arrays(path, moments, optimizer.part.start, params.size)
        meta = read_meta(path)
        self.step = self.saved_step = optimizer.num_steps = meta["step"]
        self.batches.restore(meta["loader"])
        self.rng.bit_generator.state = meta["rng"]
        self.losses = deque(meta["losses"], self.losses.maxlen)
        self.rollbacks = meta["rollbacks"]
        self._last = path

    def roll_back(self) -> bool:
        """Go back to the last checkpoint, but leave out the batches since; False if done too often.

        Whether a batch or the state it met was at fault, both are left behind. Chowdhery et al.
        2022, arXiv 2204.02311, section 5.1.
        """
        rollbacks, position = self.rollbacks, self.batches.state()
        self.restore(self._last)
        if rollbacks == self.rollbacks + MOST_ROLLBACKS:
            return False
        self.rollbacks = rollbacks + 1
        self.batches.restore(position)
        return True


class StopRequest:
    """Ctrl-C, SIGTERM and the like ask to stop after the step; a second one, at once."""

    def __init__(self) -> None:
        self.requested = False
        # The last is the one that mpirun passes on, and Slurm can send before the time is up.
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has the first two
        self._signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        for number in self._signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.requested = True
        for each in self._signals:
            signal.signal(each, signal.default_int_handler)
        print("finishing this step; once more to stop at once, without saving", file=sys.stderr)
