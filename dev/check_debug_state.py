"""Repeat llm.c's own acceptance test, with our GPT-2 in the place of its C code.

    python dev/check_debug_state.py gpt2_124M.bin gpt2_124M_debug_state.bin

llm.c's train_gpt2.py writes such a pair of files: a model, and what PyTorch computes with it from a
batch. Logits, loss and all 16 gradients must agree with it; then ten steps of AdamW on that batch
must have the losses that they have in PyTorch, which llm.c knows for its own pair. For any other:

    python dev/check_debug_state.py model.bin state.bin --losses 5.27 4.06 ...

with the ten losses of torch.optim.AdamW(model.parameters(), lr=1e-4), all before their step.

Source of the test, its tolerances and its constants: llm.c, test_gpt2.c.
"""

if __name__ == "__main__":
    from errors import run_file

    run_file(__file__)  # imports this file, calls its main, and ends

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from adam import AdamW
from buffers import Buffer, check_available, num_elements
from errors import RunError, UserError
from formats import llm_c
from formats.weights import SINGLE, Parts, Weights
from load import fill
from models.gpt2 import GPT2, GPT2Config

TOLERANCE = 1e-2
GRAD_TOLERANCE = 2e-2
LR = 1e-4
BETAS = 0.9, 0.999
EPS = 1e-8
WEIGHT_DECAY = 0.01
# Of gpt2_124M.bin on the batch in gpt2_124M_debug_state.bin.
LOSSES = (
    5.270007133483887,
    4.059706687927246,
    3.3751230239868164,
    2.8007826805114746,
    2.315382242202759,
    1.8490285873413086,
    1.3946564197540283,
    0.9991465210914612,
    0.6240804195404053,
    0.37651097774505615,
)


def load_model(weights: Weights, B: int, T: int) -> GPT2:
    """The model of these weights, for batches of B sequences of T tokens.

    Raises:
        UserError: the machine has not the memory.
    """
    config = GPT2Config(**weights.config)
    params, acts = num_elements(config.param_shapes()), num_elements(config.act_shapes(B, T))
    check_available(
        4 * (4 * params + acts),  # with gradients and AdamW's two moments
        f"to train this model on {B} sequences of {T} tokens",
        "close other programs, or check a smaller model",
    )
    model = GPT2(config, B, T, seed=None)
    fill(model.params, weights)
    return model


def paired(
    buffer: Buffer, tensors: Mapping[str, Parts]
) -> Iterator[tuple[str, Sequence[np.ndarray], Parts]]:
    """Of each tensor its name, its parts in a buffer of ours, and its parts in a file."""
    for name, parts in tensors.items():
        ours = buffer[name][: parts.shape[0]]  # without wte's padding
        yield name, [ours] if name in SINGLE else ours, parts


def ten_losses(model: GPT2, tokens: np.ndarray, targets: np.ndarray) -> Iterator[float]:
    """Train on one batch; the losses before each of ten steps of llm.c's AdamW."""
    # In llm.c's C code all parameters decay. Ours spares biases and norms, so it shall decay none.
    optimizer = AdamW(model.params, model.grads, LR, BETAS, EPS, weight_decay=0)
    for _ in range(10):
        yield model.forward(tokens, targets)
        model.zero_grad()
        model.backward()
        model.params.flat *= 1 - LR * WEIGHT_DECAY
        optimizer.step()


def check_pass(model: GPT2, state: llm_c.DebugState) -> list[bool]:
    """Compare one forward and one backward pass; whether each of the 18 checks holds."""
    loss = model.forward(state.tokens, state.targets)
    logits = model.acts.logits.reshape(state.logits.shape)
    verdicts = [
        report("logits", difference(logits, state.logits), TOLERANCE),
        report("loss", abs(loss - state.loss), TOLERANCE),
    ]
    model.zero_grad()
    model.backward()
    for name, ours, theirs in paired(model.grads, state.grads):
        found = [difference(*parts) for parts in zip(ours, theirs, strict=True)]
        verdicts.append(report(f"d{name}", float(np.max(found)), GRAD_TOLERANCE))
    return verdicts


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference; NaN if there is a NaN."""
    return float(np.abs(ours - theirs).max())


def report(check: str, found: float, tolerance: float) -> bool:
    """Print one check's line; whether it holds."""
    holds = found < tolerance  # not so for NaN
    verdict = "ok" if holds else "WRONG"
    print(f"{check:<14} {found:>18.1e} {tolerance:>10.0e}  {verdict}", flush=True)
    return holds


def main() -> None:
    args = make_parser().parse_args()
    for path in (args.model, args.state):
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    weights = llm_c.read(args.model)
    state = llm_c.read_debug_state(args.state, weights.config)
    model = load_model(weights, *state.tokens.shape)
    # As far as can be told, this is llm.c's own pair.
    own = model.config == GPT2Config() and abs(state.loss - LOSSES[0]) < TOLERANCE
    expected = args.losses or (LOSSES if own else None)

    print(f"{'check':<14} {'largest difference':>18} {'tolerance':>10}")
    verdicts = check_pass(model, state)
    losses = ten_losses(model, state.tokens, state.targets)
    if expected:
        for step, both in enumerate(zip(losses, expected, strict=True)):
            verdicts.append(report(f"loss, step {step}", difference(*both), TOLERANCE))
    else:
        print("ten losses:", *(f"{loss:.6f}" for loss in losses))
        print("They were not compared: llm.c tells those of its gpt2_124M.bin only. See --losses.")

    if not all(verdicts):
        failed = f"{verdicts.count(False)} of {len(verdicts)} checks failed for {args.model}"
        if weights.tensors["wte"].dtype != np.float32:
            failed += (
                "; its weights are bfloat16, and llm.c computes the state before it rounds them: "
                "check the float32 model"
            )
        raise RunError(failed)
    print(f"OK: all {len(verdicts)} checks hold")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Repeat llm.c's own acceptance test with the GPT-2 of this project."
    )
    parser.add_argument("model", type=Path, help="a model that llm.c's train_gpt2.py has written")
    parser.add_argument("state", type=Path, help="the debug state that it has written with it")
    parser.add_argument(
        "--losses",
        type=float,
        nargs=10,
        metavar="LOSS",
        help="of torch.optim.AdamW(model.parameters(), lr=1e-4) on the state's batch, before each "
        "of ten steps (default: llm.c's, for its gpt2_124M.bin; for others they are not compared)",
    )
    return parser
