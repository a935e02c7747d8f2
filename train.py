"""Train a model of any family.

    python train.py gpt2                        which is what gpt2_train.py does
    python train.py llama2 --preset stories15M --data tinystories --batch-size 16
    python train.py qwen3                       a small one of its kind
    python train.py gpt2 --help                 what can be asked of it
    python train.py --list                      the runs that there are, and how good they are

`prepare` in training/prepare.py puts a run together, and `train` is the loop. Under MPI every rank
goes through both; only rank 0 writes.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import math
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import numpy as np
from tqdm import tqdm

from buffers import num_elements
from errors import DivergedError, UserError, on_stop, print_to_nowhere
from formats.checkpoint import BEST, CHECKPOINT
from models import FAMILIES
from models.model import unpadded_shapes
from training import listing
from training.curves import draw_losses
from training.options import learning_rate
from training.prepare import prepare
from training.ranks import find_ranks, started_by_mpi
from training.report import Row, command
from training.run import Run
from training.timing import Peak, Profile

# A spike is a loss that is so many standard deviations, and so many nats, above the mean of the
# losses before it.
SPIKE_DEVIATIONS, SPIKE_NATS = 6, 0.5
SPIKE_LOSSES = 20  # that mean needs

LIST = "--list"  # in the place of a family's name


def main(kind: str | None = None) -> None:
    """Train a model of the family `kind`, or of the one that is the command line's first word."""
    kind = kind or _first_word()
    if kind == LIST:
        return listing.main()
    stop = StopRequest(patient=started_by_mpi())
    with find_ranks() as ranks:
        run = prepare(kind, ranks)
        if run and run.args.profile:
            profile = Profile(run.model, run.optimizer, lambda: take_step(run, run.args.lr))
            print(profile.table(Peak()))
        elif run:
            if ranks.total(stop.requested):
                raise KeyboardInterrupt("stopped before the first step")
            with run.at_work():
                train(run, stop)


def train(run: Run, stop: "StopRequest") -> None:
    """Train until `--steps`, an interruption, or a loss that is no number.

    Raises:
        RunError: the loss or the gradients are not finite, or the loss has jumped where that is to
            stop the run; the last checkpoint stays. Or a file cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM came, or nobody reads the output any more; the step was
            finished and saved.
    """
    args, ranks = run.args, run.ranks
    peak = Peak(ranks.total)
    introduce(run, peak)
    stop.patient = True  # from now on there is something to lose
    if args.on_spike == "rollback" and run.step == 0:
        run.save()  # something to go back to
    if args.init_from and args.val_every and run.step == 0:
        loss = run.validate(thoroughly=True)
        run.progress.tell(f"before the first step  {run.describe_loss(loss)}")
        run.keep_best(loss)
    while run.step < args.steps:
        step = run.step + 1
        last = step == args.steps
        validating = is_due(args.val_every, step, last)
        lr = learning_rate(args, run.step)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # the loss will show it
                begin = time.perf_counter()
                loss, norm = take_step(run, lr)
                row = run.end_step(loss, norm, lr, time.perf_counter() - begin)
                stopping = ranks.total(stop.requested) > 0
                saving = last or stopping or step % args.save_every == 0
                # That loss was the one before the update: what is saved has to be seen to work.
                seen = run.validate(validating) if saving or validating else None
        except DivergedError as error:
            recover(run, step, error)
            continue
        best = validating and seen < run.lowest
        # Else going back could lose the step that best.npz is of.
        saving = saving or (best and args.on_spike == "rollback")

        run.progress.at(step)
        told = [describe_step(run, row, peak)] if run.progress.is_due() else []
        if validating:
            row["val_loss"], row["val_bits_per_byte"] = seen, run.bits_per_byte(seen)
            told += [f"step {step:>4}/{args.steps}  {run.describe_loss(seen)}"]
        if run.log:
            run.log.store()
            if is_due(args.sample_every, step, last):
                told += ["--- a sample ---", run.speak(), "----------------"]
        tell(run, told, stop)
        if best:
            run.keep_best(seen)
        if saving:
            run.save()
            draw(run)
        if stopping and not last:
            run.await_saving()
            raise KeyboardInterrupt(
                f"stopped after step {step}, which is saved; go on with: {run.resume_command()}"
            )

    run.finish()
    print(f"wrote {args.out / CHECKPOINT}, {args.out / 'log.csv'} and {args.out / 'loss.png'}")
    prompt = ["--prompt", args.prompt] if args.prompt else []
    print(f"let it speak: {command('sample.py', args.out, *prompt)}")
    kept = run.best()
    if kept and kept.val_loss == run.lowest:
        print(f"best {run.describe_loss(kept.val_loss)}, at step {kept.step}: {args.out / BEST}")


def take_step(run: Run, lr: float) -> tuple[float, float]:
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
    for batch in range(args.grad_accum):
        tokens, targets = run.batches.next_batch()
        loss += model.forward(tokens, targets, drop=run.dropout(batch)) / n
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


def is_due(every: int, step: int, last: bool) -> bool:
    """Whether what happens every so many steps, and after the last, happens now; 0 means never."""
    return every > 0 and (last or step % every == 0)


def is_spike(loss: float, losses: Sequence[float]) -> bool:
    """Whether a loss stands out above those before it."""
    if len(losses) < SPIKE_LOSSES:
        return False
    usual, deviation = statistics.mean(losses), statistics.stdev(losses)
    return loss > usual + max(SPIKE_DEVIATIONS * deviation, SPIKE_NATS)


def recover(run: Run, step: int, error: DivergedError) -> None:
    """Go back to the last checkpoint, if that is what `--on-spike` says.

    Raises:
        DivergedError: it says something else, or going back has not helped.
    """
    args = run.args
    reason = f"step {step}: {error}"
    if args.on_spike != "rollback" or not run.roll_back():
        kept = f"{args.out} has step {run.saved_step}" if run.saved_step else "nothing is saved yet"
        raise DivergedError(
            f"{reason}, so training has stopped; {kept}; try a lower --lr"
        ) from error
    print(f"{reason}; back to step {run.step}, without the batches since then", flush=True)


def introduce(run: Run, peak: Peak) -> None:
    """Say what is about to be trained, and about how long it takes."""
    num_params = num_elements(unpadded_shapes(run.model.config))
    padding = run.model.params.flat.size - num_params
    padded = f" (and {padding:,} numbers of padding)" if padding else ""
    print(f"{num_params:,} parameters{padded} on {run.corpus}; the run is in {run.args.out}")
    steps = run.args.steps - run.step
    time_in_all = tqdm.format_interval(steps * run.step_flops / (peak.speed / 2 * 1e9))
    print(
        f"this machine multiplies matrices at {peak.speed:.0f} GFLOP/s; at half of that, as is "
        f"usual, {steps} steps take {time_in_all}",
        flush=True,
    )
    if to_know := run.ranks.describe():
        print(to_know, flush=True)


def describe_step(run: Run, row: Row, peak: Peak) -> str:
    """A step in one line."""
    speed = run.step_flops / (row["ms"] / 1e3) / 1e9
    return (
        f"step {row['step']:>4}/{run.args.steps}  loss {row['train_loss']:.4f}  "
        f"norm {row['grad_norm']:.2f}  lr {row['learning_rate']:.2e}  {row['ms']:.0f} ms  "
        f"{row['tokens_per_second']:,.0f} tokens/s  {peak.share(speed)}  {run.progress.left()} left"
    )


def tell(run: Run, lines: Sequence[str], stop: "StopRequest") -> None:
    """Print lines; where that is no longer possible, stop after the next step."""
    try:
        if lines:
            run.progress.tell(*lines)
    except OSError:  # who read them has gone away, or the disk that they go to is full
        print_to_nowhere()
        stop.requested = True


def draw(run: Run) -> None:
    """Draw the losses so far; a picture that cannot be drawn is no reason to stop."""
    if run.log:
        try:
            title = f"{run.args.out.name} on {run.corpus.name}"
            draw_losses(run.log.rows, run.args.out / "loss.png", title)
        except Exception as error:
            print(f"without a new picture: {error}", file=sys.stderr)


class StopRequest:
    """Ctrl-C, SIGTERM and the like ask to stop after the step; a second one, at once.

    Args:
        patient: whether there is something to wait for. Where no step has begun there is not, but
            ranks must stop together.
    """

    def __init__(self, patient: bool) -> None:
        self.patient, self.requested = patient, False
        on_stop(self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.patient:
            raise KeyboardInterrupt
        self.requested = True
        on_stop(signal.default_int_handler)
        with suppress(OSError):  # the terminal may be what has gone
            print("finishing this step; once more to stop at once, without saving", file=sys.stderr)


def _first_word() -> str:
    """Take the family's name from the command line, or `LIST`."""
    words = sys.argv[1:2]
    if words in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    if not words or words[0] not in (*FAMILIES, LIST):
        raise UserError(
            f"the first word must be the family of the model, one of {', '.join(FAMILIES)}, or "
            f"{LIST}; for example python train.py {next(iter(FAMILIES))} --help"
        )
    sys.argv[:2] = [f"{sys.argv[0]} {words[0]}"]  # as the usage is to name it
    return words[0]
