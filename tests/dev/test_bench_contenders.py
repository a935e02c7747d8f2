"""The benchmarks with stand-ins for the programs in C that they measure."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dataloader import DataLoader
from dev.bench import sample
from dev.bench.train import batch
from errors import RunError
from formats import llm_c
from models.gpt2 import GPT2, PRESETS
from tokenizer import LlamaTokenizer

not_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="it neither stops a process nor starts a script by its name"
)
ARGS = argparse.Namespace(preset="tiny", batch_size=2, seq_len=8)

# As llm.c's trainer, with a slow validation before step 10; a file tells how far it is.
LLM_C = """
import sys, time
from pathlib import Path
shard = Path("dev/data/tinyshakespeare/tiny_shakespeare_train.bin")
if shard.exists():
    print("train dataset num_batches:", len(shard.read_bytes()[1024:]) // 2 // {batch})
for step in range({steps}):
    if step == 10:
        for _ in range(25):  # a single sleep would go on while stopped
            time.sleep(0.02)
        print("val loss 7.7")
    time.sleep(0.02)
    Path("{count}").write_text(str(step))
    print(f"step {{step}}: train loss {{step / 4:f}} (took 20.0 ms)")
print("no more")
"""


def make_program(path: Path, source: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def count(tmp_path) -> Path:
    """Tells which step the stand-in for llm.c has ended."""
    return tmp_path / "count"


@pytest.fixture
def llm_c_program(tmp_path, count):
    """Makes the stand-in for llm.c."""

    def make(batch: int = 16, steps: int = 100) -> Path:
        return make_program(tmp_path / "train", LLM_C.format(batch=batch, steps=steps, count=count))

    return make


@pytest.fixture
def start(tmp_path):
    """Starts a contender, which is no more when the test is over."""
    from dev.bench.llmc import LlmC

    started = []
    yield lambda path: started.append(LlmC(path, tmp_path)) or started[-1]
    for llmc in started:
        llmc.finish()


@not_windows
def test_llm_c_stands_still_until_its_turn(start, count, llm_c_program):
    llmc = start(llm_c_program())
    for _ in range(10):
        llmc.step()
    before = count.read_text()
    time.sleep(0.2)
    assert count.read_text() == before
    begin = time.perf_counter()
    took = llmc.step()
    assert time.perf_counter() - begin > 0.4 > took  # without the validation
    loss, peak = llmc.finish()
    assert loss == 2.5
    assert 2**20 < peak < 2**32
    assert not psutil.pid_exists(llmc._process.pid)


@not_windows
def test_llm_c_does_not_outlive_a_benchmark_that_is_killed(tmp_path, llm_c_program):
    if sys.platform == "linux" and os.getsid(1) == os.getsid(0):
        pytest.skip("nothing is orphaned in a container whose first process is our own")
    source = (
        "import os, pathlib, sys; from psutil import Process; from dev.bench.llmc import LlmC\n"
        "llmc = LlmC(*map(pathlib.Path, sys.argv[1:])); llmc.step()\n"
        # On a busy machine it stops a moment later, and only what has stopped is ended.
        "while Process(llmc._process.pid).status() != 'stopped': pass\n"
        "print(llmc._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", source, str(llm_c_program()), str(tmp_path)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@not_windows
def test_what_llm_c_last_printed_is_told_when_it_ends_early(start, llm_c_program):
    llmc = start(llm_c_program(steps=1))
    llmc.step()
    with pytest.raises(RunError, match="train ended early; the last that it printed: no more"):
        llmc.step()


@not_windows
def test_llm_c_trains_on_our_weights_and_batch(tmp_path):
    from dev.bench.llmc import SHARD, files_step

    tokens, targets = batch(ARGS)
    files_step(tmp_path, PRESETS["tiny"], tokens)()
    weights, ours = llm_c.read(tmp_path / "gpt2_124M.bin"), GPT2(PRESETS["tiny"], seq_len=1).params
    for name in ("wpe", "qkvw", "lnfb"):
        np.testing.assert_array_equal(
            np.reshape(list(weights.tensors[name]), ours[name].shape), ours[name]
        )
    for split in ("train", "val"):
        loader = DataLoader(
            tmp_path / SHARD.format(split=split), 2, 8, vocab_size=2305, shuffle=False
        )
        for _ in range(len(loader)):
            found = loader.next_batch()
            np.testing.assert_array_equal(found, (tokens, targets))


@not_windows
def test_the_training_benchmark_prints_a_line_for_llm_c(program, llm_c_program):
    arguments = ["--preset", "tiny", "--batch-size", 2, "--seq-len", 8, "--pairs", 1, "--no-torch"]
    status, out, err = program("dev.bench.train", *arguments, "--llmc", llm_c_program())
    assert status == 0, err
    title, ours, theirs, disturbed = out.splitlines()
    assert "median of 1 steps" in title
    assert ours.startswith("llm.np ")
    assert "1.00 x llm.np's time" in ours
    assert theirs.startswith("llm.c ")
    repeated = int(disturbed.split()[-6])
    assert theirs.endswith(f"loss {(2 * repeated + 1) / 4:.5f}")  # each turn takes two steps
    status, _, err = program("dev.bench.train", *arguments, "--llmc", llm_c_program(batch=32))
    assert status == 2
    assert "was built for another --batch-size and --seq-len" in err


@not_windows
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--llmc", "nothing", "--pairs", 10], "llm.c takes 19 steps on end and no more"),
        (["--llmc", "nothing"], "nothing is no program; give --llmc the train_gpt2"),
    ],
)
def test_the_training_benchmark_refuses_what_llm_c_cannot_do(program, arguments, complaint):
    status, _, err = program("dev.bench.train", "--preset", "tiny", *arguments)
    assert status == 2
    assert complaint in err


def test_what_a_contender_refuses_is_told_as_the_benchmark_s_own(program):
    arguments = ["--preset", "tiny", "--batch-size", 1, "--seq-len", 129, "--no-torch"]
    status, _, err = program("dev.bench.train", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert "a sequence length of 129 is outside 1 to 128" in err


# Sampling


def test_bytes_per_token_leave_out_what_is_looked_up():
    gpt2, llama = (sample.PRESETS[name][1] for name in ("gpt2", "llama2-7b"))
    assert sample.bytes_per_token(gpt2) == 4 * (124_439_808 - 1024 * 768)
    assert sample.bytes_per_token(llama) == 4 * (6_738_415_616 - 32_000 * 4096)


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """A tokenizer.bin of 512 tokens, as the preset stories260K needs one."""
    single = [b"<0x%02X>" % byte for byte in range(256)]
    pieces = [b"<unk>", b"<s>", b"</s>", *single, *(b"%d" % number for number in range(253))]
    path = tmp_path / "tokenizer.bin"
    LlamaTokenizer(pieces, [0.0] * 512).save(path)
    return path


@not_windows
def test_the_sampling_benchmark_prints_a_line_for_each(program, tmp_path, tokenizer):
    source = """
import struct, sys
model, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
numbers = struct.unpack("<7i", open(model, "rb").read(28))
assert numbers == (64, 172, 5, 8, 4, 512, 512), numbers
assert options == {"-z": "TOKENIZER", "-n": "6", "-t": "0.5", "-p": "0.9"}, options
print("achieved tok/s: 1.250000", file=sys.stderr)
"""
    run = make_program(tmp_path / "run", source.replace("TOKENIZER", str(tokenizer)))
    options = ["--preset", "stories260K", "--rounds", 1, "--streams", 2, "--no-torch"]
    options += ["--prompt-tokens", 3, "--max-tokens", 4, "--temperature", 0.5, "--top-p", 0.9]
    options += ["--llama2c", run, "--tokenizer", tokenizer]
    status, out, err = program("dev.bench.sample", *options)
    assert status == 0, err
    _, one, two, llama2c, bandwidth, disturbed = out.splitlines()
    assert one.startswith("llm.np ")
    assert "1.00 x llm.np's time" in one
    assert two.startswith("llm.np, 2 streams ")
    assert llama2c.startswith("llama2.c ")
    assert " 1 tokens/s " in llama2c
    assert "one text reads 1 MB of weights per token" in bandwidth
    assert disturbed.startswith("other processes disturbed ")

    make_program(run, "import sys; sys.exit('no model')")
    with pytest.raises(RunError, match="run ended without its speed, and with: no model"):
        sample.measure_llama2c([str(run)])


def test_the_sampling_benchmark_counts_what_every_text_gets():
    args = argparse.Namespace(
        preset="llama-tiny", prompt_tokens=3, max_tokens=4, temperature=1.0, top_p=1.0
    )
    step = sample.llm_np_step(args, 2)
    for _ in range(2):
        assert [len(texts) for texts in step()] == [2]
        assert [len(texts) for texts in step()] == [2] * 3

    class Worker:
        seconds = iter((0.5, 0.25))

        def step(self):
            return next(self.seconds)

    assert sample.measure(Worker(), 2, args) == (2 * 3 / 0.5, 2 * 3 / 0.25)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "gpt2"], "llama2.c knows no gpt2"),
        (["--preset", "llama-tiny"], "has 512 tokens, and llama-tiny 2,305"),
        (["--llama2c", "nothing"], "there is no program nothing"),
        (["--prompt-tokens", 512], "leaves no room in the 512 positions of stories260K"),
        (["--temperature", -1], "the temperature must be"),
    ],
)
def test_the_sampling_benchmark_refuses_what_cannot_be_done(
    program, tokenizer, arguments, complaint
):
    options = ["--preset", "stories260K", "--llama2c", __file__, "--tokenizer", tokenizer]
    status, _, err = program("dev.bench.sample", *options, *arguments)
    assert status == 2
    assert complaint in err
