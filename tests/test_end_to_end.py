"""The whole way on real pictures, at settings that take seconds: facts of structure, not accuracies."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from uge.cli.main import main
from uge.publishing import read_manifest

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
IF_HERE = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no {CIFAR} here")
SMALL = "--limit=150 --authorized=cnn --recipe.epochs=1"
PAPER = (
    "--method=uge --hacker=resnet8 --encoder-recipe.epochs=1 --max-steps=8 --generator.width=8 --generator.blocks=1 "
    "--generator.lr=0.02 --refine --refinement.passes=2"
)


def uge(*arguments: str | Path) -> tuple[int, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
        main([*map(str, arguments), "--json", "-q"])
    return int(left.value.code or 0), json.loads(out.getvalue())


@pytest.mark.parametrize(
    ("source", "flags", "authorized", "networks"),
    [
        pytest.param(str(CIFAR), "--method keyed", "keyed:cnn", ["lenet"], id="cifar10", marks=IF_HERE),
        pytest.param("photos", "--method keyed", "keyed:cnn", ["cnn", "lenet"], id="photos"),
        pytest.param("photos", PAPER, "cnn", ["cnn"], id="photos-uge"),
    ],
)
def test_protect_verify_train_audit_report(
    source: str, flags: str, authorized: str, networks: list[str], tmp_path: Path
) -> None:
    out, audit = tmp_path / "copy", tmp_path / "copy.audit"
    code, found = uge("protect", source, out, *SMALL.split(), *flags.split())
    assert code == 0
    assert found["images"] == 150
    assert 0 < found["measured"]["linf_levels"] <= 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.private"]

    code, verified = uge("verify", out, "--against", source)
    assert (code, verified["problems"], verified["count"]) == (0, [], 150)
    assert verified["measured"]["linf_levels"] == found["measured"]["linf_levels"]
    manifest = read_manifest(out)
    assert min(manifest.class_counts) > 0
    assert manifest.size.height == (32, 32)

    key = found["keys"][0]
    code, trained = uge("train", out, "--key", key, "--test", source, "--limit-test", "100")
    assert code == 0
    assert len(trained["epochs"]) == 1
    assert 0 <= trained["last"] <= trained["best"] <= 100

    hackers = ("--networks", ",".join(networks), "--attacks", "direct,distill", "--limit-test", "100")
    code, summary = uge("audit", out, "--test", source, *hackers)
    assert code == 0
    assert set(summary) >= {"clean", "authorized", "hackers", "gap", "gap_best", "report", "warnings", "verdict"}
    assert set(summary["clean"]) == {*networks, authorized}
    assert set(summary["authorized"]) >= {"network", "last", "best", "clean"}
    assert summary["authorized"]["network"] == authorized
    pairs = {(hacker["network"], hacker["scheme"]) for hacker in summary["hackers"]}
    assert pairs == {(network, scheme) for network in networks for scheme in ("direct", "distill")}
    for result in (summary["authorized"], *summary["hackers"]):
        assert all(0 <= result[name] <= 100 for name in ("last", "best", "clean"))
    assert summary["gap"] == pytest.approx(summary["authorized"]["last"] - max(h["last"] for h in summary["hackers"]))
    # The authorised network with its clean control and in another order; each hacker's control and attacks.
    assert len(list((audit / "cases").glob("*.json"))) == 3 + 3 * len(networks)
    assert json.loads((audit / "summary.json").read_text()) == summary

    page = tmp_path / "page.html"
    code, report = uge("report", audit, page)
    assert (code, report) == (0, {"report": str(page)})
    text = page.read_text()
    assert "<svg" in text
    assert "data:image/png" in text
