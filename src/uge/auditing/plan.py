"""Plan of an audit: networks × attacks × seeds, with controls, the authorised networks and their variants."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from uge.attacks import ATTACKS, find_attack
from uge.attacks.base import Family, Need
from uge.cases.case import YARDSTICK, Case, Job
from uge.errors import UnknownNameError, UsageError
from uge.names import PLUS

# Families of which a combination has at least one: images that they changed can be attacked again.
FIRST_STEPS: tuple[Family, ...] = ("preprocess", "purify", "augment")
MISSING: Mapping[Need, str] = {
    "key": "needs the authorised network's key; give --key FILE, or leave it out",
    "clean": "needs originals of the published images; give --clean SOURCE, or leave it out",
    "public": "needs labelled images of another data set; give --public SOURCE, or leave it out",
    "few": "needs ten labelled clean images a class; give --worst-case, or leave it out",
}
NO_CLAIMS = "needs a manifest of uge protect, which says how the copy was made; leave it out"
#: Jobs of a later stage, from the cases that are finished by then.
Stage = Callable[[Sequence[Case]], Sequence[Job]]


@dataclass(frozen=True)
class LeftOut:
    """An attack or variant that was not run on some network, and why."""

    attack: str
    network: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """Attacks that were asked for.

    Attributes:
        names: Their names, in order, combinations as ``A+B``.
        explicit: Those that were asked for by name, not as part of a group.
        everything: True where all attacks were asked for.
    """

    names: tuple[str, ...]
    explicit: frozenset[str] = frozenset()
    everything: bool = False


@dataclass(frozen=True)
class Plan:
    """Every case of an audit.

    Attributes:
        jobs: Teachers before their students, repetition by repetition.
        left_out: Attacks and variants that cannot be run for want of something.
        combine: True combines the two best attacks of the first repetition.
        then: Further stages, one after the other.
    """

    jobs: tuple[Job, ...]
    left_out: tuple[LeftOut, ...] = ()
    combine: bool = False
    then: tuple[Stage, ...] = ()


def choose(words: Iterable[str], standard: Sequence[str] = ()) -> Choice:
    """Attacks from names, families, ``A+B``, ``all`` and ``standard``.

    Args:
        words: Names and groups; a name goes before a family of the same name.
        standard: Attacks that ``standard`` stands for.

    Raises:
        UnknownNameError: No such attack or family.
    """
    words = list(words)
    names = list[str]()
    rows = ATTACKS.loadable().items()
    groups = {family: [name for name, row in rows if row.family == family] for family in get_args(Family)}
    groups = {family: members for family, members in groups.items() if members and family not in ATTACKS}
    groups |= {"all": list(ATTACKS), "standard": list(standard)}
    for word in words:
        if word in groups:
            names += groups[word]
            continue
        for part in word.split(PLUS):
            if part not in ATTACKS:
                raise UnknownNameError(
                    "attack", part, ATTACKS, f"groups of them are {', '.join(groups)}, and A{PLUS}B does A before B"
                )
        find_attack(word)
        names.append(word)
    explicit = frozenset(word for word in words if word not in groups)
    return Choice(tuple(dict.fromkeys(names)), explicit, "all" in words)


def plan(
    networks: Sequence[str],
    attacks: Sequence[str] | Choice,
    seeds: int,
    keys: Sequence[str],
    *,
    controls: bool,
    public: bool = False,
    variants: Sequence[str] = (),
    combine: bool = False,
    authorized: bool = True,
    few: bool = False,
    claims: bool = False,
) -> Plan:
    """Plan every case of an audit, teachers before their students.

    Args:
        networks: Architectures of the hackers.
        attacks: From :func:`choose`; names alone count as asked for by name.
        seeds: Repetitions.
        keys: Architecture of each authorised network whose θ0 is at hand; may be empty.
        controls: True where clean originals are at hand, for the clean controls and for attacks that need some.
        public: True where labelled images of another data set are at hand.
        variants: Names in :data:`uge.attacks.variants.VARIANTS`, for every authorised network.
        combine: True combines the two best attacks (:func:`combinations`).
        authorized: False for a folder without authorised networks: attacks on one do not count as left out.
        few: True where a few labelled clean images are at hand; without them, attacks that need some do not count as
            left out either.
        claims: True where the copy has a manifest.

    Raises:
        UnknownNameError: No such attack.
        UsageError: Fewer than one seed, no network, or an attack asked for by name that lacks something.
    """
    choice = attacks if isinstance(attacks, Choice) else Choice(tuple(dict.fromkeys(attacks)), frozenset(attacks))
    if seeds < 1 or not networks or not choice.names:
        raise UsageError(f"an audit needs a network, an attack and a seed, got {networks}, {choice.names} and {seeds}")
    networks = list(dict.fromkeys(networks))
    there: dict[Need, bool] = {"key": bool(keys), "clean": controls, "public": public, "few": few}
    possible = list[str]()
    left_out = list[LeftOut]()
    for name in choice.names:
        entry = find_attack(name)
        needs = [need for need in MISSING if need in entry.needs and not there[need]]
        missing = MISSING[needs[0]] if needs else NO_CLAIMS if "claims" in entry.uses and not claims else None
        if missing is None:
            possible.append(name)
        elif name in choice.explicit:
            raise UsageError(f"the attack '{name}' {missing}")
        elif (authorized or needs[:1] != ["key"]) and (few or "few" not in needs):
            reason = missing.partition(", or")[0].partition("; leave")[0]
            left_out.append(LeftOut(name, ", ".join(networks), f"it {reason}"))
    if authorized and not keys:
        left_out += [LeftOut(name, "authorised", f"the variant {MISSING['key']}") for name in variants]
    jobs = list[Job]()
    for seed in range(seeds):
        for number, name in enumerate(keys):
            own = Job("authorized", name, "theta0", "direct", "protected", seed, number)
            jobs += [replace(own, role="clean", data="clean"), own] if controls else [own]
        jobs += [Job("clean", name, "random", "direct", "clean", seed) for name in networks if controls]
        jobs += _hackers(networks, possible, seed, keys)
        jobs += [
            Job("authorized", name, "theta0", scheme, "protected", seed, number)
            for number, name in enumerate(keys)
            for scheme in variants
        ]
    return Plan(tuple(dict.fromkeys(jobs)), tuple(left_out), combine)


def _hackers(networks: Sequence[str], attacks: Iterable[str], seed: int, keys: Sequence[str]) -> list[Job]:
    jobs = list[Job]()
    for scheme in attacks:
        entry = find_attack(scheme)
        numbers: Sequence[int | None] = range(len(keys)) if "key" in entry.needs else [None]
        pairs: Iterable[tuple[str, int | None]] = itertools.product(networks, numbers)
        if entry.same_architecture:  # A hacker that knows θ0 builds the network that it belongs to.
            pairs = [(name, number) for number, name in enumerate(keys)]
        jobs += [Job("hacker", name, "random", scheme, "protected", seed, number) for name, number in pairs]
    order = {name: place for place, name in enumerate(networks)}
    return sorted(jobs, key=lambda job: order.get(job.network, len(order)))


def combinations(cases: Iterable[Case], seeds: int) -> list[Job]:
    """Combine the two best single attacks of the first repetition, for every network and repetition.

    Twice: of all attacks, and of those that need nothing but the published folder. At least one of the two is of
    :data:`FIRST_STEPS`, two of one family are two filters of different kinds, and the pair with the largest sum of
    best accuracies is taken. Attacks that need the authorised architecture are left alone. The combinations do not
    depend on the order of the cases.

    Args:
        cases: Finished cases.
        seeds: Repetitions.
    """
    singles: dict[str, dict[tuple[str, int | None], float]] = {}
    for case in cases:
        entry = ATTACKS.get(case.scheme)
        if case.role == "hacker" and case.seed == 0 and entry and not entry.same_architecture:
            key = case.key if "key" in entry.needs else None
            singles.setdefault(case.network, {})[case.scheme, key] = case.best
    jobs = list[Job]()
    for network, accuracies in singles.items():
        pairs = [pair for pair in itertools.combinations(sorted(accuracies, key=_place), 2) if _combine(*pair)]
        free = [pair for pair in pairs if not any(ATTACKS[name].needs for name, _ in pair)]
        for group in filter(None, (free, pairs)):
            (first, first_key), (second, second_key) = max(group, key=lambda pair: sum(accuracies[a] for a in pair))
            key = second_key if first_key is None else first_key
            scheme = f"{first}{PLUS}{second}"
            jobs += [Job("hacker", network, "random", scheme, "protected", seed, key) for seed in range(seeds)]
    return list(dict.fromkeys(jobs))


def _place(single: tuple[str, int | None]) -> tuple[bool, bool, str, int]:
    # Rank of an attack in a combination: filters after mixing of images, before changes of the training.
    name, key = single
    entry = ATTACKS[name]
    return entry.prepare is None, entry.family in FIRST_STEPS, name, key or 0


def _combine(earlier: tuple[str, int | None], later: tuple[str, int | None]) -> bool:
    # True where two attacks make a third, in this order.
    name, key = earlier
    other, other_key = later
    first = ATTACKS[name]
    second = ATTACKS[other]
    families = {first.family, second.family}
    if {YARDSTICK, "plain"} & families or first.prepare is None or not families & set(FIRST_STEPS):
        return False
    alike = len(families) == 1 and (second.prepare is None or _kind(name) == _kind(other))
    return not alike and (None in (key, other_key) or key == other_key)


def _kind(name: str) -> str:
    # Name without its setting: jpeg of jpeg30.
    return name.rstrip("0123456789").rstrip("-")
