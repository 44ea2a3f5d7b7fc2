"""Time to the verdict: when an audit knows the strongest attack within 3 points, from results that were measured.

::

    python benchmarks/verdict.py  # writes the table into docs/audit.md

Nothing is trained. Every row replays the cases of one protection in ``results/worst-case``: seconds and accuracies are
theirs, the order is that of the column. The time of all cases, attacks on clean images included, is 100.

- *by damage*: the order of ``uge audit --budget``, expected points per second.
- *halving*: no expectation at all. Every attack trains for one epoch; after that, in the order of what it reached
  there, each trains from the start to the end. *one epoch each*: time of its first part alone.
- *cheapest*, *dearest*: orders by cost, as a measure of what an order without any knowledge gives.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from uge.auditing.schedule import by_damage
from uge.auditing.worst_results import worst_case
from uge.cases.case import Case, Job, read_cases
from uge.files import write_atomic
from worst_case import COPIES, PAGE, RESULTS, filled

AUDIT = PAGE.with_name("audit.md")
WITHIN = 3.0
BY_DAMAGE, HALVING, RUNG = "by damage", "halving", "one epoch each"


def job_of(case: Case) -> Job:
    return Job(case.role, case.network, case.start, case.scheme, case.data, case.seed)


def cost(case: Case) -> float:
    return job_of(case).entry.cost


def after_an_epoch(case: Case) -> float:
    """Accuracy after one epoch, at the naming that the labelled images choose."""
    return case.model_copy(update={"history": case.history[:1]}).choice().test


def replayed(cases: Sequence[Case]) -> dict[str, float]:
    """Share of the whole time, in percent, until the strongest attack is known within 3 points."""
    worst = worst_case(cases)
    assert worst is not None
    reached = {(row.scheme, row.network): row.reached.value for row in worst.short.attacks}
    first = [case for case in cases if not case.long and case.seed == 0]
    attacks = [case for case in first if case.data == "protected" and (case.scheme, case.network) in reached]
    attacks = [case for case in attacks if case.network == worst.short.worst.network]
    own = [case for case in first if case.network == worst.short.worst.network]
    whole = sum(case.seconds for case in own)
    strongest = max(reached[case.scheme, case.network] for case in attacks)
    control = sum(case.seconds for case in own if case.role == "clean")

    def until(order: Sequence[Case], spent: float = 0.0) -> float:
        time = control + spent
        for case in order:
            time += case.seconds
            if reached[case.scheme, case.network] >= strongest - WITHIN:
                break
        return 100 * time / whole

    def by(key: Callable[[Case], float]) -> list[Case]:
        return sorted(attacks, key=key)

    jobs = {job_of(case): case for case in attacks}
    rung = sum(case.seconds / len(case.history) for case in attacks)
    return {
        BY_DAMAGE: until([jobs[job] for job in by_damage(jobs, lambda job: job.entry.cost)]),
        HALVING: until(by(lambda case: -after_an_epoch(case)), rung),
        RUNG: 100 * (control + rung) / whole,
        "cheapest": until(by(cost)),
        "dearest": until(by(lambda case: -cost(case))),
    }


def table(results: Path = RESULTS) -> str:
    """One row per protection whose audit is complete, or nearly."""
    rows = [(name, list(read_cases(results / name))) for name in COPIES if (results / name / "summary.json").is_file()]
    shares = [(name, replayed(cases)) for name, cases in rows]
    lines = [f"| copy | {' | '.join(shares[0][1])} |", "|---|" + "--:|" * len(shares[0][1])]
    for name, values in shares:
        lines.append(f"| `{name}` | " + " | ".join(f"{value:.1f}" for value in values.values()) + " |")
    return "\n".join(lines)


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Content of the page that shows the table."""
    return {AUDIT: filled(AUDIT.read_text("utf-8"), "verdict", table(results))}


if __name__ == "__main__":
    for path, content in pages().items():
        write_atomic(path, content)
