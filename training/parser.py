"""The options of train.py, each with its help."""

import argparse
import inspect
import re
from pathlib import Path
from typing import get_args, get_type_hints

from errors import at_least
from models import FAMILIES
from models.model import RECOMPUTE


def make_parser(kind: str) -> argparse.ArgumentParser:
    family = FAMILIES[kind]
    parser = argparse.ArgumentParser(
        description=f"Train a {family.title} in plain NumPy. Without arguments: a small one, on "
        "Python's own documentation, in under three minutes on two cores.",
    )
    default = "(default: %(default)s)"

    model = parser.add_argument_group("the model")
    model.add_argument(
        "--preset", metavar="NAME", help=f"{', '.join(family.presets)} (default: the first)"
    )
    model.add_argument(
        "--init-from",
        type=Path,
        metavar="PATH",
        help="fine-tune this instead: a run, or a model's file or folder of any format",
    )

    add_sizes(parser, family.config)

    data = parser.add_argument_group("the data")
    data.add_argument(
        "--data",
        metavar="NAME",
        help="a corpus in data/, or any folder that a script in dev/data made (default: the one "
        "made last; if there is none, pydocs is made now)",
    )
    data.add_argument(
        "--batch-size",
        type=at_least(1),
        metavar="B",
        help="sequences at once, on each rank (default: 8, but no more than a small text has)",
    )
    data.add_argument(
        "--seq-len",
        type=at_least(1),
        metavar="T",
        help="tokens in a sequence, and positions of a new model (default: the preset's or the "
        "model's positions, but for a sequence at most 256, and no more than a small text has)",
    )
    data.add_argument(
        "--grad-accum",
        type=at_least(1),
        default=1,
        metavar="N",
        help=f"batches in one step, on each rank {default}",
    )
    data.add_argument(
        "--recompute",
        choices=RECOMPUTE,
        default="none",
        help="what the backward pass makes again instead of remembering it, to save memory: the "
        "outputs of norms and activation functions, or whole blocks but for their input, queries, "
        f"keys and values {default}",
    )

    optimiser = parser.add_argument_group("the optimiser")
    optimiser.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="AdamW; or Muon for matrices and AdamW for all else: it learns more in a step, which "
        f"takes longer {default}",
    )
    optimiser.add_argument(
        "--steps", type=at_least(1), default=700, metavar="N", help=f"in all {default}"
    )
    optimiser.add_argument(
        "--lr",
        type=at_least(0.0),
        help="highest learning rate (default: 0.4 / channels, since wider models need lower ones; "
        "with --init-from a tenth of that)",
    )
    optimiser.add_argument(
        "--min-lr",
        type=at_least(0.0),
        default=0.0,
        help=f"what the learning rate falls to, just after the last of --decay-steps {default}",
    )
    optimiser.add_argument(
        "--schedule",
        choices=("cosine", "wsd"),
        default="cosine",
        help="how the learning rate falls: along a cosine from the warm-up on, or straight, after "
        f"it was level (warm-up, stable, decay) {default}",
    )
    optimiser.add_argument(
        "--cooldown",
        type=at_least(0),
        metavar="N",
        help="steps that the fall takes with --schedule wsd (default: half of --steps)",
    )
    optimiser.add_argument(
        "--warmup",
        type=at_least(0),
        metavar="N",
        help="steps up to the highest (default: a tenth of --steps)",
    )
    optimiser.add_argument(
        "--decay-steps",
        type=at_least(1),
        metavar="N",
        help="steps until the learning rate has fallen to --min-lr, where it stays (default: "
        "--steps)",
    )
    optimiser.add_argument("--weight-decay", type=at_least(0.0), default=0.1, help=default)
    optimiser.add_argument("--beta1", type=at_least(0.0, below=1.0), default=0.9, help=default)
    optimiser.add_argument("--beta2", type=at_least(0.0, below=1.0), default=0.99, help=default)
    optimiser.add_argument(
        "--dropout",
        type=at_least(0.0, below=1.0),
        default=0.0,
        metavar="P",
        help="probability with which an element of the embedding, and of what a layer adds to it, "
        f"is left out of a training step: against over-fitting, where text is read often {default}",
    )
    optimiser.add_argument(
        "--clip",
        type=at_least(0.0),
        default=1.0,
        help=f"largest gradient norm, 0 for any {default}",
    )

    run = parser.add_argument_group("the run")
    run.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where checkpoint.npz, best.npz, log.csv and loss.png go (default: in runs/, named "
        "after the preset or the sizes)",
    )
    run.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR from its newest whole checkpoint, or from the one in a "
        "file, with its settings but for those given here",
    )
    run.add_argument(
        "--seed", type=at_least(0), default=0, help=f"of weights, data, samples {default}"
    )
    run.add_argument(
        "--log-every",
        type=at_least(1),
        metavar="N",
        help="steps between the lines of a run (default: 1 at first, and ever more, up to 100); "
        "log.csv has every step",
    )
    run.add_argument(
        "--val-every",
        type=at_least(0),
        default=50,
        metavar="N",
        help=f"steps between validations, 0 for none {default}",
    )
    run.add_argument(
        "--val-batches",
        type=at_least(1),
        default=20,
        metavar="N",
        help=f"at most, each time {default}",
    )
    run.add_argument(
        "--sample-every",
        type=at_least(0),
        default=100,
        metavar="N",
        help=f"steps between samples, 0 for none {default}",
    )
    run.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what samples continue (default: The; where the vocabulary has not these letters, "
        "samples begin a text)",
    )
    run.add_argument(
        "--save-every",
        type=at_least(1),
        default=100,
        metavar="N",
        help=f"steps between checkpoints {default}",
    )
    run.add_argument(
        "--keep",
        type=at_least(0),
        default=1,
        metavar="N",
        help=f"checkpoints before the newest that are kept {default}",
    )
    run.add_argument(
        "--checkpoint-async",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=f"write checkpoints while the next step is computed, up to its update {default}",
    )
    run.add_argument(
        "--on-spike",
        choices=("ignore", "stop", "rollback"),
        default="ignore",
        help="what to do when the loss jumps: nothing, as long as it is a number; or stop; or go "
        f"back to the last checkpoint and leave out the batches since {default}",
    )
    run.add_argument(
        "--zero",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="under mpirun, let each rank keep Adam's moments for its part of the parameters only "
        f"(ZeRO, stage 1) {default}",
    )
    run.add_argument(
        "--memory-map",
        type=Path,
        metavar="FILE",
        help="draw what lies where in the flat buffers, to one scale, into this picture, and stop",
    )
    run.add_argument(
        "--profile",
        action="store_true",
        help="print where the time of a step goes, layer by layer, and stop",
    )
    return parser


def add_sizes(parser: argparse.ArgumentParser, config: type) -> None:
    """An option for each number of a config, with the words of the class's own docstring."""
    group = parser.add_argument_group("sizes of its own, by default the preset's")
    attributes = inspect.getdoc(config).partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    words = {name: " ".join(text.split()) for name, text in entries}
    for name, kind in size_fields(config).items():
        if kind is bool:
            group.add_argument(
                flag(name), action=argparse.BooleanOptionalAction, default=None, help=words[name]
            )
        else:
            number, metavar = (at_least(0.0), "X") if kind is float else (at_least(1), "N")
            group.add_argument(flag(name), type=number, metavar=metavar, help=words[name])


def size_fields(config: type) -> dict[str, type]:
    """The numbers of a config that are options, and their types; two others follow from the data.

    What is no number, as a scaling of rotations, is as the preset has it.
    """
    hints = get_type_hints(config).items()
    types = {name: next(iter(get_args(hint)), hint) for name, hint in hints}  # int of int | None
    numbers = {name: kind for name, kind in types.items() if kind in (bool, int, float)}
    return {name: numbers[name] for name in numbers if name not in ("vocab_size", "seq_len")}


def flag(name: str) -> str:
    """The option that sets args.`name`."""
    return "--" + name.replace("_", "-")
