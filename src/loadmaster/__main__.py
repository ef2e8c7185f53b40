"""``python -m loadmaster``, and the ``loadmaster`` script: little is imported before an interruption is understood."""

import os


def entry() -> None:
    """Run the command line; never returns."""
    try:
        from loadmaster.cli.main import entry as run
    except KeyboardInterrupt:
        os._exit(130)
    run()


if __name__ == "__main__":
    entry()
