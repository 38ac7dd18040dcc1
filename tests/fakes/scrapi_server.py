"""A fake SCITT transparency service with real cryptography: SCRAPI, COSE_Sign1, a Merkle tree as in RFC 9162.

It verifies each statement by the key that the statement confirms, adds it to its tree and signs a receipt. Written
from the standards, with nothing of ours, so that it can be wrong on its own. It misbehaves on order, by route:

    with ScrapiServer() as service:
        service.order(status(429, retry_after="1"), cut, ok)          # to POST /entries
        service.order(status(500), to="keys")
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections import defaultdict, deque
from dataclasses import replace
from typing import Any

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.orders import Answer, Order, changed, ok

KID = b"service-key-2"


class ScrapiServer(HttpServer):
    """Registers statements at once, or, with `later`, after that many polls.

    `statements` are those in the tree, taken apart. Its tree begins with `others`, and its own key is the second of
    those that it publishes.
    """

    def __init__(self, *, later: int | None = None, others: int = 5, kid: bytes | None = KID) -> None:
        super().__init__(self._respond)
        self.later = later
        self.running_status = 202
        self.jwks_uri: str | None = "/keys"
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.published: list[tuple[str | None, ec.EllipticCurvePrivateKey]] = [
            ("service-key-1", ec.generate_private_key(ec.SECP256R1())),
            (KID.decode(), self.key),
        ]
        self.statements: list[dict[str, Any]] = []
        self._leaves = [os.urandom(32) for _ in range(others)]
        self._numbers: dict[str, int] = {}
        self._polls: dict[str, int] = {}
        self._orders: dict[str, deque[Order]] = defaultdict(deque)
        self._lock = threading.Lock()

    @property
    def posts(self) -> list[Request]:
        """The attempts to register so far."""
        return [request for request in self.requests if request.method == "POST"]

    def order(self, *orders: Order, to: str = "register") -> None:
        """Queue what is to happen to the next requests to a route: register, poll, receipt, config or keys."""
        self._orders[to].extend(orders)

    def _respond(self, exchange: Exchange) -> None:
        request = exchange.request
        parts = request.path.strip("/").split("/")
        if request.method == "POST" and parts == ["entries"]:
            route, work = "register", lambda: self._register(request)
        elif parts[0] == "operations":
            route, work = "poll", lambda: self._poll(parts[1])
        elif parts[0] == "entries" and len(parts) == 2:
            route, work = "receipt", lambda: self._receipt(parts[1])
        elif parts == [".well-known", "transparency-configuration"]:
            route, work = "config", self._config
        elif parts in (["keys"], ["jwks"]):
            route, work = "keys", self._keys
        else:
            exchange.answer(404)
            return
        queue = self._orders[route]
        (queue.popleft() if queue else ok)(exchange, work)

    def _register(self, request: Request) -> Answer:
        if request.headers.get("content-type") != "application/cose":
            return Answer(415)
        try:
            statement = _taken_apart(request.body)
        except (ValueError, LookupError, TypeError, AttributeError, InvalidSignature) as error:
            problem = cbor2.dumps({-1: "Rejected", -2: repr(error)})
            return Answer(400, problem, {"content_type": "application/concise-problem-details+cbor"})
        with self._lock:
            # The digest of the payload stands for the statement in the tree.
            self._leaves.append(hashlib.sha256(statement["payload"]).digest())
            entry = f"entry-{len(self._leaves)}"
            self._numbers[entry] = len(self._leaves) - 1
            self.statements.append(statement)
        if self.later is None:
            return replace(self._receipt(entry), status=201)
        self._polls[entry] = self.later
        return Answer(303, b"", {"location": f"/operations/{entry}"})

    def _poll(self, entry: str) -> Answer:
        if entry not in self._polls:
            return Answer(404)
        if self._polls[entry] > 0:
            self._polls[entry] -= 1
            return Answer(self.running_status, b"", {"location": f"/operations/{entry}"})
        return Answer(200, json.dumps({"entryID": entry}).encode(), {"content_type": "application/json"})

    def _receipt(self, entry: str) -> Answer:
        if entry not in self._numbers:
            return Answer(404)
        headers = {"content_type": "application/cose", "location": f"/entries/{entry}"}
        return Answer(200, self.receipt(self._numbers[entry]), headers)

    def receipt(self, leaf: int) -> bytes:
        """Return a receipt for a leaf of the tree as it is now."""
        leaves = list(self._leaves)
        proof = cbor2.dumps([len(leaves), leaf, path(leaf, leaves)])
        headers: dict[int, Any] = {1: -7, 395: 1} | ({4: self.kid} if self.kid is not None else {})
        protected = cbor2.dumps(headers)
        return _sign1(self.key, protected, {396: {-1: [proof]}}, None, root(leaves))

    def _config(self) -> Answer:
        config = {"issuer": self.url} | ({"jwks_uri": self.jwks_uri} if self.jwks_uri else {})
        return Answer(200, cbor2.dumps(config), {"content_type": "application/cbor"})

    def _keys(self) -> Answer:
        keys = [jwk(key) | ({"kid": kid} if kid else {}) for kid, key in self.published]
        return Answer(200, json.dumps({"keys": keys}).encode(), {"content_type": "application/json"})


def new_key(kind: ec.EllipticCurve | None = None) -> bytes:
    """Return the PEM of a new private key."""
    return ec.generate_private_key(kind or ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the public key as an entry of a JWKS."""
    numbers = key.public_key().public_numbers()
    x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).decode().rstrip("=") for n in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


# The tree, as RFC 9162 defines it (2.1.1 and 2.1.3.1)


def root(leaves: list[bytes]) -> bytes:
    """Return the hash of the tree."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = _split(len(leaves))
    return hashlib.sha256(b"\x01" + root(leaves[:half]) + root(leaves[half:])).digest()


def path(leaf: int, leaves: list[bytes]) -> list[bytes]:
    """Return the hashes beside the way from a leaf to the root, from below."""
    if len(leaves) == 1:
        return []
    half = _split(len(leaves))
    if leaf < half:
        return [*path(leaf, leaves[:half]), root(leaves[half:])]
    return [*path(leaf - half, leaves[half:]), root(leaves[:half])]


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


# COSE


def _taken_apart(data: bytes) -> dict[str, Any]:
    """Return what a statement says, once its signature was verified."""
    message = cbor2.loads(data)
    if message.tag != 18:
        raise ValueError("not tagged as COSE_Sign1")
    protected, unprotected, payload, signature = message.value
    headers = cbor2.loads(protected)
    confirmed = headers[13][8][1]
    if (headers[1], confirmed[1], confirmed[-1]) != (-7, 2, 1):
        raise ValueError("not ES256 with a P-256 key")
    x, y = (int.from_bytes(confirmed[label], "big") for label in (-2, -3))
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key().verify(
        encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256())
    )
    return {
        "headers": headers,
        "unprotected": unprotected,
        "payload": payload,
        "issuer": headers[13][1],
        "subject": headers[13][2],
    }


def _sign1(
    key: ec.EllipticCurvePrivateKey, protected: bytes, unprotected: dict[Any, Any], payload: Any, signed: bytes
) -> bytes:
    der = key.sign(cbor2.dumps(["Signature1", protected, b"", signed]), ec.ECDSA(hashes.SHA256()))
    r, s = decode_dss_signature(der)
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, payload, signature]))


# Orders of its own: what may be wrong with a receipt


def other_receipt(service: ScrapiServer) -> Order:
    """Answer with the receipt for the first leaf, which is somebody else's."""
    return changed(lambda answer: replace(answer, body=service.receipt(0)))


def receipt_with(**parts: Any) -> Order:
    """Replace parts of the receipt: protected, unprotected, payload, signature or tag."""

    def change(answer: Answer) -> Answer:
        message = cbor2.loads(answer.body)
        names = ("protected", "unprotected", "payload", "signature")
        told = [parts.get(name, value) for name, value in zip(names, message.value, strict=True)]
        return replace(answer, body=cbor2.dumps(cbor2.CBORTag(parts.get("tag", 18), told)))

    return changed(change)


def receipt_with_proof(*proof: Any) -> Order:
    """Replace the proof of inclusion."""
    return receipt_with(unprotected={396: {-1: [cbor2.dumps(list(proof))]}})
