"""Train a model: what gpt2_train.py and llama2_train.py have in common, which is nearly everything.

`main` puts a run together, and `train` is the loop.
"""

import argparse
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from adam import AdamW, cosine_schedule
from checkpoint import CHECKPOINT, load_arrays, save_checkpoint
from dataloader import DataLoader
from errors import RunError, UserError
from load import FAMILIES, Source, fill
from model import Model
from options import check_vocabulary, find_corpus, read_arguments
from report import Log, check_memory, command, draw_memory_map, matmul_peak
from sampler import generate
from timing import Profile
from tokenizer import Tokenizer, find_tokenizer, load_tokenizer

NOT_SAVED = ("out", "resume", "init_from", "memory_map", "profile")


def main(kind: str) -> None:
    """Train a model of one of the `FAMILIES`, as the command line says."""
    family = FAMILIES[kind]
    args, source = read_arguments(kind)
    folder = find_corpus(args.data)
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
    buffers = {
        "parameters": params,
        "gradients": params,
        "Adam's m": params,
        "Adam's v": params,
        "activations": acts,
    }
    if args.memory_map:
        draw_memory_map(buffers, args.memory_map)
        print(f"wrote {args.memory_map}")
        return
    check_memory(buffers, "lower --batch-size or --seq-len, or choose a smaller --preset")

    shards = {"vocab_size": config.vocab_size, "seed": args.seed}
    model = family.model(config, B, T, seed=None if source else args.seed, recompute=args.recompute)
    run = Run(
        kind=kind,
        args=args,
        corpus=folder,
        tokenizer=tokenizer,
        model=model,
        optimizer=AdamW(
            model.params,
            model.grads,
            betas=(args.beta1, args.beta2),
            weight_decay=args.weight_decay,
        ),
        batches=DataLoader(folder / "train_*.bin", B, T, **shards),
        val_batches=DataLoader(folder / "val_*.bin", B, T, shuffle=False, **shards),
        rng=np.random.default_rng(args.seed),
        positions=max(T, source.positions if source else 0),
    )
    if args.resume:
        run.restore(source)
    elif source:
        fill(model.params, source.weights)
    if args.profile:
        profile = Profile(model, run.optimizer, lambda: take_step(run, args.lr))
        print(profile.table(matmul_peak()))
        return
    try:
        train(run)
    except BrokenPipeError:  # nobody reads our output any more
        if run.step > run.saved_step:
            run.save()
        raise


def train(run: "Run") -> None:
    """Train until `--steps`, an interruption, or a loss that is no number.

    Raises:
        RunError: the loss or the gradients are not finite; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step was finished and saved.
    """
    args, model = run.args, run.model
    tokens_per_step = args.grad_accum * model.batch_size * model.seq_len
    gflop_per_step = (
        args.grad_accum * model.config.step_flops(model.batch_size, model.seq_len) / 1e9
    )
    peak = matmul_peak()
    print(f"{model.params.flat.size:,} parameters on {run.corpus}; the run is in {args.out}")
    print(f"this machine multiplies matrices at {peak:.0f} GFLOP/s", flush=True)

    log = Log(args.out / "log.csv", run.step)
    stop = StopRequest()
    while run.step < args.steps:
        begin = time.perf_counter()
        lr = cosine_schedule(run.step, args.lr, args.min_lr, args.warmup, args.steps)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # the loss will show it
                loss, norm = take_step(run, lr)
        except RunError as error:
            raise diverged(run, f"step {run.step + 1}: {error}") from error
        seconds = time.perf_counter() - begin
        run.step += 1
        speed = gflop_per_step / seconds
        print(
            f"step {run.step:>4}/{args.steps}  loss {loss:.4f}  norm {norm:.2f}  lr {lr:.2e}  "
            f"{1e3 * seconds:.0f} ms  {tokens_per_step / seconds:,.0f} tokens/s  "
            f"{speed:.0f} GFLOP/s ({speed / peak:.0%} of peak)",
            flush=True,
        )

        last = run.step == args.steps
        saving = last or stop.requested or run.step % args.save_every == 0
        validating = last or run.step % args.val_every == 0
        # The loss above was that before the update: what is saved has to be seen to work.
        seen = run.validate(args.val_batches if validating else 1) if saving or validating else loss
        if not math.isfinite(seen):
            raise diverged(run, f"step {run.step}: the validation loss is {seen}")
        if validating:
            print(f"step {run.step:>4}/{args.steps}  validation loss {seen:.4f}", flush=True)
        log.write(
            run.step,
            loss,
            seen if validating else None,
            norm,
            lr,
            1e3 * seconds,
            tokens_per_step / seconds,
        )
        if last or run.step % args.sample_every == 0:
            print(f"--- a sample ---\n{run.speak()}\n----------------", flush=True)
        if saving:
            run.save()
            log.draw(args.out / "loss.png", f"{args.preset} on {run.corpus.name}")
        if saving and stop.requested and not last:
            raise KeyboardInterrupt(
                f"stopped after step {run.step}, which is saved; "
                f"go on with: {command(f'{run.kind}_train.py', '--resume', args.out)}"
            )

    print(f"wrote {args.out / CHECKPOINT}, {log.path} and {args.out / 'loss.png'}")
    print(f"let it speak: {command('sample.py', args.out, '--prompt', args.prompt)}")


def diverged(run: "Run", what: str) -> RunError:
    """The error that ends a run whose numbers have become infinite."""
    kept = f"{run.args.out} has step {run.saved_step}" if run.saved_step else "nothing is saved yet"
    return RunError(f"{what}, so training has stopped; {kept}; try a lower --lr")


def take_step(run: "Run", lr: float) -> tuple[float, float]:
    """One step of the optimiser, on the mean of `--grad-accum` batches.

    Returns:
        The loss before the step, and the norm of its gradient.

    Raises:
        RunError: one of them is not finite; the parameters are unchanged.
    """
    n = run.args.grad_accum
    loss = 0.0
    run.model.zero_grad()
    for _ in range(n):
        tokens, targets = run.batches.next_batch()
        loss += run.model.forward(tokens, targets) / n
        run.model.backward(1 / n)
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss}")
    return loss, run.optimizer.step(lr, max_norm=run.args.clip or math.inf)


@dataclass
class Run:
    """All that a run consists of, and all that has to be saved of it."""

    kind: str
    args: argparse.Namespace
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

    def validate(self, most: int) -> float:
        """The mean loss over the first batches of the validation split, at most so many."""
        self.val_batches.reset()
        count = min(most, len(self.val_batches))
        with np.errstate(over="ignore", invalid="ignore"):
            losses = [self.model.forward(*self.val_batches.next_batch()) for _ in range(count)]
        return sum(losses) / count

    def speak(self) -> str:
        """How the model continues `--prompt`."""
        settings = {"temperature": 0.8, "top_p": 0.9, "rng": self.rng}
        prompt = self.args.prompt
        return prompt + "".join(generate(self.model, self.tokenizer, prompt, 64, **settings))

    def save(self) -> None:
        """Write the checkpoint: what `restore` needs to go on as if nothing had happened."""
        settings = {name: value for name, value in vars(self.args).items() if name not in NOT_SAVED}
        meta = {
            "model": self.kind,
            "config": asdict(self.model.config),
            "positions": self.positions,
            "step": self.step,
            "loader": self.batches.state(),
            "rng": self.rng.bit_generator.state,
            "settings": settings | {"data": str(self.corpus.resolve())},
            # JSON holds text, and latin-1 has a character for every byte.
            "tokenizer": self.tokenizer.to_bytes().decode("latin-1"),
        }
        save_checkpoint(self.args.out / CHECKPOINT, meta, self._arrays())
        self.saved_step = self.step

    def restore(self, source: Source) -> None:
        """Go to where the run was when the checkpoint was saved."""
        load_arrays(source.path, self._arrays())
        meta = source.meta
        self.step = self.saved_step = self.optimizer.num_steps = meta["step"]
        self.batches.restore(meta["loader"])
        self.rng.bit_generator.state = meta["rng"]

    def _arrays(self) -> dict[str, np.ndarray]:
        optimizer = self.optimizer
        return {"params": self.model.params.flat, "m": optimizer.m.flat, "v": optimizer.v.flat}


class StopRequest:
    """Ctrl-C, SIGTERM or a closed terminal asks to stop after the step; a second one, at once."""

    def __init__(self) -> None:
        self.requested = False
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        self._signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
        for number in self._signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.requested = True
        for each in self._signals:
            signal.signal(each, signal.default_int_handler)
        print("finishing this step; once more to stop at once, without saving", file=sys.stderr)
