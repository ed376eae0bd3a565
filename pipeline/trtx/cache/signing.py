"""Signatures of entries: ed25519 (RFC 8032) over the digest of the manifest.

A manifest's digest covers the key, the factors and the SHA-256 of every file, so one short signature covers the entry.
What is signed begins with DOMAIN: a signature made for another purpose with the same key means nothing here.
Keys are those of OpenSSL: `openssl genpkey -algorithm ed25519`; public keys are written `ed25519:<base64>`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.files import sha256_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DOMAIN = b"trtx entry signature v1\0"
PREFIX = "ed25519:"
PUBLIC_BYTES = 32
KEY_ID = re.compile(r"[0-9a-f]{64}")
# 64 bytes in base64.
VALUE = re.compile(r"[A-Za-z0-9+/]{86}==")
# More than these are not looked at.
MAX_SIGNATURES = 100


@dataclass(frozen=True)
class Signature:
    """A signature in base64; `key_id` is the SHA-256 of the public key's 32 bytes."""

    key_id: str
    value: str

    def to_json(self) -> dict[str, str]:
        return {"key": self.key_id, "ed25519": self.value}


class Signer:
    """Holds a private key; never prints it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._key_id = sha256_bytes(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Signer({self._key_id})"

    @property
    def public_key(self) -> str:
        """As it is written under `trusted_keys`."""
        return format_public_key(self._key.public_key())

    def sign(self, digest: str) -> Signature:
        """Sign a manifest's digest, 64 hex digits."""
        return Signature(self._key_id, base64.b64encode(self._key.sign(DOMAIN + digest.encode())).decode())


class Keyring:
    """Public keys that are trusted, by name."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {sha256_bytes(decode_public_key(text)): (name, text) for name, text in keys.items()}

    def signer_of(self, digest: str, signatures: Any) -> tuple[str | None, str]:
        """The name of a trusted key that signed a manifest's digest; else None and why not.

        One good signature suffices. `signatures` is the JSON value that came with the entry; it may be anything.
        """
        rows = signatures if isinstance(signatures, list) else []
        reason, bad = "it is not signed", ""
        for row in rows[:MAX_SIGNATURES]:
            known = self._keys.get(str(row.get("key"))) if isinstance(row, dict) else None
            if known is None:
                reason = "it is not signed by a trusted key"
                continue
            from cryptography.exceptions import InvalidSignature

            try:
                value = base64.b64decode(str(row.get("ed25519")), validate=True)
                _load_public(known[1]).verify(value, DOMAIN + digest.encode())
            except (InvalidSignature, ValueError):  # No base64, or not even ASCII. Another one may still be good.
                bad = f"its signature by '{known[0]}' does not verify"
                continue
            return known[0], ""
        return None, bad or reason


def read_signatures(value: Any) -> tuple[Signature, ...]:
    """The signatures in a JSON value from elsewhere, which may be anything; what has not their form is left out."""
    rows = value[:MAX_SIGNATURES] if isinstance(value, list) else []
    texts = [(row.get("key"), row.get("ed25519")) for row in rows if isinstance(row, dict)]
    return tuple(
        Signature(key_id, text)
        for key_id, text in texts
        if isinstance(key_id, str) and isinstance(text, str) and KEY_ID.fullmatch(key_id) and VALUE.fullmatch(text)
    )


def decode_public_key(text: str) -> bytes:
    """The 32 bytes of `ed25519:<base64>`. Raises ValueError."""
    if not text.startswith(PREFIX):
        raise ValueError(f"a public key begins with {PREFIX}")
    try:
        raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("what follows ed25519: is not base64") from None
    if len(raw) != PUBLIC_BYTES:
        raise ValueError(f"an ed25519 public key has {PUBLIC_BYTES} bytes, and this has {len(raw)}")
    return raw


def format_public_key(key: Ed25519PublicKey) -> str:
    return PREFIX + base64.b64encode(key.public_bytes_raw()).decode()


def _load_public(text: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(decode_public_key(text))


def load_signer(path: Path | None, text: str | None, where: str) -> Signer:
    """The signer of a PEM file that only its owner can read, or of a PEM text; `where` names the origin in errors.

    Raises EnvironmentProblem when it cannot be read or others can read it, UsageProblem when it is no such key.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read_private(path) if path is not None else (text or "").encode()
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        # Without the cause: it could quote the key.
        raise UsageProblem(
            f"{where} does not hold an unencrypted ed25519 private key in PEM form",
            fix="make one with `trtx cache keygen FILE` or `openssl genpkey -algorithm ed25519 -out FILE`",
        ) from None
    return Signer(key)


def _read_private(path: Path) -> bytes:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise EnvironmentProblem(
                f"others can read the private key {path}", why=f"its mode is {mode:04o}", fix=f"chmod 600 {path}"
            )
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read the private key {path}", why=error.strerror or "") from error


def make_key_file(path: Path) -> str:
    """Write a new private key (PEM, PKCS #8, mode 0600) and return the public key. Never replaces a file."""
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write the private key {path}", why=error.strerror or "") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
    return format_public_key(key.public_key())


def require_cryptography() -> None:
    """Raises EnvironmentProblem when the library is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        fix = "pip install 'trtx[sign]'"
        raise EnvironmentProblem("the Python package cryptography is missing", fix=fix) from error
