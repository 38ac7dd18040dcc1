"""Receipts of a transparency service: a COSE_Sign1 over the root of its Merkle tree, with a way to it (RFC 9162)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conserver import cose

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

# Labels of headers: which kind of tree, and the proofs by kind.
_TREE, _RFC9162 = 395, 1
_PROOFS, _INCLUSION = 396, -1


def check(receipt: bytes, payload: bytes, keys: Sequence[tuple[str | None, EllipticCurvePublicKey]]) -> None:
    """Check that one of the keys has signed that a statement of this payload is in the tree; ValueError says why not.

    A receipt that names its key is checked with that one alone. The leaf of a statement is the SHA-256 of its payload.
    """
    message = cose.read(receipt)
    if message.headers.get(cose.ALG) != cose.ES256:
        raise ValueError(f"its algorithm is {message.headers.get(cose.ALG)!r:.20}, not ES256")
    if message.headers.get(_TREE, _RFC9162) != _RFC9162:
        raise ValueError(f"its tree is of the kind {message.headers[_TREE]!r:.20}, not RFC 9162 with SHA-256")
    root = _root(hashlib.sha256(b"\0" + hashlib.sha256(payload).digest()).digest(), *_proof(message))
    kid = message.headers.get(cose.KID, message.unprotected.get(cose.KID))
    named = [key for name, key in keys if kid is None or name is None or name in _spellings(kid)]
    if not named:
        raise ValueError("it names a key that the service does not publish")
    if not any(cose.verifies(message, key, root) for key in named):
        raise ValueError("its signature does not fit the statement and its place in the tree")


def keys_of(jwks: Any) -> list[tuple[str | None, EllipticCurvePublicKey]]:
    """Return the P-256 keys of a JWKS with their names, or None; those of another kind are left out."""
    entries = jwks.get("keys") if isinstance(jwks, dict) else None
    return [key for entry in entries if (key := _jwk(entry))] if isinstance(entries, list) else []


def _jwk(entry: Any) -> tuple[str | None, EllipticCurvePublicKey] | None:
    """Return the name and the key of an entry of a JWKS; None for a key of another kind."""
    if not isinstance(entry, dict) or (entry.get("kty"), entry.get("crv")) != ("EC", "P-256"):
        return None
    try:
        x, y = (base64.urlsafe_b64decode(entry[name] + "==") for name in ("x", "y"))
        kid = entry.get("kid")
        return (kid if isinstance(kid, str) and kid else None), cose.public_key(x, y)
    except (KeyError, TypeError, ValueError):
        return None


def _spellings(kid: Any) -> set[str]:
    """Return the texts by which a JWKS may name the key that a receipt names in bytes."""
    if isinstance(kid, str):
        return {kid}
    if not isinstance(kid, bytes):
        return set()
    return {
        kid.decode("utf-8", "replace"),
        kid.hex(),
        base64.urlsafe_b64encode(kid).decode().rstrip("="),
    }


def _proof(message: cose.Sign1) -> tuple[int, int, list[bytes]]:
    """Return the size of the tree, the number of the leaf, and the hashes beside its way to the root."""
    proofs = message.unprotected.get(_PROOFS)
    found = proofs.get(_INCLUSION) if isinstance(proofs, Mapping) else None
    if not isinstance(found, list | tuple) or not found or not isinstance(found[0], bytes):
        raise ValueError("it has no proof of inclusion")
    proof = cose.from_cbor(found[0])
    if isinstance(proof, list | tuple) and len(proof) == 3:
        size, leaf, path = proof
        numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in (size, leaf))
        hashes = isinstance(path, list | tuple) and all(isinstance(one, bytes) and len(one) == 32 for one in path)
        if numbers and hashes and 0 <= leaf < size:
            return size, leaf, list(path)
    raise ValueError("its proof of inclusion is not [tree size, leaf index, path]")


def _root(leaf_hash: bytes, size: int, leaf: int, path: Sequence[bytes]) -> bytes:
    """Walk from a leaf to the root as RFC 9162, 2.1.3.2, has it; ValueError if the path does not end there."""
    root, at, last = leaf_hash, leaf, size - 1
    for beside in path:
        if last == 0:
            raise ValueError("its proof of inclusion is too long for the tree")
        if at % 2 or at == last:
            root = _node(beside, root)
            while not at % 2 and at:  # where the tree has no right half, the node rises as it is
                at, last = at >> 1, last >> 1
        else:
            root = _node(root, beside)
        at, last = at >> 1, last >> 1
    if last:
        raise ValueError("its proof of inclusion is too short for the tree")
    return root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
