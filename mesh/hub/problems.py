"""Explains why a download from the hub failed, and what to do about it."""

from __future__ import annotations

import errno
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from mesh.hub.reference import HubReference

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"


class Destination(NamedTuple):
    """Where the files are written, and how another place is chosen."""

    folder: Path
    remedy: str


class HubError(Exception):
    """A download is impossible; the message has the reason and the remedy, in one line."""


@contextmanager
def explained(wanted: HubReference, destination: Destination) -> Iterator[None]:
    """Raises HubError in place of the errors of the hub's client and of the file system."""
    import httpx  # imported here, with huggingface_hub, as local folders need neither
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{wanted} is not a name of the hub: {_first_line(error)}") from error
    except (httpx.HTTPError, OSError) as error:
        raise HubError(_reason(wanted, destination, error)) from error


def _reason(wanted: HubReference, destination: Destination, error: Exception) -> str:
    import httpx
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _reason(wanted, destination, error.__cause__)  # what prevented the download
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids downloads: unset it, or name a folder with the model's files"
    if isinstance(error, HfHubHTTPError):
        return _refusal(wanted, error)
    if isinstance(error, httpx.HTTPError):
        return _unreachable(error)
    assert isinstance(error, OSError), "one of the two kinds"
    return _file_problem(error, destination)


def _refusal(wanted: HubReference, error: HfHubHTTPError) -> str:
    """The reason of a response with an error status."""
    from huggingface_hub import errors

    name, hub = wanted.repository, _endpoint()
    # The first that fits: a gated repository is also one that is not found.
    reasons: Sequence[tuple[type[HfHubHTTPError], str]] = (
        (
            errors.GatedRepoError,
            f"{name} is gated: accept its terms at {hub}/{name}, and set HF_TOKEN to an access "
            f"token of this account ({_token_state()})",
        ),
        (
            errors.DisabledRepoError,
            f"{name} was disabled by its owner or by the hub {hub}; choose another model",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the hub {hub} has no model {name}, or it is private: check the name, and set "
            f"HF_TOKEN to a token that may read it ({_token_state()})",
        ),
        (
            errors.RevisionNotFoundError,
            f"{name} has no revision {wanted.revision}: name a commit, tag or branch that "
            f"{hub}/{name} lists",
        ),
        (
            errors.RemoteEntryNotFoundError,
            f"the hub {hub} lists a file of {wanted} that it does not have: {error.response.url}",
        ),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    return _refused_status(wanted, error)


def _refused_status(wanted: HubReference, error: HfHubHTTPError) -> str:
    status, hub = error.response.status_code, _endpoint()
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return (
            f"the hub {hub} refuses the request for {wanted.repository} with status {status}: set "
            f"HF_TOKEN to a valid token that may read it ({_token_state()})"
        )
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return _proxy_problem("it requires a name and password")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return (
            f"the hub {hub} limits the requests of this address (status 429): try again later, or "
            f"set HF_TOKEN, which has a higher limit ({_token_state()})"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"the hub {hub} fails with status {status}: try again later, or set HF_ENDPOINT"
    return f"the hub {hub} answers with status {status} for {error.response.url}"


def _unreachable(error: Exception) -> str:
    """The reason of a request without a response."""
    import httpx

    if isinstance(error, httpx.ProxyError):
        return _proxy_problem(_first_line(error))
    hub, reason = _endpoint(), _first_line(error) or type(error).__name__
    if _CERTIFICATE in reason:
        return (
            f"the certificate of {hub} is not trusted ({reason}): set SSL_CERT_FILE to a file with "
            "the certificate of the authority that signed it"
        )
    if isinstance(error, httpx.TimeoutException):
        reason = "no response in time"
    if proxy := _proxy():
        reason += f", through the proxy {proxy}"
    return (
        f"the hub {hub} cannot be reached ({reason}): check the network, set HTTPS_PROXY to a "
        "proxy or HF_ENDPOINT to a mirror, or name a folder with the model's files"
    )


def _proxy_problem(reason: str) -> str:
    return (
        f"the proxy {_proxy() or 'of the environment'} does not connect to {_endpoint()} "
        f"({reason}): correct HTTPS_PROXY (http://NAME:PASSWORD@HOST:PORT), or list the host in "
        "NO_PROXY"
    )


def _file_problem(error: OSError, destination: Destination) -> str:
    """The reason of an error of the file system."""
    import ssl

    folder, remedy = destination
    reason = error.strerror or _first_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{folder} is full: free some space, or {remedy} on a larger disk; the download "
            "continues where it stopped"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{error.filename or folder} cannot be written ({reason}): {remedy} that this process "
            "may write"
        )
    paths = ssl.get_default_verify_paths()
    if isinstance(error, FileNotFoundError | ssl.SSLError) and error.filename is None:
        # The client does not name the file that it cannot read.
        return (
            f"the certificates in {paths.openssl_cafile_env} or {paths.openssl_capath_env} cannot "
            f"be read ({reason}): name a file or folder with certificates in PEM format"
        )
    return f"{error.filename or folder}: {reason}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _token_state() -> str:
    from huggingface_hub import get_token

    return "its token has no access" if get_token() else "it is not set"


def _proxy() -> str:
    """The proxy of requests to the hub without its password; "" for none."""
    hub = urlsplit(_endpoint())
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(hub.netloc):
        return ""
    given = urlsplit(proxies.get(hub.scheme) or proxies.get("all") or "")
    return f"{given.scheme}://{given.netloc.rpartition('@')[2]}" if given.netloc else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
