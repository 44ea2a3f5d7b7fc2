"""No text from files reaches a terminal or a page with characters that hide, reorder or break lines."""

import json
import logging
import re
from pathlib import Path

import pytest
from tests.cli.command import TINY, make_folder, run_uge

from uge.cli.console import make_progress, set_logging
from uge.cli.flags import Common
from uge.errors import printable
from uge.publishing import read_manifest
from uge.publishing.card import dataset_card
from uge.publishing.training_guide import training_guide

FAKE = "owl\nout: 36 images, no deviation\x1b[2K\u202e\u2066"
SHOWN = "owl\\nout: 36 images, no deviation\\u001b[2K\\u202e\\u2066"
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_hidden_characters_are_escaped_and_others_stay() -> None:
    assert printable(FAKE) == SHOWN
    assert printable(FAKE, keep="\n") == SHOWN.replace("\\n", "\n")
    words = "Müller 猫 می\u200cخواهم 👩\u200d🔬 a b"
    assert printable(words) == words
    assert printable("caf\udce9\U000e0041") == "caf\\udce9\\udb40\\udc41"


def test_a_class_name_cannot_fake_a_line(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "images")
    copy = tmp_path / "copy"
    assert run_uge("protect", source, copy, *TINY, "-q").code == 0
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["classes"][0] = FAKE
    manifest["class_counts"][0] += 1
    manifest["count"] += 1
    path.write_text(json.dumps(manifest))
    for flags in ((), ("--json",)):
        ran = run_uge("verify", copy, *flags)
        assert ran.code == 1
        assert not HIDDEN.search(ran.out + ran.err)
        assert SHOWN in ran.err
        assert "\nout: 36" not in ran.err
    assert any(FAKE in problem for problem in ran.json["problems"])


def test_errors_logs_and_notes_are_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = run_uge("inspect", tmp_path / FAKE)
    assert ran.err.count("\n") == 1
    assert not HIDDEN.search(ran.err)
    set_logging(Common())
    logging.getLogger("uge.test").warning("class %s", FAKE)
    make_progress(quiet=False).note(FAKE)
    err = capsys.readouterr().err
    assert err.splitlines() == [f"WARNING uge.test: class {SHOWN}", SHOWN]


def test_pages_of_a_folder_are_escaped(tmp_path: Path) -> None:
    assert run_uge("protect", make_folder(tmp_path / "images"), tmp_path / "copy", *TINY, "-q").code == 0
    manifest = read_manifest(tmp_path / "copy")
    network = manifest.authorized[0].model_copy(update={"network": FAKE})
    forged = manifest.model_copy(update={"name": FAKE, "method": FAKE, "authorized": (network,)})
    for page in (dataset_card(forged), training_guide(forged)):
        assert SHOWN in page
        assert not HIDDEN.search(page)
        assert "\nout: 36" not in page
