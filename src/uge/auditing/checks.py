"""Reasons to doubt an audit: one function a check, and a table of the sentences for what a check finds.

Checks see cases and results, and a small dictionary of facts about the data, every entry of it optional:

* ``budget_levels``, ``linf_levels``: promised and measured largest change, in 8-bit levels
* ``overlap``: test images that are pixel by pixel among the published images or their originals
* ``test_images``: size of the clean test set
* ``attacks``: how many attacks there are
* ``label_agreement``: share of published images, 0 to 1, whose label is that of the original with the same id

Needs no torch.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uge.auditing.summary import NOISE, Doubt, Result, Summary, listed, number, too_low, with_key
from uge.cases.case import Case
from uge.files import canonical_json
from uge.names import behind_key, is_keyed

ENOUGH_SEEDS = 3
WOBBLE = 5.0  # Points that a best epoch may lie above the last.
RETENTION = 4.0  # Points that the authorised network may lie below its clean control.
STARTED = "trained-start"
NOT_CONVERGED = "not-converged"
BEST_ABOVE_LAST = "best-above-last"
Details = Sequence[str]  # Texts for the sentences of a check; empty if there is nothing to doubt.


@dataclass(frozen=True)
class Evidence:
    """Cases, their summary, and facts about the data."""

    cases: Sequence[Case] = ()
    summary: Summary = field(default_factory=Summary)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> list[Result]:
        """Authorised networks, then hackers."""
        return [*self.summary.authorized_all, *self.summary.hackers]

    def where(self, test: Callable[[Case], bool]) -> Details:
        """The training runs that pass a test, in words."""
        return _names(f"{case.role} {case.network} ({case.scheme})" for case in self.cases if test(case))


@dataclass(frozen=True)
class Check:
    """A reason for doubt.

    Attributes:
        find: Gives the details of what is wrong; empty for a sound audit.
        what: The observation, a sentence with a ``{}`` for each detail.
        meaning: Consequence for the numbers; may take details by number.
        advice: Remedy.
    """

    find: Callable[[Evidence], Details]
    what: str
    meaning: str = ""
    advice: str = ""


def overlap(published: Iterable[str | bytes], test: Iterable[str | bytes]) -> int:
    """Number of test images among the published ones: exact duplicates, by hashes of their pixels.

    Args:
        published: A hash of each published image (or original), of shape and pixels.
        test: The same of the test images.

    Returns:
        Number of test images whose hash occurs in ``published``.
    """
    known = set(published)
    return sum(digest in known for digest in test)


def find_doubts(cases: Sequence[Case], summary: Summary, facts: Mapping[str, Any]) -> list[Doubt]:
    """Every reason for doubt, in the order of :data:`CHECKS`.

    Args:
        cases: All cases of the audit.
        summary: Their means; its own doubts are ignored.
        facts: Facts about the data by name, as this module's docstring lists them.
    """
    evidence = Evidence(cases, summary, facts)
    details = {name: check.find(evidence) for name, check in CHECKS.items()}
    return [
        Doubt(
            check=name,
            what=check.what.format(*details[name]),
            meaning=check.meaning.format(*details[name]),
            advice=check.advice,
        )
        for name, check in CHECKS.items()
        if details[name]
    ]


def _if(wrong: object) -> Details:
    return ("",) if wrong else ()


def _names(names: Iterable[str]) -> Details:
    text = listed(names)
    return (text,) if text else ()


def _diverged(case: Case) -> bool:
    last = case.history[-1] if case.history else None
    if last is None or last.loss is not None:
        return False
    return last.train_accuracy is not None or any(epoch.loss is not None for epoch in case.history)


def _small_test(evidence: Evidence) -> Details:
    margin = evidence.summary.margin
    images = evidence.facts.get("test_images")
    if margin is None or not isinstance(images, int) or images < 1:
        return ()
    value, *_ = margin.smaller
    shares = [min(max(accuracy / 100, 0.0), 1.0) for accuracy in (margin.accuracy, margin.accuracy + margin.last)]
    # Two independent binomial shares: an upper bound, since both networks see the same test images.
    noise = 100 * 1.96 * math.sqrt(sum(share * (1 - share) for share in shares) / images)
    # Below the noise of seeds nothing is claimed.
    return (f"{images:,}", margin.kind, number(value), number(noise)) if NOISE < value < noise else ()


def _mixed(evidence: Evidence) -> Details:
    settings: dict[str, set[str]] = {}
    for case in evidence.cases:
        if case.data == "protected":
            recipe = {name: value for name, value in case.recipe.items() if name != "seed"}
            group = f"{case.role} {case.network} ({with_key(case.scheme, case.key)})"
            settings.setdefault(group, set()).add(canonical_json([case.start, recipe]))
    return _names(group for group, different in settings.items() if len(different) > 1)


def _trained_start(evidence: Evidence) -> Details:
    chance = evidence.summary.chance
    images = evidence.facts.get("test_images")
    if chance is None:
        return ()
    luck = 1.96 * math.sqrt(chance * (100 - chance) / images) if isinstance(images, int) and images > 0 else 0.0
    return _names(
        f"θ0 of {case.network}{f', key {case.key},' if case.key else ''} reaches {number(case.start_accuracy)} %"
        for case in evidence.cases
        if case.start_accuracy is not None and case.start_accuracy > chance + max(NOISE, luck)
    )


def _control_below_authorized(evidence: Evidence) -> Details:
    chosen = evidence.summary.authorized
    controls = {behind_key(name): value for name, value in evidence.summary.clean.items()}
    clean = controls.get(behind_key(chosen.network)) if chosen else None
    if chosen is None or clean is None or chosen.last <= clean + NOISE:
        return ()
    return chosen.network, number(clean)


def _budget(evidence: Evidence) -> Details:
    promised = evidence.facts.get("budget_levels")
    measured = evidence.facts.get("linf_levels")
    return () if promised is None or measured is None or measured <= promised else (f"{measured}", f"{promised}")


# By name; the gravest first.
CHECKS = {
    "labels": Check(
        lambda evidence: _names(
            f"{100 * (1 - share):.1f}"
            for share in [evidence.facts.get("label_agreement")]
            if share is not None and share < 1
        ),
        "{} % of the published labels are not those of the originals with the same ids.",
        "Hackers may fail because of wrong labels, not of the protection.",
        "Publish the labels unchanged.",
    ),
    "overlap": Check(
        lambda evidence: _names(f"{count:,}" for count in [evidence.facts.get("overlap")] if count),
        "{} test images are among the training images, pixel by pixel.",
        "Remembering these looks like having learned; accuracies are too high.",
        "Take them out of the test set.",
    ),
    "budget": Check(
        _budget,
        "The stored images change by up to {} levels, {} are claimed.",
        "The measured protection is stronger and more visible.",
        "Run uge verify --against the originals.",
    ),
    "no-key": Check(
        lambda evidence: _if(not evidence.summary.authorized and not evidence.facts.get("originals_opened")),
        "The authorised network was not tested: no key was given, so there is no gap to report.",
        "The number is what the protection costs the strongest hacker.",
        "Give --key if there is one.",
    ),
    "no-hacker": Check(
        lambda evidence: _if(not evidence.summary.hackers),
        "No hacker was tried, so nothing is known about what others can learn.",
        advice="Run the audit with --networks.",
    ),
    "failed": Check(
        lambda evidence: _names(evidence.summary.failed),
        "Without a result: {}.",
        "A case that failed is not a hacker that failed.",
        "Run the audit again: it trains what is missing.",
    ),
    "no-control": Check(
        lambda evidence: _names(result.network for result in evidence.results if result.clean is None),
        "No clean control for {}: failed protection and failed training cannot be told apart.",
        advice="Give --test a source that has the originals as its training split.",
    ),
    "control-low": Check(
        lambda evidence: _names(
            network
            for network, accuracy in evidence.summary.clean.items()
            if too_low(accuracy, evidence.summary.chance or 0.0)
        ),
        "The clean control of {} is hardly above chance: that training does not work even on clean data.",
        "A hacker's low number means nothing there.",
        "Train longer, or with another recipe.",
    ),
    "control-below-authorized": Check(
        _control_below_authorized,
        "The clean control of {} ({} %) is below the authorised network's accuracy.",
        "They differ in more than the protection, and part of the gap is not due to it.",
        "Give both the same recipe and start.",
    ),
    "above-control": Check(
        lambda evidence: _names(
            result.name
            for result in evidence.results
            if result.clean is not None and result.last > result.clean + NOISE
        ),
        f"More than {NOISE:.0f} points above its own clean control: {{}}.",
        "Either the control is undertrained or the attack trains better than the control.",
        "Give the control the same recipe and as many epochs.",
    ),
    "no-effect": Check(
        lambda evidence: _names(
            hacker.network
            for hacker in evidence.summary.hackers
            if hacker.scheme == "direct" and not is_keyed(hacker.network)
            if hacker.clean is not None and abs(hacker.clean - hacker.last) <= NOISE
        ),
        f"Plain training on the published images is within {NOISE:.0f} points of clean for {{}}.",
        "The protection shows nothing there: what attacks add cannot be seen either.",
        "Check that the audited folder is the protected one; otherwise do not publish it.",
    ),
    STARTED: Check(
        _trained_start,
        "{} before any training.",
        "The protection is judged by what training adds.",
        "Audit a key whose θ0 is untrained.",
    ),
    "retention": Check(
        lambda evidence: _names(
            f"{result.network} ({number(result.last)} of {number(result.clean)} %)"
            for result in evidence.summary.authorized_all
            if result.clean is not None and result.last < result.clean - RETENTION
        ),
        f"The authorised network is more than {RETENTION:.0f} points worse than on clean images: {{}}.",
        "The receiver pays for the protection.",
        "Protect less, or tell the receiver.",
    ),
    "diverged": Check(
        lambda evidence: evidence.where(_diverged),
        "The loss was no longer a number in {}.",
        "That run failed by itself, and says nothing about the protection.",
        "Lower its learning rate, or use full precision.",
    ),
    NOT_CONVERGED: Check(
        lambda evidence: evidence.where(lambda case: case.still_improving),
        "Still improving at the end: {}.",
        "Not converged: a hacker has time.",
        "Train longer before trusting the numbers.",
    ),
    BEST_ABOVE_LAST: Check(
        lambda evidence: _names(result.name for result in evidence.results if result.best - result.last > WOBBLE),
        f"The best epoch lies more than {WOBBLE:.0f} points above the last for {{}}.",
        "A hacker that stops early, with a small clean test set, gets the larger number.",
        "Believe the best epochs.",
    ),
    "few-seeds": Check(
        lambda evidence: (
            [f"{evidence.summary.seeds}"] if evidence.results and evidence.summary.seeds < ENOUGH_SEEDS else []
        ),
        f"Fewer than {ENOUGH_SEEDS} seeds ({{}}): a small difference cannot be told from luck.",
        advice=f"Run with --seeds {ENOUGH_SEEDS} or more.",
    ),
    "small-test": Check(
        _small_test,
        "{} test images are few for a {} of {} points.",
        "Chance alone moves the difference of two accuracies by ±{3} points.",
        "Use more test images, or claim no difference.",
    ),
    "few-attacks": Check(
        lambda evidence: _if(
            evidence.summary.hackers
            and {hacker.family for hacker in evidence.summary.hackers}.isdisjoint({"preprocess", "purify"})
        ),
        "No filter of the images was tried, not even gray images or JPEG.",
        "Most protections of this kind fall to a filter.",
        "Run the default attacks, or --budget full.",
    ),
    "mixed-recipes": Check(
        _mixed,
        "Runs with different recipes or starts are averaged for {}.",
        "The mean hides the stronger one.",
        "Audit each recipe in a folder of its own.",
    ),
    "weaker-keys": Check(
        lambda evidence: _names(
            result.name
            for result in evidence.summary.authorized_all[1:]
            if evidence.summary.authorized and result.last < evidence.summary.authorized.last - NOISE
        ),
        "Authorised networks clearly below the first, which the gap is about: {}.",
        "For them the gap is smaller.",
        "Judge each key by an audit of its own.",
    ),
}
