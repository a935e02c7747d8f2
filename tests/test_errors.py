"""Whatever ends a program, it is one sentence and an exit status."""

import pytest

from errors import RunError, UserError, run_program


def fail(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("too small; take another"), 2, "error: too small; take another\n"),
        (RunError("the disk is full"), 1, "error: the disk is full\n"),
        (RunError("a name\nof \x1b[2J a forged file"), 1, "error: a name?of ?[2J a forged file\n"),
        (PermissionError(13, "Permission denied", "a.txt"), 1, "error: cannot use a.txt: Permi"),
        (ConnectionError("no answer"), 1, "error: no answer\n"),
        (MemoryError("4 GiB"), 1, "error: out of memory: 4 GiB\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("stopped after step 3"), 130, "stopped after step 3\n"),
    ],
)
def test_an_error_is_one_sentence_and_a_status(capsys, error, status, sentence):
    with pytest.raises(SystemExit) as ended:
        run_program(fail(error))
    out, err = capsys.readouterr()
    assert ended.value.code == status
    assert err.startswith(sentence)
    assert (out, err.count("\n")) == ("", 1)
