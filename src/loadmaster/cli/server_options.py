"""The options of the HTTP server, which have vLLM's names where vLLM has them; as `Settings`, and as arguments of vLLM."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadmaster.cli.options import memory, number, positive
from loadmaster.errors import UsageError, clip

if TYPE_CHECKING:
    from loadmaster.server.settings import Settings

KEY_VARIABLES = ("LOADMASTER_API_KEY", "VLLM_API_KEY")
"""The environment variables of an API key. The first that is set counts."""

KEY = re.compile(r"[\x21-\x7e]+")
"""An API key: printable ASCII without spaces, which a header can carry."""

DIRECT = (
    "allowed_origins",
    "allowed_methods",
    "allowed_headers",
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_ciphers",
    "root_path",
    "h11_max_incomplete_event_size",
    "h11_max_header_count",
)
"""Options that vLLM has too."""

NATIVE = ("allowed_hosts", "max_request_bytes", "max_queue", "request_timeout", "client_timeout")
"""Options that vLLM does not have."""


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add who may use the server, how much, and for how long. None means that an option was not given."""
    keys = parser.add_argument_group("access")
    keys.add_argument(
        "--api-key",
        nargs="+",
        metavar="KEY",
        help="bearer tokens, one of which clients must send (default: the variable LOADMASTER_API_KEY or VLLM_API_KEY, "
        "otherwise none)",
    )
    keys.add_argument("--api-key-file", metavar="FILE", help="a file with such tokens, one a line")
    keys.add_argument(
        "--allowed-hosts", type=_list, metavar="JSON", help="""Host headers to accept, such as '["llm.example.org"]'"""
    )
    keys.add_argument(
        "--allowed-origins",
        type=_list,
        metavar="JSON",
        help="""origins whose pages may use the API in a browser (CORS), such as '["*"]' (default: none)""",
    )
    keys.add_argument("--allowed-methods", type=_list, metavar="JSON", help="their methods (default: all)")
    keys.add_argument("--allowed-headers", type=_list, metavar="JSON", help="their headers (default: all)")
    keys.add_argument(
        "--allow-credentials", action=argparse.BooleanOptionalAction, default=None, help="their cookies (default: no)"
    )
    keys.add_argument("--ssl-certfile", metavar="FILE", help="certificate with its chain, in PEM: serve HTTPS")
    keys.add_argument("--ssl-keyfile", metavar="FILE", help="private key of the certificate, in PEM")
    keys.add_argument("--ssl-ca-certs", metavar="FILE", help="certificates that verify those of clients, in PEM")
    keys.add_argument(
        "--ssl-cert-reqs",
        type=int,
        choices=[0, 1, 2],
        help="client certificates: 0 none (default), 1 optional, 2 required",
    )
    keys.add_argument("--ssl-ciphers", metavar="LIST", help="ciphers of TLS 1.2, in OpenSSL's form")
    keys.add_argument("--root-path", type=_path, metavar="PATH", help="the path under which a proxy shows the server")
    limits = parser.add_argument_group("limits of requests")
    limits.add_argument(
        "--max-queue", type=positive, metavar="N", help="most requests that wait; more get 429 (default: no limit)"
    )
    limits.add_argument(
        "--request-timeout",
        type=_positive_seconds,
        metavar="S",
        help="seconds after which a request is ended, with 504 or an error event (default: no limit)",
    )
    limits.add_argument(
        "--client-timeout",
        type=_positive_seconds,
        metavar="S",
        help="seconds that a client may take to send a request's headers or the next part of its body, or to read anything "
        "of an answer (default: 60)",
    )
    limits.add_argument(
        "--max-request-bytes", type=memory, metavar="SIZE", help="largest body of a request (default: 16MiB)"
    )
    limits.add_argument(
        "--h11-max-incomplete-event-size",
        type=positive,
        metavar="N",
        help="most bytes of a request line and its headers (default: 65536)",
    )
    limits.add_argument(
        "--h11-max-header-count", type=positive, metavar="N", help="most headers of a request (default: 256)"
    )


def server_settings(args: argparse.Namespace, *, shutdown_timeout_s: float) -> Settings:
    """Return the settings for the native server. Its API keys leave the environment and the process's command line.

    Raises:
        UsageError: options that do not fit together, or a key that is not valid. It never shows a key.
        RunError: a file cannot be used.
    """
    import ssl

    from loadmaster.server.settings import Cors, Settings, Tls
    from loadmaster.server.tls import check_tls

    given = {
        "root_path": args.root_path,
        "allowed_hosts": args.allowed_hosts,
        "max_queue": args.max_queue,
        "request_timeout_s": args.request_timeout,
        "client_timeout_s": args.client_timeout,
        "max_body_bytes": args.max_request_bytes,
        "max_head_bytes": args.h11_max_incomplete_event_size,
        "max_headers": args.h11_max_header_count,
    }
    if args.allowed_origins:
        methods, headers = args.allowed_methods or ("*",), args.allowed_headers or ("*",)
        given["cors"] = Cors(args.allowed_origins, methods, headers, bool(args.allow_credentials))
    elif args.allowed_methods or args.allowed_headers or args.allow_credentials:
        raise UsageError("--allowed-methods, --allowed-headers and --allow-credentials need --allowed-origins")
    if args.ssl_certfile is not None:
        reqs = ssl.VerifyMode(args.ssl_cert_reqs or 0)
        given["tls"] = Tls(args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs, reqs, args.ssl_ciphers)
        check_tls(given["tls"])
    elif any((args.ssl_keyfile, args.ssl_ca_certs, args.ssl_cert_reqs, args.ssl_ciphers)):
        raise UsageError("the --ssl options need --ssl-certfile")
    keys = api_keys(args)
    hide(keys)
    return Settings(
        api_keys=tuple(keys),
        shutdown_timeout_s=shutdown_timeout_s,
        **{name: value for name, value in given.items() if value is not None},
    )


def vllm_arguments(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Return the arguments for vLLM's server, and variables of its environment. Keys from a file stay off its command line.

    Raises:
        UsageError: vLLM has no such option, or can take several keys on its command line only.
    """
    for name in NATIVE:
        if getattr(args, name) is not None:
            raise UsageError(f"{_option(name)}: vLLM's server has no such option; use --engine native")
    arguments = []
    for name in DIRECT:
        if (value := getattr(args, name)) is not None:
            arguments += [_option(name), json.dumps(value) if isinstance(value, tuple) else str(value)]
    if args.allow_credentials:
        arguments.append("--allow-credentials")
    if args.api_key:
        return [*arguments, "--api-key", *api_keys(args)], {}
    keys = api_keys(args)
    if len(keys) > 1:
        raise UsageError(
            f"--api-key-file has {len(keys)} keys, and vLLM takes several only on its command line, where others see them",
            hint="leave one key in the file, or use --engine native",
        )
    return arguments, {"VLLM_API_KEY": keys[0]} if keys else {}


def api_keys(args: argparse.Namespace) -> list[str]:
    """Return the keys of the options; without those, that of the environment.

    Raises:
        UsageError: the file cannot be read or has none, or a key is not valid. It does not show the key.
    """
    found: list[tuple[str, str]] = [(f"--api-key, number {i + 1}", key) for i, key in enumerate(args.api_key or [])]
    if args.api_key_file is not None:
        where = f"--api-key-file {clip(args.api_key_file)}"
        try:
            lines = Path(args.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"cannot read {where}: {reason}") from error
        in_file = [(f"{where}, line {i + 1}", line.strip()) for i, line in enumerate(lines) if line.strip()]
        if not in_file:
            raise UsageError(f"{where} has no key", hint="write one key a line")
        found += in_file
    if not found:
        found = [(f"the variable {name}", os.environ[name]) for name in KEY_VARIABLES if os.environ.get(name)][:1]
    for where, key in found:
        if not KEY.fullmatch(key):
            raise UsageError(f"{where}: an API key has characters other than printable ASCII, or is empty")
    return list(dict.fromkeys(key for _, key in found))


def hide(keys: Sequence[str]) -> None:
    """Remove keys from this process's environment, which its workers inherit, and from its command line as others see it.

    Linux shows the memory that has the command line (proc(5), ``arg_start``); each key there becomes as many ``*``.
    """
    for name in KEY_VARIABLES:
        os.environ.pop(name, None)
    if sys.platform != "linux" or not keys:
        return
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, the 48th and 49th
    if not 0 < start < end:  # not readable here
        return
    shown = ctypes.string_at(start, end - start)
    for key in map(str.encode, keys):
        for found in re.finditer(rb"(?:(?<=\0)|(?<==))" + re.escape(key) + rb"(?=\0)", shown):
            ctypes.memset(start + found.start(), ord("*"), len(key))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def seconds(text: str) -> float:
    """Return a number of seconds, at least 0."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a number of seconds, expected at least 0")
    return value


def _positive_seconds(text: str) -> float:
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError("0 is not more than 0 seconds")
    return value


def _list(text: str) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise argparse.ArgumentTypeError(f"""{text[:50]!r} is not a JSON list of texts, such as '["*"]'""")
    return tuple(value)


def _path(text: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)+/?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a path such as /llm")
    return text.rstrip("/")
