"""The benchmark of ranks: its formulas, its table, and two ranks that really train."""

import argparse
import re
import sys
from pathlib import Path

import pytest

from dev.bench import mpi
from dev.bench.mpi import Case, Times
from training.ranks import CHUNK

DOCS = Path(__file__).parents[2] / "docs" / "mpi.md"


def arguments(*mpirun):
    return argparse.Namespace(preset="tiny", seq_len=8, steps=2, mpirun=mpirun)


def test_two_ranks_send_their_gradients_once_and_many_twice():
    assert [mpi.bytes_sent(n, 1000) for n in (1, 2, 4)] == [0, 4000, 6000]


def test_the_time_of_an_exchange_is_that_of_bytes_and_of_messages():
    params = 2 * CHUNK + 1  # three chunks
    nbytes = 3 / 2 * 4 * params
    for ring, messages in ((False, 4), (True, 6)):
        expected = nbytes / 1.25e9 + 3 * messages * 20e-6
        assert mpi.exchange_seconds(4, params, 10, ring) == pytest.approx(expected, rel=1e-12)


def test_on_paper_one_node_computes_and_half_the_time_goes_where_it_is_said():
    lines = mpi.paper("gpt2", 4000.0).splitlines()
    assert lines[3].split()[:4] == ["1", "524,288", "99.31", "s"]
    even = float(re.search(r"at ([\d,]+) or", lines[-2])[1].replace(",", ""))
    flops = mpi.PRESETS["gpt2"][1].step_flops(1, 256) / 256
    exchange = mpi.exchange_seconds(1024, 124_475_904, 10)
    assert even * flops / 4e12 == pytest.approx(exchange, rel=1e-3)


def test_the_tables_of_the_documentation_are_what_is_printed(program):
    status, out, err = program("dev.bench.mpi", "--paper")
    assert (status, err) == (0, "")
    assert out in DOCS.read_text(encoding="utf-8")


def test_every_number_of_ranks_has_as_much_to_do_each_and_together():
    cases = mpi.list_cases(5, 2)
    alone = {case.batch_size for case in cases if case.ranks == case.threads == 1}
    assert alone == {2, 8}
    assert {(case.ranks, case.batch_size) for case in cases if case.tcp and case.zero} == {
        (2, 2),
        (2, 4),
        (4, 2),
    }
    assert [case for case in cases if case.threads > 1] == [Case(1, 4, 8)]


def test_efficiency_compares_with_one_core(program, monkeypatch):
    seconds = {Case(1, 1, 2): 1.0, Case(1, 1, 4): 1.6, Case(1, 2, 4): 1.0}

    def run(case, args):
        return [Times(seconds.get(case, 1.25), 0.125, 0.25 + late) for late in (0, 0, 9)]

    monkeypatch.setattr(mpi, "run", run)
    options = ["--preset", "tiny", "--ranks", 2, "--rounds", 1]
    status, out, err = program("dev.bench.mpi", *options)
    assert (status, err) == (0, "")
    title, _, _, *lines = out.splitlines()
    assert title == "tiny, 1,826,496 parameters, T=64"
    cells = [line.split() for line in lines]
    assert ["1", "1", "2", "1000", "100%", "100%"] in cells
    assert ["1", "2", "4", "1000", "100%", "80%"] in cells
    assert ["2", "1", "2", "--zero,", "TCP", "1250", "125", "250", "7.3", "0.0", "80%", "64%"] in (
        cells
    )
    assert len(cells) == 7


@pytest.mark.parametrize(
    ("mpirun", "status", "complaint"),
    [
        ("no-such-mpirun", 2, "there is no program no-such-mpirun"),
        (
            f"{Path(sys.executable).as_posix()} -c 'import sys; sys.exit(\"too few slots\")'",
            1,
            "too few slots",
        ),
    ],
)
def test_an_mpirun_that_does_not_run_is_told(program, mpirun, status, complaint):
    found, _, err = program("dev.bench.mpi", "--preset", "tiny", "--mpirun", mpirun)
    assert (found, err.count("\n")) == (status, 1)
    assert complaint in err


@pytest.mark.parametrize("zero", [False, True])
def test_two_ranks_train_and_tell_their_times(monkeypatch, zero):
    pytest.importorskip("mpi4py")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    times = mpi.run(Case(2, 1, 1, zero, tcp=True), arguments("mpirun"))
    assert len(times) == 2
    for step, waiting, exchange in times:
        assert 0 < waiting < step
        assert 0 < exchange < step
        assert waiting + exchange < step
