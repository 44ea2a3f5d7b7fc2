"""Plan of the worst case: every attack once, then the strongest on more seeds and networks, and longer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from uge.auditing.plan import Choice, Plan, combinations, plan
from uge.auditing.worst_case import is_apart
from uge.cases.case import YARDSTICK, Case, Job

STRONGEST = 8
"""Attacks of which the later stages consist."""
LONG_FORM = "longer"  # Attack that is what the long form is.


def plan_worst_case(
    networks: Sequence[str],
    choice: Choice,
    seeds: int,
    keys: Sequence[str],
    *,
    controls: bool,
    public: bool = False,
    variants: Sequence[str] = (),
    strongest: int = STRONGEST,
    authorized: bool = True,
    claims: bool = False,
) -> Plan:
    """Plan the stages of the worst case (docs/worst-case.md).

    1. Every attack once: the first network, seed 0. Then the combination of the two best, if all attacks were chosen.
    2. The strongest attacks with the other seeds.
    3. The strongest attacks on the other networks.
    4. The strongest attacks for three times the epochs.
    5. Every attack of the first stage on clean images.

    Clean controls and training on the few labelled images alone go with every network, seed and length.

    Args:
        networks: Architectures of the final network; the first is that of the first stage.
        choice: Attacks of the first stage; ``longer`` counts only where it is asked for by name.
        seeds: Repetitions of the strongest attacks.
        keys: Architecture of each authorised network whose θ0 is at hand; may be empty.
        controls: True where clean originals are at hand.
        public: True where labelled images of another data set are at hand.
        variants: Changes of authorised training, as for :func:`uge.auditing.plan.plan`.
        strongest: Number of attacks of the later stages; 0 for the first stage and its clean controls alone.
        authorized: False for a folder without authorised networks.
        claims: True where the copy has a manifest.

    Raises:
        UnknownNameError: No such attack.
        UsageError: Fewer than one seed, no network, or an attack asked for by name that lacks something.
    """
    networks = list(dict.fromkeys(networks))
    own = ["few-labelled", *["few-labelled-public"] * public]
    names = [*own, *(name for name in choice.names if name != LONG_FORM or name in choice.explicit)]
    chosen = replace(choice, names=tuple(dict.fromkeys(names)))
    first = plan(
        networks[:1],
        chosen,
        min(seeds, 1),
        keys,
        controls=controls,
        public=public,
        variants=variants,
        authorized=authorized,
        few=True,
        claims=claims,
    )

    def runs(network: str, seed: int, schemes: Iterable[str], *, long: bool = False) -> list[Job]:
        hackers = [Job("hacker", network, "random", name, "protected", seed, long=long) for name in (*own, *schemes)]
        clean = Job("clean", network, "random", "direct", "clean", seed, long=long)
        return [*[clean] * controls, *hackers]

    def combined(cases: Sequence[Case]) -> list[Job]:
        return combinations(_open(cases, networks[0]), 1)

    def repeated(cases: Sequence[Case]) -> list[Job]:
        top = ranked(cases, networks[0])[:strongest]
        return [job for seed in range(1, seeds) for job in runs(networks[0], seed, top)]

    def elsewhere(cases: Sequence[Case]) -> list[Job]:
        top = ranked(cases, networks[0])[:strongest]
        return [job for seed in range(seeds) for network in networks[1:] for job in runs(network, seed, top)]

    def lengthened(cases: Sequence[Case]) -> list[Job]:
        top = ranked(cases, networks[0])[:strongest]
        return [job for seed in range(seeds) for network in networks for job in runs(network, seed, top, long=True)]

    def on_clean_images(cases: Sequence[Case]) -> list[Job]:
        plain = [name for name in ranked(cases, networks[0]) if name != "direct"]
        return [Job("hacker", networks[0], "random", name, "clean", 0) for name in plain if controls]

    later = (repeated, elsewhere, lengthened) if strongest else ()
    return replace(first, then=(*([combined] if choice.everything else []), *later, on_clean_images))


def ranked(cases: Iterable[Case], network: str) -> list[str]:
    """Attacks of the first stage that count, the strongest first, by their choice or the last epoch."""
    accuracies = {case.scheme: max(case.last, case.choice().test) for case in _open(cases, network)}
    return sorted(accuracies, key=lambda name: (-accuracies[name], name))


def _open(cases: Iterable[Case], network: str) -> list[Case]:
    return [
        case
        for case in cases
        if (case.role, case.data, case.network, case.seed, case.long) == ("hacker", "protected", network, 0, False)
        and case.family != YARDSTICK
        and not is_apart(case.needs, case.network)
    ]
