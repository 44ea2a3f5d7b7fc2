"""The other commands, and the table of all; torch is imported only by those that compute, inside their functions."""

import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from uge.cli.audit import audit, compare
from uge.cli.console import Outcome, make_progress, open_session, set_logging, set_reading
from uge.cli.description import described
from uge.cli.flags import FLAT, Common, Compute, OutPath, Page, Reading, Resumable, Writing
from uge.cli.owner import fulfil, grant, keygen, push, recipients, rekey, sign
from uge.cli.protect import apply, demo, federated, preview, protect, request
from uge.errors import UsageError

TABLES = {
    "attacks": "uge.attacks:ATTACKS",
    "methods": "uge.methods:METHODS",
    "networks": "uge.networks:NETWORKS",
    "encoders": "uge.encoders:ENCODERS",
    "recipes": "uge.learning.recipes:RECIPES",
}
"""Tables whose rows can be chosen by name."""


def train(
    out: Path,
    *,
    key: Path,
    test: str | None = None,
    network: str | None = None,
    recipe: str | None = None,
    size: Annotated[int | None, Parameter(validator=validators.Number(gte=16, lte=4096))] = None,
    epochs: int | None = None,
    limit_test: int | None = None,
    save: OutPath | None = None,
    seed: int = 1,
    trust_plugins: Annotated[bool, Parameter(negative="")] = False,
    owner: str | None = None,
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Train on a published folder with a key, and measure the network's accuracy.

    A key file of weights is θ0 of the authorised network, which is trained on the published images. The private key of
    a recipient opens the sealed originals, on which any network is trained.

    Examples:

    - `uge train out/mine --key out/mine.private/authorized-0.key.safetensors --test my-images/`
    - `uge train out/mine --key me.agekey --network resnet8 --test my-images/`

    Parameters
    ----------
    out
        Published folder.
    key
        Key file with θ0 and the recipe, or the private key of a recipient.
    test
        Clean test images.
    network
        Network that is trained on the originals; cnn by default.
    recipe
        Named recipe for the originals; short by default.
    size
        Side length for training on the originals; by default their own, or the manifest's.
    epochs
        If other than the recipe's.
    limit_test
        First N test images only.
    save
        File for the trained weights (safetensors); `--resume` goes on from the checkpoint beside it.
    seed
        Seed of data order and augmentation.
    trust_plugins
        Allow a key whose network is a plug-in (`package.module:function`, `timm:name`): its code is run.
    owner
        Key of the folder's owner, who must have signed it: the fingerprint, or a file with it or with the public key.
    """
    session = open_session(common)
    from uge.pipeline.train import run_train

    result = run_train(
        out,
        key,
        test,
        epochs=epochs,
        seed=seed,
        limit_test=limit_test,
        save=save,
        network=network,
        recipe=recipe,
        size=size,
        trust_plugins=trust_plugins,
        owner=owner,
        session=session,
    )
    place = f"the originals of {out}" if result["trained_on"] == "originals" else out
    if common.dry_run:
        return Outcome(result, f"would train {result['network']} on {place}; nothing was written")
    measured = "not measured (no --test)" if test is None else f"{result['last']:.2f} % (best {result['best']:.2f} %)"
    return Outcome(result, f"{result['network']} trained on {place}: clean test accuracy {measured}")


def verify(
    out: str,
    *,
    against: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    private: Path | None = None,
    key: Path | None = None,
    signed_by: str | None = None,
    common: Annotated[Reading, FLAT] = Reading(),
) -> Outcome:
    """Re-read a published folder from disk and check everything that its manifest claims.

    Examples:

    - `uge verify out/mine --against my-images/`
    - `uge verify out/mine --key me.agekey`

    Parameters
    ----------
    out
        Published folder, here or at an address such as s3://bucket/x.
    against
        The originals; then the change of every stored pixel is measured too. Where images were added from other
        sources, repeat it in that order.
    private
        Its private folder, which proves every field of the manifest; OUT.private by default.
    key
        Private key of a recipient; then every sealed original is opened and compared too.
    signed_by
        Key of its owner, who must have signed it: the fingerprint, or a file with it or with the public key.
    """
    set_logging(common)
    set_reading(common)
    from uge.pipeline.remote import folder_of
    from uge.publishing.verify import run_verify

    with folder_of(out) as folder:
        result = run_verify(folder, against, make_progress(quiet=common.quiet), private, key, signed_by)
    problems = result["problems"]
    text = f"{out}: {len(problems)} deviations" if problems else f"{out}: {result['count']} images, no deviation"
    if signed_by is not None and not problems:
        text += ", signed by the key that was given"
    if result["sealed"] is not None:
        opened = f", and {result['opened']} were opened" if key else ""
        text += f"\nthe originals are sealed for: {', '.join(result['sealed'])}{opened}"
    text = "\n".join([text, *result["not_compared"]])
    return Outcome(result, text, complaints=problems, code=int(bool(problems)))


def export(
    out: str, dest: OutPath, *, key: Path, owner: str | None = None, common: Annotated[Page, FLAT] = Page()
) -> Outcome:
    """Write the sealed originals of a published folder as an image folder, byte for byte as they were sealed.

    Of the answer to a request (`uge fulfil`) the trained weights are written, as a safetensors file.

    Examples:

    - `uge export out/mine originals/ --key me.agekey`
    - `uge export for-alice weights.safetensors --key me.agekey`

    Parameters
    ----------
    out
        Published folder, or answer to a request.
    dest
        The new folder or file, which only its owner may read.
    key
        Private key of a recipient, or the content key that `age -d` gives.
    owner
        Key of the folder's owner, who must have signed it: the fingerprint, or a file with it or with the public key.
    """
    set_logging(common)
    from uge.pipeline.export import export_weights, run_export
    from uge.pipeline.remote import folder_of
    from uge.publishing.fulfilment import is_fulfilment

    progress = make_progress(quiet=common.quiet)
    with folder_of(out) as folder:
        if is_fulfilment(folder):
            result = export_weights(folder, dest, key, owner=owner, overwrite=common.overwrite)
            return Outcome(result, f"{dest}: weights of {result['network']}")
        result = run_export(folder, dest, key, owner=owner, overwrite=common.overwrite, progress=progress)
    images = ", ".join(f"{count} {split}" for split, count in result["images"].items())
    metadata = "with every byte of their files" if result["metadata"] == "kept" else "without their metadata"
    return Outcome(result, f"{dest}: {images} originals {metadata}")


def report(run: Path, out: OutPath, *, common: Annotated[Page, FLAT] = Page()) -> Outcome:
    """Write the HTML page of an audit folder.

    Example: `uge report out/mine.audit page.html`

    Parameters
    ----------
    run
        Audit folder (OUT.audit).
    out
        The page.
    """
    set_logging(common)
    from uge.report import write_report

    page = write_report(run, out, overwrite=common.overwrite)
    return Outcome({"report": str(page)}, f"report: {page}")


def inspect(target: str, *, common: Annotated[Reading, FLAT] = Reading()) -> Outcome:
    """Describe a path: published or private folder, audit, federation, request, weights file, or image source.

    Example: `uge inspect out/mine`

    Parameters
    ----------
    target
        Path, hf:// id, or `photos`.
    """
    set_logging(common)
    set_reading(common)
    from uge.pipeline.inspect import inspect as describe

    result = describe(target)
    return Outcome(result, described(target, result))


def env(*, common: Annotated[Compute, FLAT] = Compute()) -> Outcome:
    """Show versions, device and precision, as every result records them.

    Example: `uge env --json`
    """
    result = open_session(common).runtime.environment()
    return Outcome(result, "\n".join(f"{name}: {value}" for name, value in result.items()))


def list_names(
    table: Literal["attacks", "methods", "networks", "encoders", "recipes"],
    *,
    common: Annotated[Common, FLAT] = Common(),
) -> Outcome:
    """List the names that other commands take, one a line, with the package that brought each.

    Example: `uge list attacks`, or `uge list methods --json`.

    Parameters
    ----------
    table
        attacks, methods, networks, encoders or recipes.
    """
    set_logging(common)
    names = pkgutil.resolve_name(TABLES[table])
    rows: list[dict[str, str]] = []
    complaints: list[str] = []
    for name in names:
        package = getattr(names, "origin", lambda name: "")(name) or "uge"
        try:
            rows.append({"name": name, "about": str(names[name].about), "package": package})
        except UsageError as error:
            complaints.append(str(error))
    width = max(len(row["name"]) for row in rows)
    foreign = {row["name"]: f" ({row['package']})" for row in rows if row["package"] != "uge"}
    lines = [f"{row['name']:{width}}  {row['about']}{foreign.get(row['name'], '')}" for row in rows]
    return Outcome({"table": table, "rows": rows}, "\n".join(lines), complaints=complaints)


def reproduce(
    what: str,
    *,
    scale: str = "smoke",
    data: tuple[str, ...] = (),
    out: OutPath | None = None,
    only: tuple[str, ...] = (),
    seeds: int | None = None,
    limit: int | None = None,
    epochs: int | None = None,
    encoder: str | None = None,
    cnn_recipe: str | None = None,
    workers: int = 1,
    report_only: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Writing, FLAT] = Writing(),
) -> Outcome:
    """Measure a table or figure of the paper again, with our numbers beside the paper's.

    Finished cells are kept and shared between tables; only missing cells run, and a killed run goes on. Exit code 1
    means that a cell failed; a cell that was not run is no failure.

    Examples:

    - `uge reproduce table1`
    - `uge reproduce table3 --scale cpu --data cifar10=data/cifar10 --only CIFAR-10 --workers 2`
    - `uge reproduce all --scale cpu --report-only`

    Parameters
    ----------
    what
        table1, table2, table3, table7, table8, table9, fig3, fig4, fig6, fig7 or all.
    scale
        smoke (minutes, the embedded photographs), cpu (a night on two cores) or paper (Tables 5 and 6, a GPU).
    data
        NAME=SOURCE for cifar10, cifar100, tinyimagenet or tinyimagenet20.
    out
        Folder of results; reproduce-out/SCALE by default.
    only
        Only cells whose DATA/ROW/COLUMN holds this text or matches this pattern.
    seeds
        Repetitions, if other than the scale's.
    limit
        Training images, if other than the scale's.
    epochs
        Epochs of every network, if other than the scale's.
    encoder
        Feature space, if other than the scale's: local, or clip:ID.
    cnn_recipe
        Recipe of the plain CNN at scale paper, if other than Adam with weight decay: paper-cifar10-cnn-no-decay or
        paper-cifar10-cnn-sgd.
    workers
        Cases that run side by side.
    report_only
        Run nothing; write the pages from the finished cells.
    """
    from uge.paper.request import Request

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    asked = Request.checked(
        what,
        scale,
        data,
        out,
        only,
        seeds=seeds,
        limit=limit,
        epochs=epochs,
        encoder=encoder,
        cnn_recipe=cnn_recipe,
        workers=workers,
    )
    if common.dry_run:
        set_logging(common)
        plan = asked.describe()
        return Outcome(plan, f"would run {plan['pending']} of {plan['parts']} parts; nothing was written")
    if report_only:
        set_logging(common)
    else:
        session = open_session(common)
        from uge.paper.run import carry_out

        carry_out(
            asked.plan,
            asked.folder,
            asked.sources,
            session,
            workers=workers,
            overwrite=common.overwrite,
        )
    result = asked.write()
    failed = any(states["failed"] for states in result["states"].values())
    return Outcome(result, "\n".join([*result["summary"], f"pages: {asked.folder}"]), code=int(failed))


def web(
    *,
    folder: OutPath = Path("uge-web"),
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 0,
    browser: bool = True,
    common: Annotated[Common, FLAT] = Common(),
) -> Outcome:
    """Open a page in the browser: see the change, protect a folder, name recipients, download, test the copy.

    It is served on this computer alone, and ends with Ctrl-C.

    Example: `uge web`

    Parameters
    ----------
    folder
        Folder for copies, uploads and audits, readable by you alone.
    port
        Port on 127.0.0.1; 0 for any that is free.
    browser
        Open the browser.
    """
    set_logging(common)
    from uge import extras

    for module in ("uvicorn", "starlette", "python_multipart"):
        extras.load(module, "web", "uge web", library="starlette")
    from uge.web.app import serve

    def opened(address: str) -> None:
        make_progress(quiet=False).note(f"open {address} (Ctrl-C ends it)")
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(folder, port, opened)
    return Outcome({"folder": str(folder)}, f"copies are in {folder}")


VERBS: dict[str, Callable[..., Outcome]] = {
    "demo": demo,
    "protect": protect,
    "apply": apply,
    "preview": preview,
    "train": train,
    "verify": verify,
    "export": export,
    "keygen": keygen,
    "sign": sign,
    "push": push,
    "grant": grant,
    "recipients": recipients,
    "rekey": rekey,
    "audit": audit,
    "compare": compare,
    "report": report,
    "inspect": inspect,
    "web": web,
    "list": list_names,
    "env": env,
    "federated": federated,
    "request": request,
    "fulfil": fulfil,
    "reproduce": reproduce,
}
"""Every command by name."""
