"""A training run: what it consists of, saved and restored."""

import argparse
import itertools
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adam import AdamW
from dataloader import DataLoader
from errors import DivergedError, RunError, UserError
from files import alone_in
from formats.checkpoint import (
    BEST,
    CHECKPOINT,
    OLDER,
    Pieces,
    described,
    drop_older,
    load_arrays,
    save_checkpoint,
)
from load import model_meta
from models.model import Dropout, Model
from sampler import generate
from tokenizer import Tokenizer
from training.progress import Progress
from training.ranks import Ranks
from training.report import COLUMNS, Best, Log, Row, command

NOT_SAVED = ("out", "resume", "init_from", "memory_map", "profile", "batch_size")

MOST_LOSSES = 50  # of the last steps, to compare the next with
MOST_ROLLBACKS = 3  # to the same checkpoint


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
    chat_template: str | None = None  # of the model that it began with
    step: int = 0
    saved_step: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_LOSSES))
    lowest: float = math.inf  # the validation loss of the parameters that are in best.npz
    rollbacks: int = 0
    log: Log | None = None  # on rank 0, while the run is `at_work`
    progress: Progress | None = None  # on every rank, likewise

    def __post_init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: list[Future] = []
        self._newest = self.args.out / CHECKPOINT
        self._last = self._newest  # what the run has saved, or has been restored from
        self._tried_step = 0  # the last that was to be saved
        self._read = self.batches.state()  # what the steps that are done have read
        self._unlogged: list[Row] = []  # what the log lacked when that was saved
        self._byte_lengths = np.array(self.tokenizer.byte_lengths())
        self._bytes_per_token = 0.0  # of what was validated thoroughly; 0 until then

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the run's folder for itself; a failure ends the run after what is done is saved.

        Raises:
            UserError: another run is in the folder, or its log is damaged.
            RunError: the folder cannot be written.
        """
        with ExitStack() as held:
            self.ranks.first(lambda: self._open(held))
            args, visible = self.args, self.ranks.rank == 0
            progress = Progress(args.steps, self.step, args.log_every, visible)
            self.progress = held.enter_context(closing(progress))
            try:
                yield
            except DivergedError:
                raise  # what there is now is worth nothing
            except Exception:
                self._save_first()
                raise

    def _open(self, held: ExitStack) -> None:
        held.enter_context(alone_in(self.args.out))
        self.log = Log(self.args.out / "log.csv", self.step, self._unlogged)

    @property
    def batches_per_step(self) -> int:
        """How many batches all ranks together compute in a step."""
        return self.args.grad_accum * self.ranks.size

    @property
    def step_flops(self) -> int:
        """Floating-point operations in the matrix products of a step, on all ranks together."""
        model = self.model
        per_batch = model.config.step_flops(model.batch_size, model.seq_len)
        return self.batches_per_step * per_batch

    def dropout(self, batch: int) -> Dropout:
        """What is dropped from batch number `batch` of this rank in the step to come.

        Rows are counted as if one rank had all of them in one batch, so that it does not matter how
        a step's sequences are shared out.
        """
        args, ranks = self.args, self.ranks
        batches_before = (self.step * args.grad_accum + batch) * ranks.size + ranks.rank
        return Dropout(args.dropout, args.seed, batches_before * self.model.rows)

    def end_step(self, loss: float, norm: float, lr: float, seconds: float) -> Row:
        """Count a step that has been taken: from now on, it is what `save` saves.

        Returns:
            Its row in the log, to which a validation may be added.
        """
        self.step += 1
        self._read = self.batches.state()
        tokens = self.batches_per_step * self.model.batch_size * self.model.seq_len
        figures = loss, None, None, norm, lr, 1e3 * seconds, tokens / seconds, self.rollbacks
        row = dict(zip(COLUMNS, (self.step, *figures), strict=True))
        if self.log:
            self.log.rows.append(row)
        return row

    def validate(self, thoroughly: bool) -> float:
        """The mean loss over the first batches of the validation split, or over the very first.

        Raises:
            DivergedError: it is not finite.
        """
        self.val_batches.reset()
        count = min(self.args.val_batches, len(self.val_batches)) if thoroughly else 1
        total, windows, num_bytes = 0.0, 0, 0
        for _ in range(count):
            tokens, targets = self.val_batches.next_batch()
            if len(tokens):  # of the last batch, other ranks may have all that there is
                total += len(tokens) * self.model.forward(tokens, targets)
                windows += len(tokens)
                num_bytes += int(self._byte_lengths[targets].sum())
        windows = self.ranks.total(windows)
        loss = self.ranks.total(total) / windows
        if thoroughly:
            self._bytes_per_token = self.ranks.total(num_bytes) / (windows * self.model.seq_len)
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss is {loss}")
        return loss

    def bits_per_byte(self, loss: float) -> float | None:
        """What a loss in nats per token is for the bytes of the text that is validated.

        Whatever the vocabulary, it is the same text, so these can be compared. None before that was
        read, or where it has no bytes, but special tokens only.
        """
        return loss / math.log(2) / self._bytes_per_token if self._bytes_per_token else None

    def describe_loss(self, loss: float) -> str:
        """A validation loss, in nats per token and bits per byte."""
        bits = self.bits_per_byte(loss)
        return f"validation loss {loss:.4f}" + (f", {bits:.4f} bits per byte" if bits else "")

    def speak(self) -> str:
        """How the model continues `--prompt`."""
        settings = {"temperature": 0.8, "top_p": 0.9, "rng": self.rng}
        prompt = self.args.prompt
        pieces = generate(self.model, self.tokenizer, prompt, 64, **settings)
        return (prompt or "") + "".join(pieces)

    def resume_command(self) -> str:
        """What to type to go on with this run."""
        size = self.ranks.size
        launch = f"mpirun -n {size} --bind-to none " if size > 1 else ""
        return f"{launch}{command('train.py', self.kind, '--resume', self.args.out)}"

    def save(self) -> None:
        """Write the checkpoint: what `restore` needs to go on as if nothing had happened.

        With `--checkpoint-async` this begins it, and `finish_saving` waits for its end. Other ranks
        than 0 have nothing to write, and go on: where that matters, `await_saving`.

        Raises:
            RunError: it cannot be written.
        """
        self._tried_step = self.step
        settings = {name: value for name, value in vars(self.args).items() if name not in NOT_SAVED}
        meta = self._description() | {
            "step": self.step,
            "batch_size": self.args.batch_size * self.ranks.size,  # the same for any number of them
            "loader": self._read,
            "rng": self.rng.bit_generator.state,
            "losses": list(self.losses),
            "rollbacks": self.rollbacks,
            "settings": settings | {"data": str(self.corpus.resolve())},
        }
        if self.log:
            # No checkpoint without the rows of its steps, in the log or else in itself.
            self.log.store(sync=True)
            meta["unlogged"] = self.log.unstored
        self._write(lambda: self._write_checkpoint(meta))

    def keep_best(self, loss: float) -> None:
        """Keep the parameters of this step, whose validation loss is the lowest, in best.npz.

        The run goes on where that cannot be written, as stderr then says.
        """
        self.lowest = loss
        meta = self._description() | {"best": Best(self.step, loss)._asdict()}
        if self.ranks.rank == 0:
            self._write(lambda: self._write_best(meta))

    def best(self) -> Best | None:
        """What best.npz has, unless that is of a step which is lost or still to come."""
        try:
            with described(self.args.out / BEST) as meta:
                best = Best(int(meta["best"]["step"]), float(meta["best"]["val_loss"]))
        except UserError:
            return None
        return best if best.step <= self.step else None

    def finish_saving(self) -> None:
        """Wait until all that is being written is whole.

        Raises:
            RunError: it could not be written.
        """
        writing, self._writing = self._writing, []
        for each in writing:
            each.result()

    def finish(self) -> None:
        """Wait until all that the run has to say is in its files.

        Raises:
            RunError: it cannot be written.
        """
        self.finish_saving()
        if self.log:
            self.log.finish()

    def await_saving(self) -> None:
        """Wait until the last checkpoint is whole, on every rank, though only rank 0 writes it."""
        self.finish_saving()
        self.ranks.total(0.0)

    def _description(self) -> dict[str, Any]:
        """What a checkpoint says of the model."""
        config, template = self.model.config, self.chat_template
        return model_meta(self.kind, config, self.positions, self.tokenizer, template)

    def _write(self, write: Callable[[], None]) -> None:
        """Write something now, or with `--checkpoint-async` beside the next step."""
        if self.args.checkpoint_async:
            self._writing.append(self._writer.submit(write))
        else:
            write()

    def _write_checkpoint(self, meta: dict[str, Any]) -> None:
        """Write a checkpoint of parameters and moments as they are."""
        params, state = self.model.params.flat, self.optimizer.state
        if self.args.zero:
            state = {
                name: Pieces(params.size, self.ranks.collect(part, params.size))
                for name, part in state.items()
            }
        if self.ranks.rank == 0:
            arrays = {"params": params, **state}
            # What a run did not go on from is broken, or has gone another way: it is not kept.
            keeping = self.saved_step and self.args.keep and self._last == self._newest
            older = self.args.out / OLDER.format(self.saved_step)
            save_checkpoint(self._newest, meta, arrays, older if keeping else None)
            drop_older(self.args.out, self.saved_step, self.args.keep)
        elif self.args.zero:
            for _ in itertools.chain.from_iterable(each.pieces for each in state.values()):
                pass  # rank 0 gets nothing: this is what sends it this rank's
        self.saved_step, self._last = meta["step"], self._newest

    def _write_best(self, meta: dict[str, Any]) -> None:
        try:
            save_checkpoint(self.args.out / BEST, meta, {"params": self.model.params.flat})
        except RunError as error:
            print(error, file=sys.stderr)

    def _save_first(self) -> None:
        """Save the last step that was done, before a failure ends the run, if that can be."""
        params = self.model.params.flat
        if self.step == self._tried_step or self.optimizer.num_steps != self.step:
            return  # what has failed was to save it, or has come in the middle of an update
        if self.args.zero and self.ranks.size > 1:
            return  # the others, who have a part of it, may wait for something else, or be dead
        if not np.isfinite([params.min(), params.max()]).all():
            return
        try:
            self.save()
            self.finish_saving()
            told = f"step {self.step} is saved; go on with: {self.resume_command()}"
        except Exception as error:
            told = f"step {self.step} could not be saved: {error}"
        print(told, file=sys.stderr)

    def restore(self, path: Path) -> None:
        """Go to where the run was when a checkpoint was saved."""
        params, optimizer = self.model.params.flat, self.optimizer
        load_arrays(path, {"params": params})
        whole = params.size if self.args.zero else None  # of which each rank has a part
        load_arrays(path, optimizer.state, optimizer.part.start, whole)
        with described(path) as meta:
            self.step = self.saved_step = self._tried_step = optimizer.num_steps = int(meta["step"])
            self.batches.restore(meta["loader"])
            self.rng.bit_generator.state = meta["rng"]
            self.losses = deque(map(float, meta["losses"]), self.losses.maxlen)
            self.rollbacks = int(meta["rollbacks"])
            self._unlogged = [{n: row.get(n) for n in COLUMNS} for row in meta.get("unlogged", [])]
        self._last = path
        best = self.best()
        self.lowest = best.val_loss if best else math.inf

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
        if self.log:
            self.log.drop_after(self.step)
        return True
