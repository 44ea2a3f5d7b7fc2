"""Protect, publish, verify and attack the embedded photographs from Python, with settings that take seconds.

Run it with ``python examples/library.py OUT``. The figures mean nothing at this size; see README.md for real ones.
For the paper's own method take ``uge.record_trajectory("lenet", …)`` instead of ``uge.authorize``.
"""

import sys

import uge


def main(out: str) -> None:
    images = uge.load_images("photos", split="train", limit=120)
    authorized = uge.authorize("keyed:lenet", images, epochs=1, seed=0)

    protected = uge.protect(images, authorized, budget=uge.Budget(0.04))
    for sample in list(protected)[:3]:
        print(sample.id, images.classes[sample.label], sample.pixels.shape, sample.pixels.dtype)

    manifest = uge.publish(protected, out, overwrite=True)
    print(f"published {manifest.count} images, largest change {manifest.measured.linf_levels} levels")
    uge.verify(out, against=images).raise_for_problems()

    found = uge.audit(
        out, test="photos", networks=["lenet"], attacks=["direct", "distill"], seeds=1, epochs=1, limit_test=40
    )
    for hacker in found.hackers:
        print(f"{hacker.name}: {hacker.last:.1f} % (clean {hacker.clean:.1f} %)")
    print(f"gap: {found.gap:.1f} points; report: {found.report}")


if __name__ == "__main__":
    main(sys.argv[1])
