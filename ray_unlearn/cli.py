"""The program: parse, check everything that can be known, then import and run one command.

torch and Ray take seconds to import, so nothing here imports them before the options have been parsed.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

from ray_unlearn.commands.exit_codes import FAILED, USAGE
from ray_unlearn.commands.parser import build_app
from ray_unlearn.config import SearchFailed, UserError
from ray_unlearn.interruption import is_ending

app = build_app()


def main() -> None:
    """One clear line and exit code 2 for whatever the user can fix."""
    try:
        app()
    except UserError as error:
        print(f"ray_unlearn: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except SearchFailed as error:
        print(f"ray_unlearn: {error}", file=sys.stderr)
        sys.exit(FAILED)


def run() -> None:
    """The process's entry point."""
    atexit.register(gc.freeze)  # its end takes two seconds if it looks through all of torch for what can be freed
    try:
        main()
    except SystemExit as end:
        if is_ending():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else FAILED)
        raise


if __name__ == "__main__":
    run()
