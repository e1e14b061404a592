"""Which hosts mean this machine: for plain HTTP, listeners without a key, and the `Host` check."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cfproxy.hosts import (
    is_below_localhost,
    is_loopback,
    parse_authority,
    render_authority,
    resolves_here,
    split_host,
)
from tests.support.names import resolve_by


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "localhost.",
        "127.0.0.1",
        "127.255.9.1",
        "::1",
    ],
)
def test_names_and_addresses_of_this_machine(host: str) -> None:
    """`localhost`, in any case and with a final dot, 127.0.0.0/8 and ::1."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ".",
            ".localhost",
            "api.localhost",
            "a..localhost",
            "localhost..",
            "localhost.evil.com",
            "evillocalhost",
            "localhos",
        ),
        *("127.0.0.1.evil.com", "127.0.0.1.", "127.1", "2130706433", "0x7f.0.0.1", "128.0.0.1", "0.0.0.0"),
        *(
            "::",
            "::2",
            "[::1]",
            "::1%1",
            "::127.0.0.1",
            "192.168.1.5",
            " 127.0.0.1",
            "localhost:80",
            "l\u00f6calhost",
        ),
    ],
)
def test_similar_names_and_addresses_are_not_this_machine(host: str) -> None:
    """A name below another domain, a shortened or numeric address, a wildcard, an address with a zone."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host", ["a.localhost", "A.b.LocalHost.", "a-b_1.localhost", "a" * 243 + ".localhost"]
)
def test_names_below_localhost_are_known_but_not_believed(host: str) -> None:
    """Many systems ask DNS about them."""
    assert is_below_localhost(host)
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "", ".localhost", "a..localhost", "-.localhost", "a-.localhost", "a.localhost.."),
        *(
            "a.localhost.example",
            "a.xlocalhost",
            "127.0.0.1",
            "a b.localhost",
            "ä.localhost",
            "a.localhost:1",
        ),
        "a" * 244 + ".localhost",
    ],
)
def test_other_names_are_not_below_localhost(host: str) -> None:
    """Malformed ones, `localhost` itself, and names of other domains."""
    assert not is_below_localhost(host)


async def test_a_name_resolves_here_if_all_of_its_addresses_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not of this machine could be the first step of DNS rebinding."""
    names = resolve_by(
        monkeypatch, a=["127.0.0.1", "::1"], b=["127.0.0.1", "192.0.2.7"], c=["192.0.2.7"], d=[]
    )
    assert [name for name in (*names.addresses, "e", "x" * 99) if await resolves_here(name)] == ["a"]


@given(st.text(max_size=12), st.none() | st.integers(0, 99999))
@example("ü", 1)
def test_splitting_a_host_never_fails(name: str, port: int | None) -> None:
    """Any value yields a lower-case name and a port, or no name."""
    host = name if port is None else f"{name}:{port}"
    split_name, split_port = split_host(host)
    assert split_name == split_name.lower()
    if split_name and not name.strip().startswith("["):
        assert split_name == name.strip().partition(":")[0].lower().removesuffix(".")
        assert split_port == port or ":" in name
    assert is_loopback(split_name) in {True, False}


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:7f00:1", "::FFFF:127.0.0.2"])
def test_an_ipv4_mapped_address_is_not_this_machine(host: str) -> None:
    """Python versions classify ::ffff:127.0.0.1 differently; this function does not."""
    assert not is_loopback(host)


@given(st.ip_addresses(v=4))
def test_only_ipv4_addresses_in_127_are_this_machine(address: ipaddress.IPv4Address) -> None:
    """The first octet decides."""
    assert is_loopback(str(address)) == str(address).startswith("127.")


@given(st.text(max_size=20))
def test_no_name_below_another_domain_is_this_machine(text: str) -> None:
    """Whatever precedes the domain, unusual characters included."""
    assert not is_loopback(f"{text}.example")
    assert not is_loopback(f"localhost.{text}.example")


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_a_rendered_authority_parses_to_the_same_host_and_port(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    """An IPv6 address has brackets, which separate it from its port."""
    host = str(address)
    assert parse_authority(render_authority(host, port), "wanted") == (host, port)
