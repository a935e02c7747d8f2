"""Train a model of any family.

    python train.py gpt2                        which is what gpt2_train.py does
    python train.py llama2 --preset stories15M --data tinystories --batch-size 16

`prepare` in training/run.py puts a run together, and `train` is the loop. Under MPI every rank goes
through both; only rank 0 writes.
"""

import math
import signal
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from errors import DivergedError, RunError, UserError, print_to_nowhere, run_program
from formats.checkpoint import CHECKPOINT
from models import FAMILIES
from training.options import learning_rate
from training.ranks import find_ranks
from training.report import Log, command, matmul_peak
from training.run import Run, prepare
from training.timing import Profile

# A spike is a loss that is so many standard deviations, and so many nats, above the mean of the
# losses before it.
SPIKE_DEVIATIONS, SPIKE_NATS = 6, 0.5
SPIKE_LOSSES = 20  # that mean needs


def main(kind: str | None = None) -> None:
    """Train a model of the family `kind`, or of the one that is the command line's first word."""
    kind = kind or _family()
    with find_ranks() as ranks:
        run = prepare(kind, ranks)
        if run and run.args.profile:
            profile = Profile(run.model, run.optimizer, lambda: take_step(run, run.args.lr))
            print(profile.table(matmul_peak()))
        elif run:
            train(run)


def train(run: Run) -> None:
    """Train until `--steps`, an interruption, or a loss that is no number.

    Raises:
        RunError: the loss or the gradients are not finite, or the loss has jumped where that is to
            stop the run; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM came, or nobody reads the output any more; the step was
            finished and saved.
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

    log = ranks.first(lambda: Log(args.out / "log.csv", run.step))
    launch = f"mpirun -n {ranks.size} --bind-to none " if ranks.size > 1 else ""
    stop = StopRequest()
    if args.on_spike == "rollback" and run.step == 0:
        run.save()  # something to go back to
    while run.step < args.steps:
        step = run.step + 1
        last = step == args.steps
        validating = last or step % args.val_every == 0
        lr = learning_rate(args, run.step)
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
            if ranks.rank == 0:
                log.drop_after(run.step)
            continue
        run.step = step
        speed = gflop_per_step / seconds
        told = [
            f"step {step:>4}/{args.steps}  loss {loss:.4f}  norm {norm:.2f}  lr {lr:.2e}  "
            f"{1e3 * seconds:.0f} ms  {tokens_per_step / seconds:,.0f} tokens/s  "
            f"{speed:.0f} GFLOP/s ({speed / peak:.0%} of peak)"
        ]
        if validating:
            told += [f"step {step:>4}/{args.steps}  validation loss {seen:.4f}"]
        if ranks.rank == 0:
            log.write(
                step,
                loss,
                seen if validating else None,
                norm,
                lr,
                1e3 * seconds,
                tokens_per_step / seconds,
                run.rollbacks,
                sync=saving,  # no checkpoint without the rows of its steps
            )
            if last or step % args.sample_every == 0:
                told += ["--- a sample ---", run.speak(), "----------------"]
        try:
            print(*told, sep="\n", flush=True)
        except BrokenPipeError:
            print_to_nowhere()
            stop.requested = True
        if saving:
            run.save()
            if ranks.rank == 0:
                log.draw(args.out / "loss.png", f"{args.out.name} on {run.corpus.name}")
        if stopping and not last:
            run.await_saving()
            raise KeyboardInterrupt(
                f"stopped after step {step}, which is saved; go on with: "
                f"{launch}{command('train.py', run.kind, '--resume', args.out)}"
            )

    run.finish_saving()
    print(f"wrote {args.out / CHECKPOINT}, {args.out / 'log.csv'} and {args.out / 'loss.png'}")
    print(f"let it speak: {command('sample.py', args.out, '--prompt', args.prompt)}")


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
    if len(losses) < SPIKE_LOSSES:
        return False
    usual, deviation = statistics.mean(losses), statistics.stdev(losses)
    return loss > usual + max(SPIKE_DEVIATIONS * deviation, SPIKE_NATS)


def recover(run: Run, error: DivergedError) -> None:
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


def _family() -> str:
    """Take the family's name from the command line."""
    words = sys.argv[1:2]
    if not words or words[0] not in FAMILIES:
        raise UserError(
            f"the first word must be the family of the model, one of {', '.join(FAMILIES)}; for "
            f"example python train.py {next(iter(FAMILIES))} --help"
        )
    sys.argv[:2] = [f"{sys.argv[0]} {words[0]}"]  # as the usage is to name it
    return words[0]


if __name__ == "__main__":
    run_program(main)
