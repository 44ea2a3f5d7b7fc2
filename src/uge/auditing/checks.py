"""Is this audit believable? One function a check; each says what it found, what that means, and what to do.

Checks look at cases and results, and at a small dictionary of facts about the data, every entry of it optional:

* ``budget_levels``, ``linf_levels``: promised and measured largest change, in 8-bit levels
* ``overlap``: test images that are pixel by pixel among the published images or their originals
* ``test_images``: size of the clean test set
* ``attacks``: how many attacks there are
* ``label_agreement``: share of published images, 0 to 1, whose label is that of the original with the same id
* ``classes``, ``test_classes``: names of the classes of both sets, in the order of the labels

Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uge.auditing.summary import NOISE, Doubt, Result, Summary
from uge.auditing.verdict import listed, points, too_low
from uge.cases.case import Case
from uge.files import canonical_json
from uge.names import behind_key, is_keyed

ENOUGH_SEEDS = 3
WOBBLE = 5.0
STARTED = "trained-start"
RETENTION = 4.0
"""Points that the authorised network may lie below its clean control."""
Found = tuple[str, str, str] | None
"""What was found, what it means, what to do."""


@dataclass(frozen=True)
class Evidence:
    """What a check looks at."""

    cases: Sequence[Case] = ()
    summary: Summary = field(default_factory=Summary)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> list[Result]:
        """Authorised networks, then hackers."""
        return [*self.summary.authorized_all, *self.summary.hackers]

    def where(self, test: Callable[[Case], bool]) -> str:
        """Which runs pass a test, in words."""
        return listed(f"{case.role} {case.network} ({case.scheme})" for case in self.cases if test(case))


def overlap(published: Iterable[str | bytes], test: Iterable[str | bytes]) -> int:
    """How many test images are among the published ones: exact duplicates, by hashes of their pixels.

    Args:
        published: A hash of each published image (or original), of shape and pixels.
        test: The same of the test images.

    Returns:
        Number of test images whose hash occurs in ``published``.
    """
    known = set(published)
    return sum(one in known for one in test)


def look(cases: Sequence[Case], summary: Summary, facts: Mapping[str, Any]) -> list[Doubt]:
    """Every reason for doubt, in the order of :data:`CHECKS`.

    Args:
        cases: All cases of the audit.
        summary: Their means; its own doubts are ignored.
        facts: See the module.
    """
    evidence = Evidence(cases, summary, facts)
    found = [(name, check(evidence)) for name, check in CHECKS.items()]
    return [Doubt(check=n, what=f[0], meaning=f[1], advice=f[2]) for n, f in found if f]


def _no_key(evidence: Evidence) -> Found:
    if evidence.summary.authorized is not None:
        return None
    what = "The authorised network was not tested: no key was given, so there is no gap to report."
    return what, "The number is what the protection costs the strongest hacker.", "Give --key if there is one."


def _no_hacker(evidence: Evidence) -> Found:
    if evidence.summary.hackers:
        return None
    what = "No hacker was tried, so nothing is known about what others can learn."
    return what, "", "Run the audit with --networks."


def _failed(evidence: Evidence) -> Found:
    if not evidence.summary.failed:
        return None
    what = f"Without a result: {listed(evidence.summary.failed)}."
    return what, "A case that failed is not a hacker who failed.", "Run the audit again: it trains what is missing."


def _no_control(evidence: Evidence) -> Found:
    missing = listed(result.network for result in evidence.results if result.clean is None)
    what = f"No clean control for {missing}: without it nobody can on_progress failed protection from failed training."
    return (what, "", "Give --test a source that has the originals as its training split.") if missing else None


def _control_low(evidence: Evidence) -> Found:
    chance = evidence.summary.chance or 0.0
    low = listed(name for name, value in evidence.summary.clean.items() if too_low(value, chance))
    what = f"The clean control of {low} is hardly above chance: that training does not work even on clean data."
    advice = "Train longer, or with another recipe."
    return (what, "A hacker's low number means nothing there.", advice) if low else None


def _above_control(evidence: Evidence) -> Found:
    above = listed(r.name for r in evidence.results if r.clean is not None and r.last > r.clean + NOISE)
    what = f"More than {NOISE:.0f} points above its own clean control: {above}."
    meaning = "Either the control is undertrained or the attack trains better than the control."
    return (what, meaning, "Give the control the same recipe and as many epochs.") if above else None


def _no_effect(evidence: Evidence) -> Found:
    plain = [h for h in evidence.summary.hackers if h.scheme == "direct" and not is_keyed(h.network)]
    close = [h.network for h in plain if h.clean is not None and abs(h.clean - h.last) <= NOISE]
    what = f"Plain training on the published images is within {NOISE:.0f} points of clean for {listed(close)}."
    meaning = "The protection shows nothing there: what attacks add cannot be seen either."
    advice = "Check that the audited folder is the protected one; otherwise do not publish it."
    return (what, meaning, advice) if close else None


def _not_converged(evidence: Evidence) -> Found:
    climbing = evidence.where(lambda case: case.still_improving)
    what = f"Still improving at the end: {climbing}."
    return (
        (what, "Not converged: a hacker has time.", "Train longer before trusting the numbers.") if climbing else None
    )


def _diverged(evidence: Evidence) -> Found:
    def lost(case: Case) -> bool:
        end = case.history[-1:]
        known = any(epoch.loss is not None for epoch in case.history)
        return bool(end) and end[0].loss is None and (known or end[0].train_accuracy is not None)

    lost_runs = evidence.where(lost)
    what = f"The loss was no longer a number in {lost_runs}."
    meaning = "That run failed by itself, and says nothing about the protection."
    return (what, meaning, "Lower its learning rate, or use full precision.") if lost_runs else None


def _wobble(evidence: Evidence) -> Found:
    wobbling = listed(result.name for result in evidence.results if result.best - result.last > WOBBLE)
    what = f"The best epoch lies more than {WOBBLE:.0f} points above the last for {wobbling}."
    meaning = "A hacker who stops early, with a small clean test set, gets the larger number."
    return (what, meaning, "Believe the best epochs.") if wobbling else None


def _few_seeds(evidence: Evidence) -> Found:
    seeds = evidence.summary.seeds
    if not evidence.results or seeds >= ENOUGH_SEEDS:
        return None
    what = f"Fewer than {ENOUGH_SEEDS} seeds ({seeds}): a small difference cannot be told from luck."
    return what, "", f"Run with --seeds {ENOUGH_SEEDS} or more."


def _small_test(evidence: Evidence) -> Found:
    margin, images = evidence.summary.margin, evidence.facts.get("test_images")
    if margin is None or not isinstance(images, int) or images < 1:
        return None
    value, *_ = margin.smaller
    hacker = min(max(margin.accuracy / 100, 0.0), 1.0)
    other = min(max((margin.accuracy + margin.last) / 100, 0.0), 1.0)
    # Two independent binomial shares: an upper bound, since both networks see the same test images.
    noise = 100 * 1.96 * math.sqrt((hacker * (1 - hacker) + other * (1 - other)) / images)
    if value <= NOISE or value >= noise:  # Below the noise of seeds nothing is claimed.
        return None
    what = f"{images:,} test images are few for a {margin.kind} of {points(value)} points."
    meaning = f"Chance alone moves the difference of two accuracies by ±{points(noise)} points."
    return what, meaning, "Use more test images, or claim no difference."


def _few_attacks(evidence: Evidence) -> Found:
    hackers = evidence.summary.hackers
    if not hackers or any(hacker.family in {"preprocess", "purify"} for hacker in hackers):
        return None
    what = "No filter of the images was tried, not even gray images or JPEG."
    return what, "Most protections of this kind fall to one of them.", "Run the default attacks, or --budget full."


def _mixed(evidence: Evidence) -> Found:
    seen: dict[str, set[str]] = {}
    for case in evidence.cases:
        recipe = {key: value for key, value in case.recipe.items() if key != "seed"}
        name = f"{case.role} {case.network} ({case.scheme}{f', key {case.key}' if case.key else ''})"
        if case.data == "protected":
            seen.setdefault(name, set()).add(canonical_json([case.start, recipe]))
    unequal = listed(name for name, recipes in seen.items() if len(recipes) > 1)
    what = f"Runs with different recipes or starts are averaged for {unequal}."
    return (what, "The mean hides the stronger one.", "Audit each recipe in a folder of its own.") if unequal else None


def _weaker_keys(evidence: Evidence) -> Found:
    first, others = evidence.summary.authorized, evidence.summary.authorized_all[1:]
    weaker = listed(result.name for result in others if first and result.last < first.last - NOISE)
    what = f"Authorised networks clearly below the first, which the gap is about: {weaker}."
    return (what, "For them the gap is smaller.", "Judge each key by an audit of its own.") if weaker else None


def _retention(evidence: Evidence) -> Found:
    losing = [r for r in evidence.summary.authorized_all if r.clean is not None and r.last < r.clean - RETENTION]
    how = listed(f"{r.network} ({points(r.last)} of {points(r.clean or 0.0)} %)" for r in losing)
    what = f"The authorised network is more than {RETENTION:.0f} points worse than on clean images: {how}."
    return (what, "The receiver pays for the protection.", "Protect less, or tell the receiver.") if how else None


def _trained_start(evidence: Evidence) -> Found:
    chance, images = evidence.summary.chance, evidence.facts.get("test_images")
    if chance is None:
        return None
    luck = 1.96 * math.sqrt(chance * (100 - chance) / images) if isinstance(images, int) and images > 0 else 0.0
    high = listed(
        f"θ0 of {case.network}{f', key {case.key},' if case.key else ''} reaches {points(case.start_accuracy)} %"
        for case in evidence.cases
        if case.start_accuracy is not None and case.start_accuracy > chance + max(NOISE, luck)
    )
    meaning = "The protection is judged by what training adds."
    return (f"{high} before any training.", meaning, "Audit a key whose θ0 is untrained.") if high else None


def _control_below_authorized(evidence: Evidence) -> Found:
    chosen = evidence.summary.authorized
    controls = {behind_key(name): value for name, value in evidence.summary.clean.items()}
    clean = controls.get(behind_key(chosen.network)) if chosen else None
    if chosen is None or clean is None or chosen.last <= clean + NOISE:
        return None
    what = f"The clean control of {chosen.network} ({points(clean)} %) is below the authorised network's accuracy."
    meaning = "Something other than the protection tells them apart, and part of the gap is not due to it."
    return what, meaning, "Give both the same recipe and start."


def _budget(evidence: Evidence) -> Found:
    promised, measured = evidence.facts.get("budget_levels"), evidence.facts.get("linf_levels")
    if promised is None or measured is None or measured <= promised:
        return None
    what = f"The stored images change by up to {measured} levels, {promised} are claimed."
    return what, "What was measured is a stronger, more visible protection.", "Run uge verify --against the originals."


def _overlap(evidence: Evidence) -> Found:
    count = evidence.facts.get("overlap") or 0
    what = f"{count:,} test images are among the training images, pixel by pixel."
    meaning = "Who remembers them looks as if he had learned; accuracies are too high."
    return (what, meaning, "Take them out of the test set.") if count else None


def _labels(evidence: Evidence) -> Found:
    share = evidence.facts.get("label_agreement")
    if share is None or share >= 1:
        return None
    what = f"{100 * (1 - share):.1f} % of the published labels are not those of the originals with the same ids."
    return what, "Hackers may fail because of wrong labels, not of the protection.", "Publish the labels unchanged."


def _class_names(evidence: Evidence) -> Found:
    ours, test = evidence.facts.get("classes"), evidence.facts.get("test_classes")
    if ours is None or test is None or list(ours) == list(test):
        return None
    odd = listed(f"{a} / {b}" for a, b in zip(ours, test, strict=False) if a != b) or f"{len(ours)} / {len(test)}"
    what = f"Published and test classes have different names or orders: {odd}."
    return what, "A label may mean another class in the test set; accuracies are then wrong.", "Make both alike."


CHECKS: dict[str, Callable[[Evidence], Found]] = {
    "labels": _labels,
    "class-names": _class_names,
    "overlap": _overlap,
    "budget": _budget,
    "no-key": _no_key,
    "no-hacker": _no_hacker,
    "failed": _failed,
    "no-control": _no_control,
    "control-low": _control_low,
    "control-below-authorized": _control_below_authorized,
    "above-control": _above_control,
    "no-effect": _no_effect,
    STARTED: _trained_start,
    "retention": _retention,
    "diverged": _diverged,
    "not-converged": _not_converged,
    "best-above-last": _wobble,
    "few-seeds": _few_seeds,
    "small-test": _small_test,
    "few-attacks": _few_attacks,
    "mixed-recipes": _mixed,
    "weaker-keys": _weaker_keys,
}
"""What is checked, by name; the gravest first."""
