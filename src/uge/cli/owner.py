"""Commands of a folder's owner after it was published: sign."""

from typing import Annotated

from uge.cli.console import Outcome, set_logging
from uge.cli.flags import FLAT, OutPath, Replacing


def sign(out: OutPath, *, identity: OutPath | None = None, common: Annotated[Replacing, FLAT] = Replacing()) -> Outcome:
    """Sign a published folder, so that a receiver with your fingerprint can tell it from a forged one.

    Example: `uge sign out/mine`; a receiver runs `uge verify out/mine --signed-by FINGERPRINT`.

    Parameters
    ----------
    out
        Published folder.
    identity
        Your private key in PEM form, made on first use; uge/identity.pem in your settings' folder by default.
    """
    set_logging(common)
    from uge.publishing.signing import run_sign
    from uge.sealing.signing_key import spoken

    result = run_sign(out, identity, overwrite=common.overwrite, dry_run=common.dry_run)
    if common.dry_run:
        return Outcome(result, f"would sign {out}; nothing was written")
    key = spoken(result["fingerprint"])
    return Outcome(result, f"signed {out} by the key {key}: tell receivers this fingerprint over another channel")
