"""TLS: whether its files can be used, which is checked before a model is loaded. uvicorn builds the same context from them."""

from __future__ import annotations

import ssl
from typing import NoReturn

from loadmaster.errors import RunError, clip
from loadmaster.server.settings import Tls


def check_tls(tls: Tls) -> None:
    """Check that a server can be started with these files.

    Raises:
        RunError: a file cannot be read, the key does not belong to the certificate or needs a passphrase, or no cipher has
            such a name; names the option.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certfile, tls.keyfile, _no_passphrase)
    except (OSError, ValueError) as error:
        which = f"--ssl-certfile {clip(tls.certfile)}"
        if tls.keyfile is not None:
            which += f" with --ssl-keyfile {clip(tls.keyfile)}"
        raise RunError(f"cannot use {which}: {_reason(error)}", hint=_HINT) from error
    if tls.ca_certs is not None:
        try:
            context.load_verify_locations(tls.ca_certs)
        except OSError as error:
            raise RunError(f"cannot use --ssl-ca-certs {clip(tls.ca_certs)}: {_reason(error)}") from error
    elif tls.cert_reqs != ssl.CERT_NONE:
        raise RunError(
            f"--ssl-cert-reqs {int(tls.cert_reqs)} asks clients for certificates, and nothing can verify them",
            hint="give the certificates of their authorities as --ssl-ca-certs",
        )
    if tls.ciphers is not None:
        try:
            context.set_ciphers(tls.ciphers)
        except ssl.SSLError as error:
            raise RunError(f"--ssl-ciphers {clip(repr(tls.ciphers))}: {_reason(error)}") from error


_HINT = "both are PEM files: the certificate with its chain, and its private key without a passphrase"


def _no_passphrase() -> NoReturn:
    raise ValueError("the key needs a passphrase")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of OpenSSL, such as KEY_VALUES_MISMATCH
    return str(reason or getattr(error, "strerror", None) or error).replace("_", " ").lower()
