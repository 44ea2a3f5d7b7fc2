import os
import shutil
from pathlib import Path

import pytest

from uge.errors import StorageError, UsageError
from uge.publishing import create_private, is_private, is_published, private_folder


def test_lies_beside_the_output(tmp_path, monkeypatch):
    assert private_folder(Path("x/out")) == Path("x/out.private")
    monkeypatch.chdir(tmp_path)
    assert private_folder(Path(".")) == tmp_path.with_name(f"{tmp_path.name}.private")
    with pytest.raises(UsageError):
        private_folder(Path("/"))


def test_only_the_owner_may_enter(tmp_path, caplog):
    path = create_private(tmp_path / "a" / "out.private", published=tmp_path / "a" / "out")
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    create_private(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert "open to others" in caplog.text


def test_refused_places(tmp_path):
    with pytest.raises(UsageError, match="inside the published folder"):
        create_private(tmp_path / "out" / "x", published=tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="must be a folder"):
        create_private(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="file or link"):
        create_private(tmp_path / "link")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        create_private(tmp_path / "file" / "x")


def test_file_system_without_modes_is_told(tmp_path, caplog, monkeypatch):
    path = tmp_path / "out.private"
    path.mkdir()
    os.chmod(path, 0o777)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    create_private(path)
    assert "does not keep modes" in caplog.text


def test_audit_and_private_folders_are_no_published_ones(tmp_path):
    manifest, folder = tmp_path / "manifest.json", tmp_path / "audit"
    manifest.write_text('{"tool": "uge"}')
    assert is_published(tmp_path)
    (folder / "cases").mkdir(parents=True)
    shutil.copy(manifest, folder)
    assert not is_published(folder)
    assert not is_private(tmp_path)
    (tmp_path / "authorized-0.key.safetensors").write_text("")
    assert is_private(tmp_path)
