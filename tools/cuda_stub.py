"""Stubs of CUDA's driver and of NVML, so that vLLM for CUDA runs where there is no GPU: it takes its layouts for an H100.

    python -m tools.cuda_stub FOLDER -- COMMAND ...     # build them in FOLDER, and run a command with them

Nothing can be computed: every function of the driver says that there is no device. Building and loading models needs none
(`loadmaster.audit.pretended`). vLLM's compiled parts name functions of the driver, so the stub has all that these name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from loadmaster.audit.pretended import MARK

NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
NVML: Final = r"""
#include <string.h>
typedef int R;
struct memory { unsigned long long total, free, used; };
R nvmlInit_v2(void) { return 0; }
R nvmlInitWithFlags(unsigned flags) { return 0; }
R nvmlShutdown(void) { return 0; }
R nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
R nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) { *handle = (void *)1; return 0; }
R nvmlDeviceGetName(void *h, char *name, unsigned size) { strncpy(name, "NVIDIA H100 80GB HBM3", size); return 0; }
R nvmlDeviceGetUUID(void *h, char *uuid, unsigned size) {
  strncpy(uuid, "GPU-00000000-0000-0000-0000-000000000000", size);
  return 0;
}
R nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
R nvmlDeviceGetMemoryInfo(void *h, struct memory *m) { m->total = m->free = 85520809984ULL; m->used = 0; return 0; }
R nvmlSystemGetDriverVersion(char *version, unsigned size) { strncpy(version, "580.159.04", size); return 0; }
R nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
const char *nvmlErrorString(int result) { return "stub"; }
"""
DRIVER_NAME: Final = re.compile(r"^cu(?!File)[A-Z]\w*$")


def driver_names(libraries: Iterable[Path]) -> list[str]:
    """Return the functions of the driver that libraries need from elsewhere, in alphabetical order."""
    names: set[str] = set()
    for library in libraries:
        listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True)
        words = (line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines() if line.strip())
        names.update(word for word in words if DRIVER_NAME.match(word))
    return sorted(names)


def build(folder: Path, libraries: Iterable[Path]) -> None:
    """Build both stubs in a folder, with the C compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"cuInit", MARK, *driver_names(libraries)}
    driver = "".join(f"int {name}() {{ return {NO_DEVICE}; }}\n" for name in sorted(names))
    for soname, source in (("libcuda.so.1", driver), ("libnvidia-ml.so.1", NVML)):
        command = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", "-o", str(folder / soname), "-xc", "-"]
        subprocess.run(command, input=source, text=True, check=True)


def main() -> int:
    """Build the stubs for the vLLM that this interpreter would import, and become the command."""
    folder, dashes, *command = sys.argv[1:]
    assert dashes == "--", __doc__
    packages = (Path(path) for path in sys.path)
    build(Path(folder), (so for path in packages if path.is_dir() for so in sorted((path / "vllm").rglob("*.so*"))))
    os.environ["LD_LIBRARY_PATH"] = f"{Path(folder).resolve()}"
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
