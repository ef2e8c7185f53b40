"""``python -m tools.hostile``: checkpoints made to hang or exhaust, and what each command does with them.

Every case is one folder (or file) and every command a process of its own. A case is well when each command ends by itself
with the exit code 1, without a traceback, within 10 seconds of computing and 1 GiB; the exit status is 1 if one is not.
`verify`, which reads the payload too and keeps a sketch of each tensor, may take 60 seconds and 2 GiB.
The sizes are those of an attacker, so the run takes minutes; the same causes at a smaller size are in
tests/failures/test_hostile.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadmaster.synth import PRESETS, write_tiny

SECONDS, MEBIBYTES = 10.0, 1024.0
OF_VERIFY = (60.0, 2048.0)
GIVE_UP_S, ADDRESS_SPACE = 120.0, 12 * 2**30
COMMANDS = ("plan", "inspect", "verify", "load")
SHARD, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

Make = Callable[[Path], object]
"""Damages a sound checkpoint in its folder; may return the path to open instead of the folder."""

CASES: dict[str, tuple[str, Make, tuple[str, ...]]] = {}
"""Name → preset, what is done to it, and the commands that must refuse it; the others must only end well."""


def case(name: str, preset: str = "llama", commands: tuple[str, ...] = COMMANDS) -> Callable[[Make], Make]:
    """Register a case; ``commands`` are those that must end with 1."""

    def register(make: Make) -> Make:
        CASES[name] = (preset, make, commands)
        return make

    return register


@dataclass(frozen=True)
class Outcome:
    """What one process did: its exit code (None: it was stopped), seconds of computing, peak resident MiB, and its output."""

    code: int | None
    seconds: float
    mebibytes: float
    output: str

    def faults(self, command: str, *, refused: bool) -> list[str]:
        """Return what is not as it should be."""
        found = []
        seconds, mebibytes = OF_VERIFY if command == "verify" else (SECONDS, MEBIBYTES)
        if self.code is None:
            found.append("hangs")
        elif self.code != 1 and (refused or self.code not in (0, 3)):
            found.append(f"exit {self.code}")
        if "Traceback (most recent call last)" in self.output:
            found.append("traceback")
        if self.seconds > seconds:
            found.append("slow")
        if self.mebibytes > mebibytes:
            found.append("memory")
        if len(self.output) > 50_000:
            found.append(f"{len(self.output):,} characters of output")
        return found


def run(command: str, path: Path) -> Outcome:
    """Run one command on a path."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "loadmaster", command, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=limit,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    output, stopped = b"", False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        output += process.stdout.read() or b""
        if pid:
            break
        if not stopped and time.monotonic() - begin > GIVE_UP_S:
            stopped = True
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.01)
    output += process.stdout.read() or b""
    process.returncode = os.waitstatus_to_exitcode(status)
    code = None if stopped else process.returncode
    return Outcome(code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output.decode("utf-8", "replace"))


# Damage ---------------------------------------------------------------------------------------------------------------


def reconfigure(folder: Path, values: Mapping[str, Any]) -> None:
    """Set keys of the config."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def write_shard(path: Path, header: bytes, data: int = 0) -> None:
    """Write a shard of a header and a hole of ``data`` bytes."""
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + data)


def entries(count: int, name: str = "model.layers.{}.weight", shape: str = "[1]", step: int = 4) -> bytes:
    """Return a header of ``count`` tensors; ``{}`` in name and shape is their number."""
    made = (
        f'"{name.format(i)}":{{"dtype":"F32","shape":{shape.format(i)},"data_offsets":[{i * step},{(i + 1) * step}]}}'
        for i in range(count)
    )
    return ("{" + ",".join(made) + "}").encode()


def alone(folder: Path) -> Path:
    """Remove the shards and the index; return where the only shard goes."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    return folder / SHARD


def by_key(keys: Mapping[str, Any]) -> Make:
    """Return the damage that sets keys of the config."""
    return lambda folder: reconfigure(folder, keys)


HUGE = 10**9
PLANNING = ("plan", "load", "verify")

for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim"):
    case(f"{key} of 10^9", commands=PLANNING)(by_key({key: HUGE}))
for key in ("n_routed_experts", "num_nextn_predict_layers", "n_shared_experts", "kv_lora_rank", "qk_nope_head_dim"):
    case(f"{key} of 10^9", "glm-5.1-fp8", PLANNING)(by_key({key: HUGE}))
case("all sizes of 2^31 - 1", commands=PLANNING)(
    by_key(
        dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim"), 2**31 - 1)
    )
)
case("layers and experts at their limits", "glm-5.1-fp8", PLANNING)(
    by_key({"num_hidden_layers": 1000, "n_routed_experts": 4000, "mlp_layer_types": None, "indexer_types": None})
)
case("a number of 10,000 digits", commands=PLANNING)(
    lambda folder: (folder / CONFIG).write_text('{"num_hidden_layers": ' + "9" * 10_000 + "}")
)
case("1e400", commands=PLANNING)(lambda folder: (folder / CONFIG).write_text('{"num_hidden_layers": 1e400}'))
case("NaN", commands=PLANNING)(lambda folder: (folder / CONFIG).write_text('{"num_hidden_layers": NaN}'))


def ignoring(pattern: str, count: int = 1) -> Make:
    """Return the damage that leaves modules out of a quantisation by ``count`` patterns, with their numbers for ``{}``."""

    def damage(folder: Path) -> None:
        patterns = [pattern.replace("{}", str(i)) for i in range(count)]
        quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": patterns}
        reconfigure(folder, {"quantization_config": quantised})

    return damage


MAY = ()
case("a regular expression bomb", "glm-5.1-fp8", MAY)(ignoring("re:(.*)*(.*)*(.*)*x$"))
case("a regular expression bomb of alternatives", "glm-5.1-fp8", MAY)(ignoring("re:(m|mo|o|.|\\w|[a-z.])*!$"))
case("a glob bomb", "glm-5.1-fp8", MAY)(ignoring("*a*e*o*l*a*e*.*r*" * 4 + "!"))
case("a pattern that compiles to gigabytes", "glm-5.1-fp8", MAY)(ignoring("re:((((a{99}){99}){99}){99}){99}"))
case("a back-reference", "glm-5.1-fp8", PLANNING)(ignoring(r"re:(.*)\1"))
case("a million patterns", "glm-5.1-fp8", PLANNING)(ignoring("re:.*{}.*", 200_000))
case("a million globs", "glm-5.1-fp8", PLANNING)(ignoring("*{}*", 500_000))
case("half a million names", "glm-5.1-fp8", MAY)(ignoring("module.{}", 300_000))


def mistral(values: Mapping[str, Any]) -> Make:
    """Return the damage that replaces the config by a ``params.json`` of these values, beside sizes of a small model."""
    sizes = {"dim": 64, "n_layers": 4, "n_heads": 4, "head_dim": 16, "hidden_dim": 96, "vocab_size": 160}

    def damage(folder: Path) -> None:
        (folder / CONFIG).unlink()
        (folder / "params.json").write_text(json.dumps({**sizes, **values}))

    return damage


case("a params.json of 10^9 layers with windows", commands=PLANNING)(
    mistral({"n_layers": HUGE, "sliding_window": [4096, None]})
)
case("a params.json of 10^6 windows", commands=PLANNING)(
    mistral({"n_layers": 1000, "sliding_window": [4096, None] * 500_000})
)
case("a params.json whose windows are negative layers", commands=PLANNING)(
    mistral({"n_layers": -HUGE, "sliding_window": [4096, None]})
)


@case("a params.json of nested lists")
def _(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / "params.json").write_text("[" * 10**6 + "]" * 10**6)


@case("a config of 1 GB")
def _(folder: Path) -> None:
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(10**9)


@case("a config of nested lists")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("[" * 10**6 + "]" * 10**6)


@case("a config of a million empty lists")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text('{"a": [' + ",".join(["[]"] * 10**7) + "]}")


@case("a key of the config 10^5 times")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("{" + ",".join(f'"k{i}": 1' for i in range(10**5)) + ',"k99999": 2}')


@case("tied weights by a config with 10^5 keys and one twice")
def _(folder: Path) -> None:
    (folder / CONFIG).write_text("{" + ",".join(['"k": 1'] * 10**6) + "}")


# Headers


@case("10^5 duplicate keys")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(10**5, "same"), 4 * 10**5)


@case("10^5 duplicates in another shard")
def _(folder: Path) -> None:
    first = alone(folder)
    write_shard(first, entries(10**5), 4 * 10**5)
    write_shard(folder / "model-2.safetensors", entries(10**5), 4 * 10**5)


@case("duplicates in each of 1,000 shards")
def _(folder: Path) -> None:
    alone(folder)
    for i in range(1000):
        name = f"model.layers.{i}.{{}}.weight"
        header = entries(200, name)[:-1] + b',"same":{"dtype":"F32","shape":[0],"data_offsets":[800,800]}}'
        write_shard(folder / f"model-{i}.safetensors", header, 800)


@case("a header of 100 MB of nested objects")
def _(folder: Path) -> None:
    write_shard(alone(folder), b'{"a":' * 19_000_000 + b"1" + b"}" * 5)


@case("a header of 95 MB of empty objects")
def _(folder: Path) -> None:
    write_shard(alone(folder), b'{"a":[' + b",".join([b"{}"] * 31_000_000) + b"]}")


@case("a header of 95 MB of ones")
def _(folder: Path) -> None:
    write_shard(
        alone(folder),
        b'{"a":{"dtype":"F32","shape":[' + b",".join([b"1"] * 47_000_000) + b'],"data_offsets":[0,4]}}',
        4,
    )


@case("a header of 95 MB of spaces")
def _(folder: Path) -> None:
    write_shard(alone(folder), b'{"a":1' + b" " * 95_000_000 + b"}")


@case("headers of 95 MB in 8 shards")
def _(folder: Path) -> None:
    alone(folder)
    for i in range(8):
        write_shard(folder / f"model-{i}.safetensors", b"{" + b" " * 95_000_000 + b"}")


@case("metadata of 95 MB")
def _(folder: Path) -> None:
    write_shard(alone(folder), b'{"__metadata__":{"a":"' + b"x" * 95_000_000 + b'"}}')


@case("3 * 10^6 tensors")
def _(folder: Path) -> None:
    alone(folder)
    for k in range(6):
        header = entries(5 * 10**5, f"model.layers.{k}.{{}}.w")
        write_shard(folder / f"model-{k}.safetensors", header, 2 * 10**6)


@case("10^6 tensors", commands=PLANNING)
def _(folder: Path) -> None:
    alone(folder)
    for k in range(4):
        header = entries(25 * 10**4, f"model.layers.{k}.{{}}.w")
        write_shard(folder / f"model-{k}.safetensors", header, 10**6)


@case("4 * 10^5 tensors", commands=PLANNING)
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(4 * 10**5), 16 * 10**5)


@case("4 * 10^5 tensors, not as the published package writes them", commands=PLANNING)
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(4 * 10**5).replace(b",", b", "), 16 * 10**5)


@case("4 * 10^5 shapes")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(4 * 10**5, shape="[0,{}]", step=0))


@case("10^6 shapes in 1,000 shards")
def _(folder: Path) -> None:
    alone(folder)
    for k in range(1000):
        header = entries(1000, f"model.{k}.{{}}", shape=f"[0,{k},{{}}]", step=0)
        write_shard(folder / f"model-{k}.safetensors", header)


@case("4 * 10^5 wrong extents")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(4 * 10**5, shape="[7]"), 16 * 10**5)


@case("names with 10^5 dots")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(20, "a." * 10**5 + "{}"), 80)


@case("4 * 10^4 names with 100 dots")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(4 * 10**4, "{}." + "aaaaaaaaa." * 100 + "w"), 16 * 10**4)


@case("a name of 40 MB")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(1, "a" * 40_000_000), 4)


@case("a name with NUL, escapes and a surrogate")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(1, "a\\u0000\\u001b[2J\\ud800"), 4)


@case("a name that is not UTF-8")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(1, "aXX").replace(b"XX", b"\xff\xfe"), 4)


@case("a name with control characters")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(1, "a\\u001b[2J\\u0000"), 4)


@case("a shape with 10^5 dims")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(1, shape="[" + "1," * 10**5 + "1]"), 4)


@case("a shape whose product has 10^5 digits")
def _(folder: Path) -> None:
    write_shard(alone(folder), entries(1, shape="[" + "9223372036854775807," * 10**5 + "1]"), 4)


# The index


def index(folder: Path, text: bytes) -> None:
    """Write the index."""
    (folder / INDEX).write_bytes(text)


@case("an index of 10^6 files")
def _(folder: Path) -> None:
    index(folder, b'{"weight_map":{' + ",".join(f'"t{i}":"f{i}.safetensors"' for i in range(10**6)).encode() + b"}}")


@case("an index of 10^5 files")
def _(folder: Path) -> None:
    index(folder, b'{"weight_map":{' + ",".join(f'"t{i}":"f{i}.safetensors"' for i in range(10**5)).encode() + b"}}")


@case("an index of 2 * 10^6 tensors")
def _(folder: Path) -> None:
    names = ",".join(f'"t{i}":"model.safetensors"' for i in range(2 * 10**6))
    index(folder, b'{"weight_map":{' + names.encode() + b"}}")


@case("an index of 10^6 tensors")
def _(folder: Path) -> None:
    names = ",".join(f'"model.layers.{i}.self_attn.t":"model.safetensors"' for i in range(10**6))
    index(folder, b'{"weight_map":{' + names.encode() + b"}}")


@case("an index of 100 MB of lists")
def _(folder: Path) -> None:
    index(folder, b'{"weight_map":[' + b",".join([b"[]"] * 33_000_000) + b"]}")


@case("an index of 60 MB of lists")
def _(folder: Path) -> None:
    index(folder, b'{"weight_map":[' + b",".join([b"[]"] * 20_000_000) + b"]}")


@case("an index that nests")
def _(folder: Path) -> None:
    index(folder, b"[" * 10**6)


for name, text in {
    "a list": b"[]",
    "a path": b'{"weight_map":{"a":"../../etc/passwd"}}',
    "a device": b'{"weight_map":{"a":"/dev/zero"}}',
    "a name with NUL": b'{"weight_map":{"a":"a\\u0000.safetensors"}}',
    "a surrogate": b'{"weight_map":{"a":"\\ud800.safetensors"}}',
    "bytes that are not UTF-8": b'{"weight_map":{"a":"\xff.safetensors"}}',
    "a total of 1e400": b'{"metadata":{"total_size":1e400},"weight_map":{"a":"model.safetensors"}}',
    "a total of a thousand digits": b'{"metadata":{"total_size":' + b"9" * 1000 + b'},"weight_map":{}}',
    "a file name of a megabyte": b'{"weight_map":{"a":"' + b"a" * 10**6 + b'.safetensors"}}',
    "nothing": b"",
}.items():
    case(f"an index with {name}")(lambda folder, text=text: index(folder, text))  # type: ignore[misc]


@case("a shard that counts to 999,999")
def _(folder: Path) -> None:
    alone(folder)
    write_shard(folder / "model-00001-of-999999.safetensors", entries(3), 12)


@case("1,000 shards that count to 9,999 each")
def _(folder: Path) -> None:
    alone(folder)
    for i in range(1000):
        write_shard(folder / f"m{i}-0001-of-9999.safetensors", entries(1, f"t{i}"), 4)


@case("40,000 shards")
def _(folder: Path) -> None:
    alone(folder)
    for i in range(40_000):
        write_shard(folder / f"m{i}.safetensors", entries(1, f"t{i}"), 4)


@case("names of shards with numbers of 5,000 digits", commands=MAY)
def _(folder: Path) -> None:
    alone(folder)
    write_shard(folder / ("9" * 200 + "-of-5.safetensors"), entries(3), 12)


@case("a shard whose name is not UTF-8")
def _(folder: Path) -> None:
    alone(folder)
    path = os.fsencode(folder) + b"/model\xff.safetensors"
    Path(os.fsdecode(path)).write_bytes(b"\x02" + bytes(7) + b"{}")


@case("other files whose names are not UTF-8", commands=MAY)
def _(folder: Path) -> None:
    for name in (b"\xff", b"\xff.bin", b"\xff.sha256"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")


@case("an unfinished download whose name is not UTF-8", commands=MAY)
def _(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.part")).write_bytes(b"")


@case("nothing but names that are not UTF-8")
def _(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.bin")).write_bytes(b"")


@case("a folder whose name is not UTF-8")
def _(folder: Path) -> Path:
    (folder / CONFIG).write_text("[]")
    other = Path(os.fsdecode(os.fsencode(folder) + b"\xff"))
    folder.rename(other)
    return other


# What is no regular file


def fifo(path: Path) -> None:
    """Make a FIFO."""
    os.mkfifo(path)


def device(path: Path) -> None:
    """Make a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    """Make a folder."""
    path.mkdir()


def loop(path: Path) -> None:
    """Make a link to itself."""
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    """Make a link to nothing."""
    path.symlink_to("nowhere")


def terminal(path: Path) -> None:
    """Make a link to a terminal, which waits for a user."""
    path.symlink_to("/dev/ptmx")


for kind in (fifo, device, directory, loop, dangling, terminal):
    for target in (SHARD, CONFIG, INDEX, "hf_quant_config.json"):

        def replaced(folder: Path, kind: Make = kind, target: str = target) -> None:
            """Put it in the place of a file."""
            if target == SHARD:
                target = min(p.name for p in folder.glob("*.safetensors"))
            (folder / target).unlink(missing_ok=True)
            kind(folder / target)

        case(f"{kind.__name__} for {target}")(replaced)
    for target in ("SHA256SUMS", ".cache/huggingface/download/config.json.metadata", "model.safetensors.part"):

        def beside(folder: Path, kind: Make = kind, target: str = target) -> None:
            """Put it beside the shards."""
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            kind(folder / target)

        case(f"{kind.__name__} for {target}", commands=MAY)(beside)

    def itself(folder: Path, kind: Make = kind) -> Path:
        """Give it as MODEL."""
        kind(folder / "it.safetensors")
        return folder / "it.safetensors"

    if kind is not directory:
        case(f"{kind.__name__} for MODEL")(itself)


@case("a MODEL that is a name of a megabyte")
def _(folder: Path) -> Path:
    return Path("/" + "a" * 100_000)


def main(argv: list[str] | None = None) -> int:
    """Run all cases, or those whose name contains a text. Return the exit status."""
    options = argparse.ArgumentParser(prog="python -m tools.hostile", description=__doc__)
    options.add_argument("--match", default="", help="only cases whose name contains this")
    options.add_argument("--commands", default=",".join(COMMANDS), help="commands, with commas")
    options.add_argument("--show", action="store_true", help="print the first lines of each output")
    options.add_argument("--scratch", type=Path, help="a folder for the cases (default: a temporary one)")
    args = options.parse_args(argv)
    bad = tried = 0
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        sound: dict[str, Path] = {}
        for number, (name, (preset, make, refused)) in enumerate(CASES.items()):
            if args.match not in name:
                continue
            if preset not in sound:
                sound[preset] = Path(scratch, preset)
                write_tiny(PRESETS[preset], sound[preset])
            folder = Path(scratch, str(number))
            shutil.copytree(sound[preset], folder)
            path = make(folder)
            path = path if isinstance(path, Path) else folder
            for command, outcome in outcomes(args.commands.split(","), path):
                tried += 1
                faults = outcome.faults(command, refused=command in refused)
                bad += bool(faults)
                figures = f"exit {outcome.code}  {outcome.seconds:6.2f} s  {outcome.mebibytes:7.0f} MiB"
                print(f"{'BAD ' if faults else 'ok  '} {command:8} {figures}  {name}  {', '.join(faults)}", flush=True)
                if args.show:
                    print("\n".join("        " + line[:300] for line in outcome.output.splitlines()[-6:]))
            for made in (folder, path):
                shutil.rmtree(made, ignore_errors=True)
    print(f"{tried} tried, {bad} bad")
    return 1 if bad else 0


def outcomes(commands: list[str], path: Path) -> Iterator[tuple[str, Outcome]]:
    """Yield what each command does with a path."""
    for command in commands:
        yield command, run(command, path)


if __name__ == "__main__":
    sys.exit(main())
