"""A self-signed certificate for pages of this machine: browsers allow motion sensors and WebXR over HTTPS
only."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from .arm import DeviceError


def state_dir() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ulna"


def tls_context(names: Sequence[str], folder: Path) -> tuple[ssl.SSLContext, str]:
    """(TLS context of a server with a certificate for `names`, addresses or host names; the certificate's
    SHA-256 fingerprint).

    The certificate is stored in `folder` and used again as long as it covers `names` and is valid for another
    30 days, so that a phone has to accept it once. DeviceError: the folder cannot be written, or the file is
    damaged."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    file = folder / "browser.pem"  # one file, so that key and certificate always belong together
    try:
        pem = file.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        if not _serves(certificate, names):
            raise ValueError("other names, or nearly over")
    except (OSError, ValueError):
        pem = _make(names)
        certificate = x509.load_pem_x509_certificate(pem)
        try:
            _write_private(file, pem)
        except OSError as error:
            raise DeviceError(f"cannot keep the page's certificate at {file}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(file)
    except (OSError, ssl.SSLError) as error:
        raise DeviceError(f"the page's certificate {file} is damaged ({error}): delete it") from None
    return context, certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _serves(certificate: object, names: Sequence[str]) -> bool:
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    hosts = {str(n.value) for n in alternative}
    remaining = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return set(names) <= hosts and remaining > datetime.timedelta(days=30)


def _make(names: Sequence[str]) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def general(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ulna")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a phone's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=397))  # phones refuse what lasts much longer
        .add_extension(x509.SubjectAlternativeName([general(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _write_private(file: Path, data: bytes) -> None:
    """Write `file` whole or not at all; from its first byte on, only its owner can read it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(data)
        part.replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
