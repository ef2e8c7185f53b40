"""A Python process that runs scripts, one after another; started by `tests.docs.session`, in the folder of a document.

It reads their paths from standard input, one a line, and answers with the exit status of each. A script begins with an empty
namespace and in the same folder; modules of that folder are imported anew. All other modules stay, such as torch, which takes
seconds to import. What scripts print goes to standard error.
"""

import os
import runpy
import sys
import traceback
from pathlib import Path


def main() -> None:
    folder = Path.cwd()
    paths, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.path.insert(0, "")
    for path in paths:
        answers.write(f"{run(path.rstrip())}\n")
        sys.stdout.flush()
        answers.flush()
        os.chdir(folder)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is not None and folder in Path(file).absolute().parents:
                del sys.modules[name]


def run(path: str) -> int:
    """Run a script, and return its exit status."""
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
