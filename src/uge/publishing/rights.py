"""Licence and reservation of rights of a published folder: what its pages say, for people and for programs.

A reservation is a sign, not a lock: it has the effect that the law and the reader give it.
"""

import json
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from uge.errors import UsageError
from uge.publishing.manifest import License, Manifest

OTHER = "other"
TDM_FILE = "tdmrep.json"
RESERVED = (
    "The rights holder reserves text and data mining and the training of models with these images (Article 4(3) of "
    "Directive (EU) 2019/790)."
)
"""Wording of the reservation, where the owner gives none."""


def license_of(identifier: str | None, name: str | None = None, link: str | None = None) -> License | None:
    """Licence from what a person typed; None for none.

    Args:
        identifier: SPDX identifier in any case, such as ``CC-BY-4.0``, or ``other``.
        name: Name of another licence.
        link: Address of its text.

    Raises:
        UsageError: The identifier is unknown, or name and link do not go with it.

    Example:
        >>> license_of("cc-by-4.0").id
        'CC-BY-4.0'
    """
    if identifier is None:
        if name or link:
            raise UsageError("--license-name and --license-link describe a licence of its own; give --license other")
        return None
    if identifier.lower() == OTHER:
        if not (name and link):
            raise UsageError("a licence of its own needs a name and a link; give --license-name and --license-link")
        return License(id=OTHER, name=name, link=link)
    if name or link:
        raise UsageError(f"the licence {identifier} has a name and a text; --license-name goes with --license other")
    try:
        known = canonicalize_license_expression(identifier)
    except InvalidLicenseExpression:
        raise UsageError(
            f"expected an SPDX licence identifier such as CC-BY-4.0, or other, got '{identifier}'; see "
            "https://spdx.org/licenses"
        ) from None
    return License(id=str(known))


def link_of(record: License) -> str:
    """Address of a licence's text."""
    return record.link or f"https://spdx.org/licenses/{record.id}.html"


def front_matter(manifest: Manifest) -> dict[str, Any]:
    """Licence fields of a data set card, in the words of the Hugging Face hub; empty without a licence."""
    record = manifest.license
    if record is None:
        return {}
    if record.id == OTHER:
        return {"license": OTHER, "license_name": record.name, "license_link": record.link}
    return {"license": record.id.lower()}


def rights_section(manifest: Manifest) -> str:
    """Section of the card; empty where nothing is said about rights."""
    lines = []
    if manifest.license is not None:
        lines.append(f"- Licence: [{manifest.license.name or manifest.license.id}]({link_of(manifest.license)}).")
    if manifest.reservation is not None:
        lines.append(f"- Reservation of rights: {manifest.reservation} This is a sign, not a lock.")
    return "\n## Rights\n\n" + "\n".join(lines) + "\n" if lines else ""


def tdm_reservation(manifest: Manifest) -> str | None:
    """``tdmrep.json`` of the TDM Reservation Protocol, for ``/.well-known/`` of a web site, or None."""
    if manifest.reservation is None:
        return None
    rule: dict[str, Any] = {"location": "/", "tdm-reservation": 1}
    if manifest.license is not None:
        rule["tdm-policy"] = link_of(manifest.license)
    return json.dumps([rule], indent=1) + "\n"


def usage_info(manifest: Manifest) -> dict[str, Any]:
    """Terms of use as an ODRL offer (W3C, 2018), for Croissant's ``usageInfo``."""
    offer: dict[str, Any] = {"@type": "odrl:Offer", "odrl:permission": [{"odrl:action": {"@id": "odrl:use"}}]}
    if manifest.license is not None:
        offer["odrl:permission"][0]["odrl:duty"] = [{"odrl:action": {"@id": "odrl:attribute"}}]
        offer["odrl:hasPolicy"] = {"@id": link_of(manifest.license)}
    if manifest.reservation is not None:
        offer["odrl:prohibition"] = [{"odrl:action": {"@id": "tdm:mine"}, "sc:description": manifest.reservation}]
    return offer
