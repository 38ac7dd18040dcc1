"""COSE_Sign1 with ES256 (RFC 9052, RFC 9053): sign, read and verify; just what transparency services need.

    data = sign(key, {1: -7, 4: b"key-1"}, b"payload")
    verifies(read(data), key.public_key(), b"payload")

Needs the packages cbor2 and cryptography, which are imported with the first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

ES256 = -7
#: Labels of header parameters.
ALG, KID = 1, 4

_SIGN1 = 18
_P256 = 1
_SIZE = 32


@dataclass(frozen=True)
class Sign1:
    """A message as it was read; `protected` are the bytes that were signed, `headers` what they say."""

    protected: bytes
    headers: Mapping[Any, Any]
    unprotected: Mapping[Any, Any]
    payload: bytes | None
    """None when it is detached: the verifier knows it from elsewhere."""
    signature: bytes


def private_key(pem: bytes) -> EllipticCurvePrivateKey:
    """Return the P-256 key in a PEM; ValueError, which quotes nothing of it, if there is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the private key is encrypted: give it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is not the PEM of a private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the private key is not one for the curve P-256, which ES256 needs")
    return key


def public_key(x: bytes, y: bytes) -> EllipticCurvePublicKey:
    """Return the P-256 key with these coordinates; ValueError if that is no point of the curve."""
    from cryptography.hazmat.primitives.asymmetric import ec

    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1())
    return numbers.public_key()


def key_map(key: EllipticCurvePublicKey) -> dict[int, Any]:
    """Return the COSE_Key of a public key: kty EC2, crv P-256, x, y."""
    numbers = key.public_numbers()
    return {1: 2, -1: _P256, -2: numbers.x.to_bytes(_SIZE), -3: numbers.y.to_bytes(_SIZE)}


def sign(key: EllipticCurvePrivateKey, headers: Mapping[Any, Any], payload: bytes) -> bytes:
    """Return a tagged COSE_Sign1; the same arguments give the same bytes."""
    import cbor2
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    protected = cbor2.dumps(dict(headers))
    # Deterministic (RFC 6979), so that a service can tell a repeated statement from a new one.
    der = key.sign(_signed(protected, payload), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    return cbor2.dumps(cbor2.CBORTag(_SIGN1, [protected, {}, payload, r.to_bytes(_SIZE) + s.to_bytes(_SIZE)]))


def read(data: bytes) -> Sign1:
    """Return the message; ValueError says why *data* is none."""
    message = from_cbor(data)
    tag = getattr(message, "tag", None)
    if tag is not None:
        if tag != _SIGN1:
            raise ValueError(f"it has the CBOR tag {tag}, not {_SIGN1}")
        message = message.value
    if not isinstance(message, list | tuple) or len(message) != 4:
        raise ValueError("it is not a COSE_Sign1, an array of four")
    protected, unprotected, payload, signature = message
    if not (
        isinstance(protected, bytes)
        and isinstance(unprotected, Mapping)
        and isinstance(payload, bytes | None)
        and isinstance(signature, bytes)
    ):
        raise ValueError("it is not a COSE_Sign1: its parts have the wrong types")
    headers = from_cbor(protected) if protected else {}
    if not isinstance(headers, Mapping):
        raise ValueError("its protected header is not a map")
    return Sign1(protected, headers, unprotected, payload, signature)


def verifies(message: Sign1, key: EllipticCurvePublicKey, payload: bytes) -> bool:
    """True if the key has signed the message's protected header and this payload."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if len(message.signature) != 2 * _SIZE:
        return False
    r, s = int.from_bytes(message.signature[:_SIZE]), int.from_bytes(message.signature[_SIZE:])
    try:
        key.verify(encode_dss_signature(r, s), _signed(message.protected, payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def from_cbor(data: bytes) -> Any:
    """Return the value; ValueError, which quotes nothing of it, for what is not CBOR."""
    import cbor2

    try:
        return cbor2.loads(data)
    # Tags may make values of any kind, and what these raise is theirs.
    except Exception as error:  # noqa: BLE001
        raise ValueError(f"it is not CBOR ({type(error).__name__})") from None


def _signed(protected: bytes, payload: bytes) -> bytes:
    import cbor2

    return cbor2.dumps(["Signature1", protected, b"", payload])
