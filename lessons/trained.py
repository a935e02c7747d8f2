"""A small GPT-2 that the lessons can look into: trained once, then kept in runs/lessons/."""

from pathlib import Path

import numpy as np

from adam import AdamW, cosine_schedule
from dataloader import DataLoader
from dev.data import pydocs
from formats.checkpoint import CHECKPOINT
from formats.tokenizer_files import find_tokenizer, load_tokenizer
from load import open_model, save_model
from models.gpt2 import GPT2, GPT2Config
from tokenizer import Tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "lessons"
STEPS, BATCH_SIZE, SEQ_LEN, LEARNING_RATE = 1600, 8, 64, 5e-3


def trained_gpt2() -> tuple[GPT2, Tokenizer]:
    """A GPT-2 of 2 layers, 4 heads and 64 channels, and its tokenizer.

    It has read Python's documentation, in 513 different tokens: with few, it learns in seconds
    what follows what. The first call trains it; every further one, in any lesson, loads it.
    """
    if not (FOLDER / CHECKPOINT).is_file():
        print("training a small GPT-2 for the lessons: about 25 seconds, this once", flush=True)
        train()
    source = open_model(FOLDER)
    return source.load(), source.tokenizer


def train() -> None:
    """Train the model and write its checkpoint."""
    corpus = FOLDER / "pydocs"
    if not find_tokenizer(corpus):
        pydocs.prepare(corpus, "bpe:256")
    tokenizer = load_tokenizer(find_tokenizer(corpus))
    config = GPT2Config(SEQ_LEN, tokenizer.vocab_size, num_layers=2, num_heads=4, channels=64)
    model = GPT2(config, BATCH_SIZE)
    # GPT-2 begins with attention that is nearly even, and no idea of near and far. Large models
    # have the time to find both; this one begins with larger queries, keys and values and with the
    # sinusoids of Vaswani et al. 2017, section 3.5, and shows distinct heads within a minute.
    model.params.qkvw[:] *= 6
    angles = np.arange(SEQ_LEN)[:, None] * 1000.0 ** -np.linspace(0, 1, 32, endpoint=False)
    model.params.wpe[:] = 0.028 * np.hstack([np.sin(angles), np.cos(angles)])

    optimizer = AdamW(model.params, model.grads, betas=(0.9, 0.99), weight_decay=0.1)
    shards, vocab_size = corpus / "train_*.bin", tokenizer.vocab_size
    batches = DataLoader(shards, BATCH_SIZE, SEQ_LEN, vocab_size=vocab_size)
    for step in range(STEPS):
        model.forward(*batches.next_batch())
        model.zero_grad()
        model.backward()
        optimizer.step(cosine_schedule(step, LEARNING_RATE, 0, STEPS // 10, STEPS), max_norm=1.0)
    save_model(FOLDER, model, tokenizer)
