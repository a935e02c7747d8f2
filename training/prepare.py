"""A training run, put together from the command line."""

import numpy as np

from adam import AdamW
from buffers import num_elements
from dataloader import DataLoader
from errors import UserError
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from load import fill
from models import FAMILIES
from muon import Muon, part_shapes
from training.corpus import find_corpus, fit_to_text
from training.memory import check_memory, draw_memory_map
from training.options import (
    channels,
    check_vocabulary,
    new_config,
    read_arguments,
    usual_prompt,
)
from training.ranks import Ranks
from training.run import Run


def prepare(kind: str, ranks: Ranks) -> Run | None:
    """All that the command line asks to train; None if it asks for a picture only, which is drawn.

    Raises:
        UserError: what it asks cannot be.
    """
    args, source = read_arguments(kind, ranks)
    if args.zero and args.optimizer == "muon":
        raise UserError(
            "--zero gives each rank a part of every number, and --optimizer muon needs whole "
            "matrices; leave out one of them"
        )
    folder = ranks.first(lambda: find_corpus(args.data))
    tokenizer = load_tokenizer(find_tokenizer(folder))

    # The model's numbers: those of the run or checkpoint to go on with, else the preset's.
    if source:
        kind, config = source.kind, source.config  # whose model may be that of several families
        tokenizer = check_vocabulary(source, tokenizer, folder)
    else:
        config = new_config(kind, args, vocab_size=tokenizer.vocab_size)
    fit_to_text(args, folder, config.seq_len, ranks.size)
    B, T = args.batch_size, args.seq_len

    # The tables of shapes tell what will be allocated, to the byte.
    params, acts = config.param_shapes(), config.act_shapes(B, T, recompute=args.recompute)
    if args.lr is None:
        args.lr = 0.4 / channels(config)
        if args.init_from:
            args.lr /= 10
            print(f"fine-tuning: the learning rate is {args.lr:.2e}, a tenth of a new model's")
    if args.min_lr > args.lr:
        raise UserError(f"--min-lr {args.min_lr} is above --lr {args.lr}; lower it")
    if args.prompt is None:
        args.prompt = usual_prompt(tokenizer, T)
    if len(tokenizer.encode_prompt(args.prompt)) > T:
        raise UserError(f"--prompt has more tokens than the {T} that the model sees; shorten it")
    num_params = num_elements(params)
    part = ranks.part(num_params) if args.zero else slice(0, num_params)
    matrices, moments = {}, params
    if args.optimizer == "muon":
        matrices, moments = part_shapes(params)
    elif args.zero:
        moments = {"part": (part.stop - part.start,)}
    buffers = {
        "parameters": params,
        "gradients": params,
        **({"Muon's momentum": matrices} if matrices else {}),
        "Adam's m": moments,
        "Adam's v": moments,
        "activations": acts,
    }
    if args.memory_map:
        if ranks.rank == 0:
            draw_memory_map(buffers, args.memory_map, config.num_layers)
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
    seed = None if source else args.seed
    model = FAMILIES[kind].model(config, B, T, seed=seed, recompute=args.recompute)
    # Without --zero all ranks have the same gradients, but, with other threads, not quite the same
    # norm.
    total = ranks.total if args.zero else ranks.mean
    settings = {"betas": (args.beta1, args.beta2), "weight_decay": args.weight_decay}
    if args.optimizer == "muon":
        optimizer = Muon(model.params, model.grads, total=total, **settings)
    else:
        optimizer = AdamW(model.params, model.grads, part=part, total=total, **settings)
    run = Run(
        kind=kind,
        args=args,
        ranks=ranks,
        corpus=folder,
        tokenizer=tokenizer,
        model=model,
        optimizer=optimizer,
        batches=DataLoader(folder / "train_*.bin", B, T, **shards),
        val_batches=DataLoader(
            folder / "val_*.bin", B, T, shuffle=False, drop_last=False, **shards
        ),
        rng=np.random.default_rng(args.seed),
        positions=max(T, source.positions if source else 0),
        chat_template=source.chat_template if source else None,
    )
    if args.resume:
        run.restore(source.path)
    elif source:
        fill(model.params, source.weights)
    return run
