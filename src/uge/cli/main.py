"""The command line ``uge``: read flags, run a command, print its result, and leave with the right exit code."""

import io
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

import cyclopts
from cyclopts import App

from uge.cli.console import Outcome
from uge.cli.flags import Common, Resumable, sentence, settings_for
from uge.cli.help import ALL, Help, group_of
from uge.cli.verbs import VERBS
from uge.errors import UGEError, printable

app = App(
    name="uge",
    help="Publish labelled images that named recipients learn from in full, and others as little as possible.",
    help_format="markdown",
    help_epilogue="""\
Exit codes: 0 done; 1 bad data or a failed check; 2 wrong use; 3 audit below `--fail-under`; 130 interrupted; 143 ended.

Settings come from flags, then from variables such as `UGE_PROTECT_RHO`, then from `--config FILE` (TOML or YAML with
the flags' names, nested ones as tables).
""",
    result_action="return_value",
    help_formatter=Help(),
)
for name, verb in VERBS.items():
    app.command(verb, name=name, group=group_of(name), help_formatter=Help(name))
app.register_install_completion_command(name="--install-completion")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code, those of the epilogue of ``uge --help``."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    Help.everything = ALL in tokens
    tokens = ["--help" if token == ALL else token for token in tokens]
    common = Common()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name that a console cannot show must not end a command.
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that blocks end and staging folders go.
    try:
        app.config = settings_for(tokens)
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        bound.apply_defaults()
        common = bound.arguments.get("common", common)
        outcome = command(*bound.args, **bound.kwargs)
        code = _show(outcome, common) if isinstance(outcome, Outcome) else 0
    except cyclopts.CycloptsError as error:
        code = 2
        _complain(sentence(error))
    except UGEError as error:
        code = error.exit_code
        _complain(str(error))
    except KeyboardInterrupt:
        code = 130
        _complain(f"interrupted; {_how_to_go_on(tokens, common)}")
    except BrokenPipeError:
        # The reader of stdout went away; keep Python from complaining about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except MemoryError:
        code = 1
        _complain("the memory does not suffice; give smaller images, fewer of them at once, or a machine with more")
    except SystemExit as left:
        if left.code == 143 or isinstance(left.__context__, BrokenPipeError):  # SIGTERM; rich leaves so.
            raise
        code = 1
        _complain(f"code of a plug-in ended the program (sys.exit({left.code!r})); mend or remove that package")
    except Exception as error:
        code = 1
        if common.verbose:
            traceback.print_exc()
        _complain(f"unexpected {type(error).__name__}: {error}; run again with -v and report what it prints")
    raise SystemExit(code)


def _show(outcome: Outcome, common: Common) -> int:
    for complaint in outcome.complaints:
        sys.stderr.write(f"{printable(complaint)}\n")
    if common.json_output:
        readable = (sys.stdout.encoding or "").lower().startswith("utf")
        print(printable(json.dumps(outcome.result, ensure_ascii=not readable, default=str)))
    elif not common.quiet:
        print(printable(outcome.text, keep="\n"))
    return outcome.code


def _how_to_go_on(tokens: Sequence[str], common: Common) -> str:
    saves = tokens[0] != "train" or any(token.startswith("--save") for token in tokens)
    if not (isinstance(common, Resumable) and saves):
        return "nothing was kept, start again with the same command"
    again = [token for token in tokens if token not in ("--overwrite", "--resume")]
    return f"finished parts were kept, go on with: {shlex.join(['uge', *again, '--resume'])}"


def _complain(text: str) -> None:
    sys.stderr.write(f"uge: {printable(text)}\n")
