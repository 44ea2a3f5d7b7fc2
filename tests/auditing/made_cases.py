"""Cases with chosen numbers."""

from typing import Any

from uge.cases.case import Case, Epoch, case_id


def case(role: Any, network: str, last: float, *, best: float | None = None, seed: int = 0, **more: Any) -> Case:
    scheme, data = more.pop("scheme", "direct"), "clean" if role == "clean" else "protected"
    start = more.pop("start", "theta0" if role == "authorized" else "random")
    key = more.pop("key", 0)
    values = more.pop("values", [last])
    needs = more.pop("needs", ["key"] if scheme == "distill" else [])
    return Case(
        id=case_id(role, network, scheme, data, seed, start=start, variant=f"key{key}" if key else ""),
        role=role,
        network=network,
        start=start,
        scheme=scheme,
        data=data,
        seed=seed,
        key=key,
        recipe=more.pop("recipe", {"classes": 10, "seed": seed}),
        history=[Epoch(epoch=i + 1, test_accuracy=value) for i, value in enumerate(values)],
        needs=needs,
        last=last,
        best=last if best is None else best,
        best_epoch=values.index(max(values)) + 1,
        **more,
    )
