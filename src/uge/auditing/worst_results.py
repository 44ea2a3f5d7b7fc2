"""From cases to the worst case, and its sentences. Needs no torch."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from uge.auditing.summary import NOISE, counted, mean_std, number
from uge.auditing.worst_case import Attacked, Form, Mean, WorstCase, is_apart
from uge.cases.case import YARDSTICK, Case


def is_control(case: Case) -> bool:
    """True for an attack on clean images, which counts as no clean control of its network."""
    return case.role == "hacker" and case.data == "clean"


def worst_case(cases: Iterable[Case], *, labelled: int | None = None, opened: int | None = None) -> WorstCase | None:
    """The worst case of an audit's cases; ``None`` where no attack was measured on labelled images.

    Args:
        cases: All cases of the audit.
        labelled: Number of the labelled images.
        opened: Number of sealed originals that were opened and compared.
    """
    cases = list(cases)
    short, long = (_form([case for case in cases if case.long == length]) for length in (False, True))
    return None if short is None else WorstCase(labelled=labelled, short=short, long=long, opened=opened)


def _form(cases: Sequence[Case]) -> Form | None:
    groups: dict[tuple[str, str, int], list[Case]] = {}
    for case in cases:
        if case.role == "hacker" and case.data == "protected":
            groups.setdefault((case.network, case.scheme, case.key), []).append(case)
    clean = {
        name: _reached([case for case in cases if (case.role, case.network, case.start) == ("clean", name, "random")])
        for name in sorted({case.network for case in cases})
    }
    controls = [case for case in cases if is_control(case)]
    rows = {key: _row(group, clean, controls) for key, group in groups.items()}
    strongest = sorted(rows, key=lambda key: (-rows[key].reached.value, key))
    measured = [key for key in strongest if groups[key][0].family != YARDSTICK and _measured(groups[key])]
    apart = {key: is_apart(rows[key].needs, rows[key].network) for key in measured}
    if all(apart.values()):
        return None
    alone = [rows[key] for key in strongest if groups[key][0].family == YARDSTICK and "few" in rows[key].needs]
    plain = next((case for case in cases if case.scheme == "direct" and case.role != "authorized"), cases[0])
    return Form(
        epochs=int(plain.recipe.get("epochs", len(plain.history))),
        attacks=[rows[key] for key in measured if not apart[key]],
        apart=[rows[key] for key in measured if apart[key]],
        no_copy=alone[0] if alone else None,
        clean={name: mean for name, mean in clean.items() if mean is not None},
    )


def _measured(group: Sequence[Case]) -> bool:
    # An attack that trains on the labelled images cannot be judged by them as well: its last epoch counts.
    return "few" in group[0].needs or any(epoch.renamed is not None for case in group for epoch in case.history)


def _row(group: Sequence[Case], clean: dict[str, Mean | None], controls: Sequence[Case]) -> Attacked:
    first = group[0]

    def mean(value: Callable[[Case], float]) -> float:
        return mean_std([value(case) for case in group])[0]

    choices = [case.choice() for case in group]
    scores = [choice.labelled for choice in choices if choice.labelled is not None]
    same = [
        case for case in controls if (case.network, case.scheme, case.key) == (first.network, first.scheme, first.key)
    ]
    reached = _reached(group)
    assert reached is not None, "a group has a case"
    chosen = Mean.of([choice.test for choice in choices])
    usual = Counter(choice.naming for choice in choices).most_common(1)[0][0]
    return Attacked(
        network=first.network,
        scheme=first.scheme,
        about=first.about,
        needs=first.needs,
        last=mean(lambda case: case.last),
        best=mean(lambda case: case.best),
        chosen=chosen,
        reached=reached,
        naming=usual if chosen.value > mean(lambda case: case.last) else "as is",
        as_is=mean(lambda case: case.choice("as is").test),
        one_to_one=mean(lambda case: case.choice("one to one").test),
        many_to_one=mean(lambda case: case.choice("many to one").test),
        labelled=mean_std(scores)[0] if scores else None,
        oracle=mean(lambda case: case.oracle),
        clean=clean[first.network],
        control=clean[first.network] if first.scheme == "direct" else _reached(same),
        seeds=len({case.seed for case in group}),
    )


def _reached(group: Sequence[Case]) -> Mean | None:
    # Larger of two means: an attacker settles beforehand on the choice of the labelled images, or on the last epoch.
    if not group:
        return None
    chosen, last = Mean.of([case.choice().test for case in group]), Mean.of([case.last for case in group])
    return chosen if chosen.value > last.value else last


def spread(mean: Mean | None) -> str:
    """``59.0 ± 1.0``, ``59.0`` with one seed, an en dash for ``None``."""
    if mean is None:
        return number(None)
    return number(mean.value) + ("" if mean.std is None else f" ± {number(mean.std)}")


def texts(worst: WorstCase, partial: str) -> dict[str, str]:
    """Headline, label and verdict of a summary.

    Args:
        worst: The worst case.
        partial: Missing parts of the audit in words; empty for none.
    """
    return {
        "headline": "; ".join(filter(None, (headline(worst), partial))),
        "label": label(worst) + (", so far" if partial else ""),
        "verdict": verdict(worst) + (" The audit is partial, and what was left out may do better." if partial else ""),
    }


def headline(worst: WorstCase) -> str:
    """The number in a sentence, with the clean control and the accuracy without the copy."""
    forms = [worst.short, *([worst.long] if worst.long else [])]
    return "; ".join(
        f"{'worst case' if form is worst.short else 'long form'}, {counted(form.epochs, 'epoch')}: "
        f"{spread(form.worst.reached)} % by {form.worst.name} ({counted(form.worst.seeds, 'seed')}); "
        f"{_beside(form, opened=worst.opened is not None)}"
        for form in forms
    )


def _beside(form: Form, *, opened: bool) -> str:
    name = "authorised = clean" if opened else "clean"
    return (
        f"{name} {spread(form.worst.clean)} %, the labelled images without the copy "
        f"{spread(form.no_copy.reached if form.no_copy else None)} %"
    )


def label(worst: WorstCase) -> str:
    """The worst case in a few words, beside the clean control and training without the copy."""
    row, alone = worst.short.worst, worst.short.no_copy
    text = f"worst case {number(row.reached.value)} %"
    if row.clean is None:
        return text
    text += f" of {number(row.clean.value)} % clean"
    if row.reached.value >= row.clean.value - NOISE:
        return f"{text}: the copy holds nothing back"
    if alone is not None and row.reached.value <= alone.reached.value + NOISE:
        return f"{text}: no more than without the copy"
    return text


def verdict(worst: WorstCase) -> str:
    """The worst case in plain sentences."""
    form = worst.short
    row, alone = form.worst, form.no_copy
    sentences = [
        f"The strongest of {len({attack.scheme for attack in form.attacks})} attacks, {row.name}, reaches "
        f"{spread(row.reached)} % after {counted(form.epochs, 'epoch')}"
    ]
    if row.clean is not None:
        sentences[0] += f", where the originals give {spread(row.clean)} %"
    if alone is not None:
        won = row.reached.value - alone.reached.value
        sentences.append(
            f"The labelled images alone give {spread(alone.reached)} % without the copy, so that the copy adds "
            f"{number(max(won, 0.0))} points"
        )
    if form.picked.name != row.name:
        sentences.append(
            f"The attack that the labelled images choose, {form.picked.name}, reaches {spread(form.picked.reached)} %"
        )
    if worst.long is not None:
        sentences.append(
            f"After {worst.long.epochs} epochs the strongest, {worst.long.worst.name}, reaches "
            f"{spread(worst.long.worst.reached)} %"
        )
    sentences += authorised(worst)
    return " ".join(f"{sentence}." for sentence in sentences)


def authorised(worst: WorstCase) -> list[str]:
    """Sentence on authorised training of a sealed copy, in a list; empty for a copy that is not sealed."""
    clean = worst.short.worst.clean
    if worst.opened is None or clean is None:
        return []
    return [
        f"Authorised training is training on the originals, {spread(clean)} %: all {worst.opened:,} sealed originals "
        "were opened and compared with the copy"
    ]
