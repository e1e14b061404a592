"""Certificates of private authorities, such as those of TLS interceptors, that strict verification refuses.

Python 3.13 is strict by default (`ssl.VERIFY_X509_STRICT`). The tests are, with every version.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cfproxy.config import Account, load_settings
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.config.settings import Tls
from cfproxy.runtime import factory
from cfproxy.runtime.factory import build_tls
from cfproxy.stores.redis.client import open_client

_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass
class Authority:
    """A private authority and the certificate that it issued for localhost.

    Args:
        critical: whether its basic constraints are marked so.
        key_usage: whether it states what its key is for.
        subject_key: whether it has the identifier of its own key.
        authority_key: whether what it issues names that identifier.
    """

    critical: bool = True
    key_usage: bool = True
    subject_key: bool = True
    authority_key: bool = True

    def write(self, folder: Path) -> None:
        """Write `ca.pem`, and `server.pem` with its key."""
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An interceptor")])
        root = _builder(name, name, root_key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=self.critical
        )
        if self.key_usage:
            root = root.add_extension(_KEY_USAGE, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
        if self.subject_key:
            root = root.add_extension(identifier, critical=False)
        leaf = _builder(x509.Name([]), name, key).add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True
        )
        if self.authority_key:
            known = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
            leaf = leaf.add_extension(known, critical=False)
        (folder / "ca.pem").write_bytes(_pem(root.sign(root_key, hashes.SHA256())))
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / "server.pem").write_bytes(_pem(leaf.sign(root_key, hashes.SHA256())) + private)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - dt.timedelta(days=1),
        not_valid_after=now + dt.timedelta(days=1),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


LACKING = [
    Authority(critical=False),
    Authority(key_usage=False),
    Authority(subject_key=False),
    Authority(authority_key=False),
    Authority(critical=False, key_usage=False, subject_key=False, authority_key=False),
]


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every default context strict, like Python 3.13."""
    create = ssl.create_default_context

    def create_strict() -> ssl.SSLContext:
        context = create()
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    factory._ssl_context.cache_clear()
    monkeypatch.setattr(ssl, "create_default_context", create_strict)
    yield
    factory._ssl_context.cache_clear()


def account(folder: Path, **environ: str) -> Account:
    environ = {"CFPROXY_CLIENT_ID": "a", "CFPROXY_GRANT": "client_credentials"} | environ
    environ |= {"CFPROXY_CLIENT_SECRET": "s", "CFPROXY_TLS__CA_FILE": str(folder / "ca.pem")}
    return load_settings(None, environ).accounts["default"]


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[int]:
    """Serve the certificate; return the port."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem")
    serving = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    async with serving:
        yield serving.sockets[0].getsockname()[1]


async def connect(port: int, context: ssl.SSLContext | None, name: str = "localhost") -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    writer.close()


@pytest.mark.parametrize("authority", LACKING)
async def test_a_named_authority_need_not_be_strictly_right(tmp_path: Path, authority: Authority) -> None:
    """The same context serves API and token endpoint; host names and issuers are verified as ever."""
    authority.write(tmp_path)
    context = build_tls(account(tmp_path))
    assert context is not None
    async with server(tmp_path) as port:
        await connect(port, context)
        with pytest.raises(ssl.SSLCertVerificationError, match="ostname mismatch"):
            await connect(port, context, "other.example")
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the test's certificate does lack something
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port, context)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_an_authority_that_is_not_named_is_not_trusted(tmp_path: Path) -> None:
    """However strict."""
    (tmp_path / "named").mkdir()
    Authority().write(tmp_path / "named")
    Authority().write(tmp_path)
    context = build_tls(account(tmp_path / "named"))
    async with server(tmp_path) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port, context)


def test_without_a_named_authority_verification_stays_strict(tmp_path: Path) -> None:
    """The system's authorities have to be right; no other flag changes with a named one."""
    Authority().write(tmp_path)
    named_by = account(tmp_path)
    default = build_tls(named_by.model_copy(update={"tls": Tls()}))
    named = build_tls(named_by)
    assert default is not None
    assert named is not None
    assert default.verify_flags & ssl.VERIFY_X509_STRICT
    assert named.verify_flags == default.verify_flags & ~ssl.VERIFY_X509_STRICT


def test_redis_is_verified_in_the_same_way(tmp_path: Path) -> None:
    """A server's certificate comes from the same authority."""
    Authority().write(tmp_path)
    address = parse_redis_url("rediss://127.0.0.1:1/0")
    for ca_file, is_strict in ((tmp_path / "ca.pem", False), (None, True)):
        pool: Any = open_client(address, ca_file).connection_pool
        context = pool.make_connection().ssl_context.get()
        assert bool(context.verify_flags & ssl.VERIFY_X509_STRICT) is is_strict
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
