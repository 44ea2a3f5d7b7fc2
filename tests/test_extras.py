from pathlib import Path

import pytest

from uge import extras
from uge.errors import MissingExtraError, UsageError


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "built for another torch"),
        ("import a_module_that_is_not_there", "cannot be imported .*ModuleNotFoundError.*install it anew"),
        ("raise SyntaxError('bad')", "cannot be imported .SyntaxError: bad."),
    ],
)
def test_a_broken_library_is_one_sentence(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=message) as caught:
        extras.load("broken_library", "timm", "network 'timm:x'")
    assert not isinstance(caught.value, MissingExtraError)
    assert str(caught.value).startswith("network 'timm:x' needs the library 'broken_library', which is installed")


@pytest.mark.parametrize("module", ["library_of_nobody", "library_of_nobody.part"])
def test_a_library_that_is_not_installed_names_the_extra(module: str) -> None:
    with pytest.raises(MissingExtraError, match=r"needs the library 'library_of_nobody'.*uge\[timm\]"):
        extras.load(module, "timm", "network 'timm:x'")
