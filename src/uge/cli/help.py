"""Help of the commands: the flags that people need first, in groups, and all of them with ``--help-all``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import evolve
from cyclopts import Group
from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

ALL = "--help-all"
COMMANDS: dict[str, tuple[str, ...]] = {
    "Protect and publish": ("demo", "web", "protect", "apply", "preview", "verify", "sign", "push", "merge", "inspect"),
    "Recipients": ("keygen", "train", "export", "grant", "recipients", "rekey", "request", "fulfil"),
    "Attack and judge": ("audit", "compare", "report", "list"),
    "Research": ("federated", "reproduce", "env"),
}
"""Groups of commands; a command that stands in none comes under the last."""
FLAGS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "protect": (
        ("For recipients", ("--to", "--for", "--authorized", "--license")),
        ("How", ("--method", "--strength", "--effort", "--size", "--limit")),
        ("This run", ("--append", "--resume", "--overwrite", "--dry-run")),
    ),
    "audit": (
        ("With", ("--key", "--public")),
        ("Attacks", ("--worst-case", "--networks", "--attacks", "--seeds")),
        ("This run", ("--budget", "--workers", "--folder", "--fail-under", "--dry-run")),
    ),
    "demo": (("This run", ("--method", "--limit", "--overwrite", "--resume", "--dry-run")),),
    "apply": (("How", ("--split", "--limit", "--rho")), ("This run", ("--to", "--overwrite", "--dry-run"))),
    "federated": (
        ("How", ("--servers", "--split", "--rounds", "--method", "--authorized")),
        ("This run", ("--limit", "--size", "--resume", "--overwrite", "--dry-run")),
    ),
}
"""Groups of flags of the commands that have very many; of the others all but those of every command are shown."""
SHARED = frozenset(
    {
        "--verbose",
        "--quiet",
        "--config",
        "--image-column",
        "--label-column",
        "--source-key",
        "--max-image-pixels",
        "--device",
        "--precision",
        "--threads",
    }
)
"""Flags of every command, in the full help alone."""
_GROUPS = {title: Group(title, sort_key=place) for place, title in enumerate(COMMANDS)}
_OFF = ("False", "()", "None")
_ROLE = re.compile(r":(?:data|class|func|meth|mod):`?~?([\w.]+)`?\.?")


def group_of(command: str) -> Group:
    """Group of a command."""
    title = next((title for title, names in COMMANDS.items() if command in names), list(COMMANDS)[-1])
    return _GROUPS[title]


class Help:
    """Formatter of the help of one command.

    Args:
        command: Its name; empty for the program itself.
    """

    everything = False
    """True shows every flag; ``--help-all`` sets it for the whole program."""

    def __init__(self, command: str = "") -> None:
        self._command = command
        self._formatter = DefaultFormatter()

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Show one panel, or the panels that it is divided into."""
        if panel.format == "command" or not panel.entries:
            self._formatter(console, options, panel)
            return
        entries = [_clean(entry) for entry in panel.entries]
        shown = [] if self.everything else self._everyday(entries)
        groups = shown or _by_prefix(entries)
        for title, members in groups:
            if members:
                self._formatter(console, options, panel.copy(title=title, entries=members))
        hidden = len(entries) - sum(len(members) for _, members in groups)
        if hidden:
            console.print(f"{hidden} more flags: uge {self._command} {ALL}", highlight=False)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Show the usage line."""
        self._formatter.render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Show the description."""
        self._formatter.render_description(console, options, description)

    def _everyday(self, entries: list[HelpEntry]) -> list[tuple[str, list[HelpEntry]]]:
        required = [entry for entry in entries if entry.required or entry.positional_label]
        by_name = {name: entry for entry in entries for name in entry.positive_names}
        if self._command in FLAGS:
            named = [
                (title, [by_name[name] for name in names if name in by_name and by_name[name] not in required])
                for title, names in FLAGS[self._command]
            ]
        else:
            hidden = [by_name[name] for name in SHARED if name in by_name]
            named = [("Flags", [entry for entry in entries if entry not in required and entry not in hidden])]
        return [("Needed", required), *named]


def _by_prefix(entries: list[HelpEntry]) -> list[tuple[str, list[HelpEntry]]]:
    """Every flag, those of one setting (``--loss.alpha``) together."""
    groups: dict[str, list[HelpEntry]] = {"Flags": []}
    for entry in entries:
        name = next(iter(entry.positive_names), "")
        prefix, dot, _ = name.rpartition(".")
        groups.setdefault(f"{prefix}.…" if dot else "Flags", []).append(entry)
    return list(groups.items())


def _clean(entry: HelpEntry) -> HelpEntry:
    """The entry without the names of variables and without marks for another reader of docstrings."""
    text = entry.description
    if isinstance(text, str):
        text = _ROLE.sub(lambda found: found[1].rpartition(".")[2], text).replace("``", "")
    default = None if entry.default in _OFF else entry.default
    return evolve(entry, description=text, env_var=None, default=default)
