"""The site of the docs builds, with every link, reference and formula."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")} - {"404"}
    assert pages == {path.stem for path in (ROOT / "docs").glob("*.md")}, "a page has no place in mkdocs.yml"
    method = (tmp_path / "site" / "method.html").read_text("utf-8")
    assert method.count("<math") > 20
    assert "arithmatex" not in method
    python = (tmp_path / "site" / "python.html").read_text("utf-8")
    assert all(f'id="uge.api.{name}"' in python for name in ("protect", "publish", "audit", "compare"))
    assert not re.search(r'(src|href)="https?://(?!arxiv|spdx|keepachangelog|github|in-toto|squidfunk)', method)
