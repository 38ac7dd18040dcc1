"""Register with a SCITT transparency service that each vCon exists as it is, for its parties; nothing of it is kept.

For each of the `operations`, and each telephone number of a party (or the vCon itself where there is none), a statement
is signed (COSE_Sign1, ES256) that names the SHA-256 of the vCon. The service adds it to its log over SCRAPI, and its
receipt is checked: the signature, and the proof that the statement is in the log. The save fails if any statement is
not registered, or its receipt is wrong.

It is the same as the link `scitt`, but the receipts are not kept: all storages of a chain get the same version of the
vCon, so none of them writes to it. A second save registers again; its statements are the same byte for byte, which a
service can tell. Only where a save has failed, the next one of the process goes on behind what was registered. The vCon
cannot be had back, and a log that only grows deletes nothing, so there is no `get` and no `delete`.

Reads: the parties' `tel`, and the hash of the whole vCon. Writes: nothing; statements go to the service.
Needs: conserver[scitt].
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import ConfigDict, Field

from conserver import StorageError, scitt, vcons
from conserver.errors import ConfigError, OutboundError

#: What saves that failed, or are under way, have registered. Otherwise the statements of one that always takes too long
#: would come into the log with every attempt, for ever.
_registered: OrderedDict[bytes, None] = OrderedDict()
_MOST_REMEMBERED = 10_000


class Options(scitt.ScittOptions):
    """What to register, where, and in whose name."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    operations: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("vcon_enhanced",), min_length=1, description="What has happened to the vCon; each is registered."
    )


def save(vcon_uuid: str, opts: Options) -> None:
    """Register the vCon; StorageError if a statement has no receipt, or a wrong one."""
    vcon = vcons.get(vcon_uuid)
    # One that is named twice is registered once.
    operations = dict.fromkeys(opts.operations)
    statements = [one for operation in operations for one in scitt.statements(vcon, vcon.hash, operation)]
    with _told():
        signed = [scitt.sign(opts, one) for one in statements]
        keys = scitt.service_keys(opts)  # first: without them no receipt can be checked
        marks = [hashlib.sha256(f"{opts.scrapi_url} ".encode() + message).digest() for message in signed]
        for statement, message, mark in zip(statements, signed, marks, strict=True):
            if mark not in _registered:
                scitt.check_receipt(scitt.register(opts, message).receipt, statement, keys)
                _remember(mark)
    for mark in marks:
        _registered.pop(mark, None)


def ping(opts: Options) -> None:
    """Raise StorageError if the private key cannot be read, or the service does not give its keys."""
    with _told():
        scitt.signing_key(opts)
        scitt.service_keys(opts)


def _remember(mark: bytes) -> None:
    _registered[mark] = None
    if len(_registered) > _MOST_REMEMBERED:
        _registered.popitem(last=False)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ConfigError, OutboundError) as error:
        raise StorageError(f"cannot register: {error}") from error
