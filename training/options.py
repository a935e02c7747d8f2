"""What train.py is asked to do: its options, and what they refer to."""

import argparse
import inspect
import itertools
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from adam import cosine_schedule, warmup_stable_decay
from errors import UserError, at_least
from formats.checkpoint import described, find_whole, list_checkpoints
from load import Source, fits, open_model, tell_spare_rows
from models import FAMILIES
from models.model import RECOMPUTE
from tokenizer import Tokenizer
from training.ranks import Ranks


def read_arguments(kind: str, ranks: Ranks) -> tuple[argparse.Namespace, Source | None]:
    """The settings, and the model to start from, if one was named; the same on every rank.

    Raises:
        UserError: settings contradict each other, or name what is not there.
    """
    family, parser = FAMILIES[kind], make_parser(kind)
    args, source = parser.parse_args(), None
    sizes = size_fields(family.config)
    if args.resume and list_checkpoints(args.resume):
        args.resume = ranks.first(lambda: find_whole(args.resume))
    elif args.resume and (args.resume / "log.csv").is_file():
        raise UserError(
            f"{args.resume} has no checkpoint yet; begin that run anew with --out {args.resume}"
        )
    origin = args.resume or args.init_from
    if origin:
        if unwanted := [name for name in ("preset", *sizes) if getattr(args, name) is not None]:
            raise UserError(f"the model is the one in {origin}; leave out {flag(unwanted[0])}")
        source = open_model(origin)
        if FAMILIES[source.kind].model is not family.model:
            raise UserError(
                f"{origin} holds a {FAMILIES[source.kind].title}; use python train.py {source.kind}"
            )
    if args.resume:
        if args.init_from or args.out:
            raise UserError("--resume goes on with a run; leave out --init-from and --out")
        if source.meta is None:
            raise UserError(f"{args.resume} is a model and no run; fine-tune it by --init-from")
        with described(source.path) as meta:
            # The run's settings take the place of the defaults; what is given here precedes both.
            saved, _ = parser.parse_known_args(as_words(meta["settings"]))
            parser.set_defaults(**vars(saved))
            args = parser.parse_args()
            args.out = source.path.parent
            if args.optimizer != saved.optimizer:
                raise UserError(
                    f"{args.resume} is a run of {saved.optimizer}, whose state it goes on with; "
                    "leave out --optimizer, or begin a run from its parameters by --init-from"
                )
            if args.batch_size is None:
                args.batch_size, rest = divmod(int(meta["batch_size"]), ranks.size)
                if rest:
                    raise UserError(
                        f"{ranks.size} ranks cannot share the {meta['batch_size']} sequences of a "
                        "batch of this run evenly; give the --batch-size of each"
                    )
            step = int(meta["step"])
            if args.steps <= step:
                raise UserError(
                    f"{args.resume} has done its {step} steps; give a higher --steps to go on"
                )
            tell_schedule(args, parser.parse_args([]), step)
        check_zero(args)
        return args, source

    check_zero(args)
    args.preset = args.preset or next(iter(family.presets))
    if args.preset not in family.presets:
        known = ", ".join(family.presets)
        raise UserError(f"there is no preset {args.preset!r}; choose from {known}")
    if args.warmup is None:
        args.warmup = args.steps // 10
    if args.cooldown is None:
        args.cooldown = args.steps // 2
    if not args.out:
        suffixes = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        name = source.name if source else args.preset
        if any(getattr(args, size) is not None for size in sizes):
            config = new_config(kind, args)
            name = f"{kind}-{config.num_layers}x{channels(config)}"
        folders = (Path("runs", name + suffix) for suffix in suffixes)
        args.out = ranks.first(lambda: next(each for each in folders if not each.exists()))
    elif args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; name a folder for the run")
    elif list_checkpoints(args.out):
        raise UserError(
            f"{args.out} holds a run already; go on with it by --resume {args.out}, or choose "
            "another --out"
        )
    return args, source


def check_zero(args: argparse.Namespace) -> None:
    """Refuse to cut the matrices that Muon needs whole.

    Raises:
        UserError: that was asked for.
    """
    if args.zero and args.optimizer == "muon":
        raise UserError(
            "--zero gives each rank a part of every number, and --optimizer muon needs whole "
            "matrices; leave out one of them"
        )


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """The learning rate of a step, from 0, as the settings of a run have it."""
    steps = args.decay_steps or args.steps
    if args.schedule == "cosine":
        return cosine_schedule(step, args.lr, args.min_lr, args.warmup, steps)
    return warmup_stable_decay(step, args.lr, args.min_lr, args.warmup, args.cooldown, steps)


def tell_schedule(args: argparse.Namespace, before: argparse.Namespace, step: int) -> None:
    """Say what becomes of the learning rate where a run gets more steps than it had `before`."""
    was, will = learning_rate(before, step), learning_rate(args, step)
    if args.steps == before.steps or was == will:
        return
    old = before.decay_steps or before.steps
    print(
        f"the learning rate goes on at {will:.2e}: its schedule takes {args.steps} steps now, and "
        f"at this step of {old} it was {was:.2e}; --decay-steps {old} keeps to that end"
    )


def new_config(kind: str, args: argparse.Namespace, **numbers: Any) -> Any:
    """The config of a new model: the preset's, but for the sizes given and these `numbers`.

    Raises:
        UserError: there can be no model of these sizes.
    """
    family = FAMILIES[kind]
    config = family.presets[args.preset]
    given = {name: getattr(args, name) for name in ("seq_len", *size_fields(family.config))}
    given = {name: value for name, value in given.items() if value is not None}
    # What followed from other numbers in the preset follows from the new ones.
    optional = (field.name for field in fields(config) if field.default is None)
    derived = {name: None for name in optional if replace(config, **{name: None}) == config}
    return replace(config, **{**derived, **given, **numbers})


def size_fields(config: type) -> dict[str, type]:
    """The numbers of a config that are options, and their types; two others follow from the data.

    What is no number, as a scaling of rotations, is as the preset has it.
    """
    hints = get_type_hints(config).items()
    types = {name: next(iter(get_args(hint)), hint) for name, hint in hints}  # int of int | None
    numbers = {name: kind for name, kind in types.items() if kind in (bool, int, float)}
    return {name: numbers[name] for name in numbers if name not in ("vocab_size", "seq_len")}


def channels(config: Any) -> int:
    """The width of a model's residual stream, which is that of its embedding."""
    return config.param_shapes()["wte"][1]


def flag(name: str) -> str:
    """The option that sets args.`name`."""
    return "--" + name.replace("_", "-")


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """What to type for saved settings, which argparse then checks as those of a person."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif value is not None:
            words.append(f"{flag(name)}={value}")
    return words


def check_vocabulary(source: Source, tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The model's tokenizer, or the corpus's `tokenizer` if nobody knows the model's.

    Raises:
        UserError: the corpus is in another vocabulary than the model's.
    """
    own, rows = source.tokenizer, source.config.vocab_size
    if own and own != tokenizer:
        raise UserError(
            f"{folder} has another vocabulary than {source.path} was trained with; prepare it "
            f"again with --tokenizer {source.path}"
        )
    if not own and not fits(tokenizer, rows):
        raise UserError(
            f"{folder} has a vocabulary of {tokenizer.vocab_size:,} tokens, and {source.path} one "
            f"of {rows:,}; prepare it again with that model's --tokenizer, or, if this is it, say "
            f"so: convert.py {source.path} NEW.npz --tokenizer {folder / tokenizer.file_name}"
        )
    tokenizer = own or tokenizer
    tell_spare_rows(tokenizer, rows)
    return tokenizer


def usual_prompt(tokenizer: Tokenizer, seq_len: int) -> str | None:
    """What samples continue, if that can be written; None where they begin a text."""
    with suppress(UserError):
        if len(tokenizer.encode_prompt("The")) <= seq_len:
            return "The"
    return None


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
