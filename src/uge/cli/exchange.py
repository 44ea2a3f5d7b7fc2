"""Verbs between a data owner and a named receiver."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from uge.cli.console import Outcome, open_session
from uge.cli.flags import FLAT, Writing
from uge.learning.recipes import Recipe


def request(
    out: Path,
    *,
    network: str = "cnn",
    classes: int,
    size: int = 32,
    channels: Literal[1, 3] = 3,
    method: str = "keyed",
    seed: int | None = None,
    weights: Path | None = None,
    recipe: Recipe = Recipe(epochs=15),
    identity: Path | None = None,
    common: Annotated[Writing, FLAT] = Writing(),
) -> Outcome:
    """Ask a data owner for a copy made for your network: a signed OUT.json, and its initial weights beside it.

    Send both; OUT.theta0.safetensors is a key and needs a confidential channel. The owner runs `uge protect --for`.

    Example: `uge request alice.json --network resnetc20 --classes 10 --recipe.epochs 30`

    Parameters
    ----------
    out
        The request, NAME.json.
    network
        A network of the table; method `keyed` puts a wave key in front of it.
    classes
        Number of classes of the owner's data.
    size
        Side length for training, in pixels.
    channels
        Colour channels.
    method
        How the owner will protect: keyed, or uge for the paper's methods.
    seed
        Makes the initial weights; a secret random one by default. Whoever guesses it has the key.
    weights
        Safetensors file with initial weights instead of a seed.
    recipe
        How you will train.
    identity
        Your private key in PEM form, made on first use; uge/identity.pem in your settings' folder by default.
    """
    session = open_session(common)
    from uge.requests.request import write_request

    found = write_request(
        out,
        network,
        classes,
        size=size,
        channels=channels,
        method=method,
        recipe=recipe,
        seed=seed,
        weights=weights,
        identity=identity,
        session=session,
    )
    if common.dry_run:
        return Outcome(found, f"would ask for a copy for {found['network']}; nothing was written")
    return Outcome(
        found,
        f"wrote {found['request']} and {found['weights']}: send both to the data's owner, the second in confidence, "
        f"for it is the key\n{fingerprint_text(found['id'], found['fingerprint'])}",
    )


def fingerprint_text(identity: str, key_sha256: str) -> str:
    """The sentence by which owner and receiver compare a request's public key."""
    groups = " ".join(key_sha256[start : start + 4] for start in range(0, len(key_sha256), 4))
    return f"request {identity} is signed by the key {groups}: compare it with the other side over another channel"
