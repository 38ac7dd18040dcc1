"""Everything the conserver raises on purpose.

ConserverError
├── ConfigError           config.yml or a component it names cannot be used
├── SettingsError         an environment variable has a value that makes no sense
├── ServerError           the Redis-compatible server cannot be reached or refuses to work
├── NotAVcon              bytes or JSON that are no vCon at all
├── VconNotFound          no copy in Redis, and no storage gives one back
├── VconSealed            a signed or encrypted vCon was to be changed
├── VconConflict          two writers changed the same thing; work on the new copy
├── ClaimLost             this worker no longer holds the claim: it may neither save nor settle
├── LinkError             what a link raises to say why a vCon cannot go on
│   └── LinkTimeout       a link (or its chain) ran over its timeout
├── StorageError          a storage could not save, read or delete
└── OutboundError         a request to the outside failed
    ├── OutboundRefused   the policy forbids the target (private address, scheme, redirect)
    │   └── OutboundTooLarge  the answer has more bytes than are allowed
    └── OutboundStatus    the other side answered with an error status
"""

from __future__ import annotations


class ConserverError(Exception):
    """Base of all errors that the conserver raises on purpose."""


class ConfigError(ConserverError):
    """The config, or a component that it names, cannot be used."""


class SettingsError(ConserverError):
    """An environment variable has a value that cannot be used."""


class ServerError(ConserverError):
    """The Redis-compatible server cannot be reached, or refuses to work (full, read-only, loading)."""


class NotAVcon(ConserverError, ValueError):
    """The bytes or the JSON value are no vCon at all; nothing was stored."""


class VconNotFound(ConserverError, LookupError):
    """There is no vCon with this UUID in Redis, and no storage gives one back."""


class VconSealed(ConserverError):
    """The vCon is signed or encrypted, so it cannot be changed without breaking it."""


class VconConflict(ConserverError):
    """Somebody else changed the same part of the vCon in between; read it again and redo the work."""


class ClaimLost(ConserverError):
    """The claim was taken from this worker (its lease lapsed or it ran over its time)."""


class LinkError(ConserverError):
    """A link cannot do its work on this vCon; the message becomes the reason of the dead letter."""


class LinkTimeout(LinkError):
    """A link, or the chain around it, ran over its timeout."""


class StorageError(ConserverError):
    """A storage could not save, read or delete a vCon."""


class OutboundError(ConserverError):
    """A request to the outside failed; `retry_after_secs` is how long the other side asks to be left alone."""

    retry_after_secs: float | None = None


class OutboundRefused(OutboundError):
    """The outbound policy forbids this request; it was not sent, or its answer was not read."""


class OutboundTooLarge(OutboundRefused):
    """The answer has more bytes than are allowed, received or unpacked; the rest of it was not read."""


class OutboundStatus(OutboundError):
    """The other side answered with an error status, kept in `status`.

    `location` is where a redirect leads that was not followed.
    """

    def __init__(self, message: str, status: int, *, location: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.location = location
