"""What train.py is asked to do: what its options mean, together and for a model and a text."""

import argparse
import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from adam import cosine_schedule, warmup_stable_decay
from errors import UserError
from formats.checkpoint import described, find_whole, list_checkpoints
from load import Source, fits, open_model, tell_spare_rows
from models import FAMILIES
from tokenizer import Tokenizer
from training.parser import flag, make_parser, size_fields
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
        return args, source

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


def channels(config: Any) -> int:
    """The width of a model's residual stream, which is that of its embedding."""
    return config.param_shapes()["wte"][1]


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
