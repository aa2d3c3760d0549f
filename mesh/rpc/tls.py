"""TLS between the services, mutual if a CA is set, with certificate renewal.

PEM files: this service's certificate (with its chain) and private key, and the CA bundle that
verifies the certificates of the other services. A server reads renewed files at its next
handshake, a channel at its next call.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import NamedTuple

import grpc

from mesh.process.settings import ServiceSettings
from mesh.process.watched_files import WatchedFiles

logger = logging.getLogger("mesh.rpc.tls")


class TlsError(Exception):
    """Certificates that cannot be used; the message has the files and the reason."""


class TlsFiles(NamedTuple):
    """Paths of PEM files; an empty path is no file."""

    certificate: str = ""
    private_key: str = ""
    ca: str = ""
    client_auth: bool = True
    """Whether a server with a CA requires client certificates that it signed."""

    @staticmethod
    def of(settings: ServiceSettings) -> TlsFiles:
        """The files that the settings name."""
        return TlsFiles(
            settings.tls_certificate,
            settings.tls_private_key,
            settings.tls_ca,
            settings.tls_client_auth,
        )

    @property
    def for_server(self) -> bool:
        """Whether a server uses TLS."""
        return bool(self.certificate)

    @property
    def for_channel(self) -> bool:
        """Whether a channel uses TLS."""
        return bool(self.ca)

    def watched(self) -> WatchedFiles:
        """Detects changes of the files from now on."""
        return WatchedFiles([path for path in self[:3] if path])


class _Contents(NamedTuple):
    certificate: bytes | None
    private_key: bytes | None
    ca: bytes | None


NO_TLS = TlsFiles()


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials of a server that has a certificate. Raises TlsError."""
    watched = files.watched()
    require_client = bool(files.ca) and files.client_auth

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC at each handshake; None: unchanged.
        if not watched.changed():
            return None
        try:
            configuration = _server_configuration(files)
        except TlsError as error:
            logger.error("certificate not renewed", extra={"error": str(error)})
            return None
        logger.info("certificate renewed")
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(files),
        renewed,  # type: ignore[arg-type]  # the stub does not allow None, gRPC does
        require_client,
    )


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Credentials of a channel to servers whose certificates the CA signed. Raises TlsError."""
    contents = _read(files)
    return grpc.ssl_channel_credentials(contents.ca, contents.private_key, contents.certificate)


def _server_configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    contents = _read(files)
    assert contents.private_key is not None
    assert contents.certificate is not None
    pair = (contents.private_key, contents.certificate)
    ca = contents.ca if files.client_auth else None
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


def _read(files: TlsFiles) -> _Contents:
    """The validated contents: gRPC would fail only at a handshake, without a reason."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if files.certificate:
            context.load_cert_chain(files.certificate, files.private_key)
        if files.ca:
            context.load_verify_locations(files.ca)
        return _Contents(*(Path(path).read_bytes() if path else None for path in files[:3]))
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(path for path in files[:3] if path)
        raise TlsError(f"cannot use {names}: {error.strerror or type(error).__name__}") from error
