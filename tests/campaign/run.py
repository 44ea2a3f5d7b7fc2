"""The campaign: ``python tests/campaign/run.py [--seed N] [--part NAME] [--every K]`` prints a table and every finding.

Parts that follow chance say their seed. Exit code 1 if anything was found.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "cli"))

import bad_input
import inputs
import trial
from command import DRAWN_ANEW, without_record

from sealed import originals

Finding = tuple[str, str]


def tree(root: Path) -> dict[str, str]:
    """Digest of every file below a folder; links and special files by kind."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24
            found[str(path.relative_to(root))] = (
                hashlib.sha256(path.read_bytes()).hexdigest() if regular else str(path.lstat().st_mode)
            )
    return found


def try_kind(kind: bad_input.Kind, sound: Path, root: Path) -> list[str]:
    """Findings of one kind of bad input."""
    inputs.fresh(sound, root)
    try:
        kind.make(root)
    except OSError as error:  # This file system does not take such a name.
        return [f"not made here: {error}"] if error.errno not in (22, 36, 84) else []
    before = tree(root)
    ran = trial.run(kind.command, root)
    findings = list(ran.findings)
    after = tree(root)
    if kind.refused and ran.code == 0:
        findings.append("was accepted")
    if (root / "executed").exists():
        findings.append("ran code from its input")
    if ran.code != 0:
        changed = sorted(set(after.items()) ^ set(before.items()))
        if changed:
            findings.append(f"left or changed {sorted({name for name, _ in changed})[:4]} although it failed")
    return findings


def bad_inputs(sound: Path, root: Path, every: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Every kind of bad input, or every k-th of them from a place that the seed chooses."""
    for kind in bad_input.kinds(sound)[seed % every :: every]:
        yield kind.name, try_kind(kind, sound, root)


def flipped_bytes(sound: Path, root: Path, every: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """One bit of every class of bytes of a published folder; verification must see each."""
    random = np.random.default_rng(seed)
    files = sorted(path.relative_to(sound) for path in (sound / "copy").rglob("*") if path.is_file())
    for file in files:
        size = (sound / file).stat().st_size
        for place in sorted(random.choice(size, min(size, max(1, 180 // every)), replace=False).tolist()):
            inputs.fresh(sound, root)
            data = bytearray((root / file).read_bytes())
            data[place] ^= 1 << int(random.integers(8))
            (root / file).write_bytes(data)
            ran = trial.run(("verify", "copy", "--against", "folder"), root)
            yield f"{file}, byte {place}", [*ran.findings, *(["was not seen"] if ran.code == 0 else [])]


KILLED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "protect": (("protect", "folder", "new", *inputs.TINY, *inputs.SEEDED), ("--resume",)),
    "protect in place": (("protect", "folder", "copy", *inputs.TINY, *inputs.SEEDED, "--overwrite"), ()),
    "protect, the paper's method": (
        ("protect", "folder", "new", *inputs.TINY, *inputs.PAPER, *inputs.SEEDED),
        ("--resume",),
    ),
    "apply": (("apply", "noise.npy", "set.npz", "more", "--overwrite"), ()),
    "train": (("train", "copy", "--key", inputs.KEY, "--save", "trained.safetensors", "--threads", "1"), ("--resume",)),
    "audit": (("audit", "copy", *inputs.AUDIT, "--overwrite"), ()),
    "request": (("request", "new.json", *inputs.REQUEST, "--seed", "5", "--overwrite"), ()),
}
"""Command → its arguments, and the flags by which it goes on after a kill."""


def outputs(root: Path) -> dict[str, str]:
    """Digests of what a command leaves, without files that hold times: logs, reports, intermediate results."""
    volatile = re.compile(r"\.(jsonl|html|pem)$|summary\.json$|/cases/|\.private/run/")
    digests = {
        name: digest for name, digest in tree(root).items() if not volatile.search(name) and not DRAWN_ANEW.search(name)
    }
    for name in digests:
        if name.endswith("manifest.json"):
            digests[name] = hashlib.sha256(without_record((root / name).read_bytes())).hexdigest()
    rows, _ = originals(root)
    return digests | {f"{name}: originals": str(hash(tuple(each))) for name, each in rows.items()}


def random_kills(sound: Path, root: Path, every: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Commands killed at a moment of chance; the next run must end as if nothing had happened."""
    random = np.random.default_rng(seed)
    for name, (arguments, again) in KILLED.items():
        inputs.fresh(sound, root)
        calm = trial.run((*arguments, "-q"), root)
        if calm.code:
            yield name, [f"fails without a kill: {calm.err.strip()}"]
            continue
        expected = outputs(root)
        for number in range(max(1, 32 // every)):
            inputs.fresh(sound, root)
            after = float(random.uniform(0.0, calm.seconds))
            killed = trial.Started((*arguments, "-q"), root).end(kill_after=after)
            if killed.code == 0:  # It ended before the kill.
                continue
            resumed = trial.run((*arguments, *again, "-q"), root)
            if again and resumed.code == 2 and "nothing to resume" in resumed.err:
                resumed = trial.run((*arguments, "-q"), root)
            findings = list(resumed.findings)
            if resumed.code:
                findings.append(f"does not go on after a kill: {resumed.err.strip()}")
            elif (now := outputs(root)) != expected:
                names = sorted({place for place, _ in set(now.items()) ^ set(expected.items())})
                findings.append(f"ends differently after a kill: {names[:6]}")
            yield f"{name}, kill {number} after {after:.2f} s (code {killed.code})", findings


PAIRS = {
    "same new output": (("protect", "folder", "new", *inputs.TINY), ("protect", "folder", "new", *inputs.TINY)),
    "other seeds": (
        ("protect", "folder", "new", *inputs.TINY, "--seed", "1", "--authorized-seed", "1"),
        ("protect", "folder", "new", *inputs.TINY, "--seed", "2", "--authorized-seed", "2"),
    ),
    "both in place": (
        ("protect", "folder", "copy", *inputs.TINY, "--authorized-seed", "1", "--overwrite"),
        ("protect", "folder", "copy", *inputs.TINY, "--authorized-seed", "2", "--overwrite"),
    ),
    "written and verified": (
        ("protect", "folder", "copy", *inputs.TINY, "--authorized-seed", "1", "--overwrite"),
        ("verify", "copy"),
    ),
    "written and audited": (
        ("protect", "folder", "copy", *inputs.TINY, "--authorized-seed", "1", "--overwrite"),
        ("audit", "copy", *inputs.AUDIT, "--overwrite"),
    ),
    "written and trained on": (
        ("protect", "folder", "copy", *inputs.TINY, "--authorized-seed", "1", "--overwrite"),
        ("train", "copy", "--key", inputs.KEY, "--threads", "1"),
    ),
    "audited twice": (("audit", "copy", *inputs.AUDIT, "--overwrite"), ("audit", "copy", *inputs.AUDIT, "--overwrite")),
    "applied twice": (
        ("apply", "noise.npy", "set.npz", "more", "--overwrite"),
        ("apply", "noise.npy", "set.npz", "more", "--overwrite"),
    ),
    "added twice": (
        ("protect", "further", "copy", "--append", "--threads", "1"),
        ("protect", "further", "copy", "--append", "--threads", "1"),
    ),
    "added and written": (
        ("protect", "further", "copy", "--append", "--threads", "1"),
        ("protect", "folder", "copy", *inputs.TINY, "--authorized-seed", "1", "--overwrite"),
    ),
    "added and verified": (("protect", "further", "copy", "--append", "--threads", "1"), ("verify", "copy")),
    "added and signed": (("protect", "further", "copy", "--append", "--threads", "1"), ("sign", "copy", "--overwrite")),
    "signed twice": (("sign", "copy", "--overwrite"), ("sign", "copy", "--overwrite")),
    "signed and granted": (("sign", "copy", "--overwrite"), ("grant", "copy", "--to", "me.pub")),
    "granted and sealed anew": (("grant", "copy", "--to", "me.pub"), ("rekey", "copy")),
    "added and sealed anew": (("protect", "further", "copy", "--append", "--threads", "1"), ("rekey", "copy")),
    "fulfilled twice": (
        ("fulfil", "trained.json", "folder", "answer", "--overwrite", "--threads", "1"),
        ("fulfil", "trained.json", "folder", "answer", "--overwrite", "--threads", "1"),
    ),
    "asked twice": (
        ("request", "new.json", *inputs.REQUEST, "--overwrite"),
        ("request", "new.json", *inputs.REQUEST, "--overwrite"),
    ),
}
"""Two commands that meet."""


def two_commands(sound: Path, root: Path, every: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Pairs of commands started within a moment of each other; afterwards copies and keys belong together."""
    random = np.random.default_rng(seed)
    for name, (first, second) in PAIRS.items():
        for number in range(max(1, 6 // every)):
            inputs.fresh(sound, root)
            one = trial.Started((*first, "-q"), root)
            time.sleep(float(random.uniform(0, 0.6)))
            other = trial.Started((*second, "-q"), root)
            ends = [one.end(), other.end()]
            findings = [finding for end in ends for finding in end.findings]
            if not any(end.code == 0 for end in ends):
                findings.append(f"neither succeeds: {[end.err.strip() for end in ends]}")
            for folder in ("new", "copy"):
                if (root / folder).is_dir() and not inputs.belong_together(root / folder):
                    findings.append(f"the keys beside {folder} are not those that its manifest names")
                if (root / folder).is_dir() and not inputs.verifies(root / folder):
                    findings.append(f"{folder} is not what its owner sealed and signed")
            left = [
                path.name for path in root.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")
            ]
            if left:
                findings.append(f"leaves {left}")
            yield f"{name}, {number} (codes {[end.code for end in ends]})", findings


def worker(job: tuple[str, Path, int, int, int, int]) -> list[tuple[str, list[str]]]:
    """One share of a part, in a process of its own."""
    part, sound, every, seed, number, count = job
    import torch

    import uge.cli.main
    import uge.methods.uge.stages
    import uge.pipeline.audit
    import uge.pipeline.protect  # noqa: F401

    torch.set_num_threads(1)
    root = sound.parent / f"trial-{number}"
    results = []
    for result in _items(part, sound, root, every, seed, number, count):
        results.append(result)
        if result[1]:
            print(f"  {result[0]}: {'; '.join(result[1])}", file=sys.stderr, flush=True)
    shutil.rmtree(root, ignore_errors=True)
    return results


def _items(
    part: str, sound: Path, root: Path, every: int, seed: int, number: int, count: int
) -> Iterator[tuple[str, list[str]]]:
    if part == "bad input":
        yield from bad_inputs(sound, root, every * count, seed + number * every)
    else:
        yield from PARTS[part](sound, root, every * count, seed * count + number)


Part = Callable[[Path, Path, int, int], Iterator[tuple[str, list[str]]]]
PARTS: dict[str, Part] = {
    "bad input": bad_inputs,
    "flipped bytes": flipped_bytes,
    "random kills": random_kills,
    "two commands": two_commands,
}


def campaign(parts: list[str], seed: int, every: int, workers: int) -> dict[str, tuple[int, list[Finding]]]:
    """Number of trials and all findings by part."""
    results: dict[str, tuple[int, list[Finding]]] = {}
    with tempfile.TemporaryDirectory(prefix="uge-campaign-") as place:
        sound = inputs.make_all(Path(place) / "sound")
        for part in parts:
            jobs = [(part, sound, every, seed, number, workers) for number in range(workers)]
            with ProcessPoolExecutor(workers) as pool:
                done = [item for share in pool.map(worker, jobs) for item in share]
            findings = [(name, sentence) for name, sentences in done for sentence in sentences]
            results[part] = (len(done), findings)
    return results


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="only every k-th trial")
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    results = campaign(options.part or list(PARTS), options.seed, options.every, options.workers)
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s\n\n| part | trials | findings |\n|---|---|---|")
    for part, (count, findings) in results.items():
        print(f"| {part} | {count} | {len(findings)} |")
    for part, (_, findings) in results.items():
        for name, sentence in findings:
            print(f"{part}: {name}: {sentence}")
    sys.exit(any(findings for _, findings in results.values()))


if __name__ == "__main__":
    main()
