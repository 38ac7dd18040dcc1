"""What URLs from vCons and API clients may reach: the `outbound` section of the config, and the check of an address."""

from __future__ import annotations

import functools
import ipaddress

from pydantic import BaseModel, ConfigDict, Field, field_validator


class OutboundPolicy(BaseModel):
    """The `outbound` section of the config: what URLs from vCons and API clients may reach."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_private: tuple[str, ...] = Field(
        default=(), description="Host names and networks (10.1.0.0/16) that may be reached although they are private."
    )
    allow_file: bool = Field(default=False, description="Read `file:` URLs from the worker's own disk.")
    allow_http: bool = Field(default=True, description="Fetch `http:` URLs as well as `https:` ones.")

    @field_validator("allow_private")
    @classmethod
    def _hosts_or_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if _network(entry) is None and (not entry.strip() or set(entry) & set("/:@ *")):
                raise ValueError(f"{entry!r} is neither a host name (audio.local) nor a network (10.1.0.0/16)")
        return tuple(entry.strip().lower().rstrip(".") for entry in entries)

    def admits(self, host: str, address: str) -> bool:
        """True if an untrusted URL with this host may connect to this address."""
        ip = _address(address)
        if _is_public(ip) or host.lower().rstrip(".") in self.allow_private:
            return True
        return any(ip in network for network in map(_network, self.allow_private) if network is not None)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Public by number, or according to older versions of Python, but not by use: protocol assignments (some clouds serve
# the metadata of machines there), relays and forms of IPv6 that hide an IPv4 address, and documentation.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)


_policy = OutboundPolicy()


def configure(policy: OutboundPolicy) -> None:
    """Make this the policy of the process for untrusted URLs."""
    global _policy
    _policy = policy


def in_force() -> OutboundPolicy:
    """Return the policy of the process."""
    return _policy


def _address(text: str) -> _Address:
    """Read an address; one that only wraps an IPv4 address is that IPv4 address."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def _is_public(ip: _Address) -> bool:
    if ip.version == 6 and ip not in _UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


@functools.lru_cache(maxsize=256)
def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry.strip(), strict=False)
    except ValueError:
        return None
