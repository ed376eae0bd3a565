"""Signatures say who made an entry; keys stay private."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trtx.cache.signing import DOMAIN, Keyring, Signer, decode_public_key, load_signer, make_key_file
from trtx.errors import EnvironmentProblem, UsageProblem

DIGEST = "ab" * 32


@pytest.fixture
def key(tmp_path: Path) -> tuple[Signer, str]:
    public = make_key_file(tmp_path / "key.pem")
    return load_signer(tmp_path / "key.pem", None, "key.pem"), public


def test_a_signature_of_a_trusted_key_verifies(key: tuple[Signer, str]) -> None:
    signer, public = key
    assert Keyring({"ci": public}).signer_of(DIGEST, [signer.sign(DIGEST).to_json()]) == ("ci", "")


@pytest.mark.parametrize("signatures", [None, [], {}, "x", [None], [{}], [{"key": 1, "ed25519": 2}]])
def test_without_a_signature_nobody_signed(key: tuple[Signer, str], signatures: Any) -> None:
    assert Keyring({"ci": key[1]}).signer_of(DIGEST, signatures)[0] is None


def test_the_signature_of_another_key_does_not_count(key: tuple[Signer, str], tmp_path: Path) -> None:
    other = make_key_file(tmp_path / "other.pem")
    signatures = [key[0].sign(DIGEST).to_json()]
    assert Keyring({"ci": other}).signer_of(DIGEST, signatures) == (None, "it is not signed by a trusted key")


@pytest.mark.parametrize("value", ["", "!", "é", "AAAA", "A" * 86 + "=="])
def test_a_false_signature_does_not_verify(key: tuple[Signer, str], value: str) -> None:
    signer, public = key
    signatures = [signer.sign(DIGEST).to_json() | {"ed25519": value}]
    signed_by, why = Keyring({"ci": public}).signer_of(DIGEST, signatures)
    assert signed_by is None
    assert "by 'ci' does not verify" in why


def test_one_good_signature_suffices_whatever_stands_before_it(key: tuple[Signer, str], tmp_path: Path) -> None:
    signer, public = key
    other_public = make_key_file(tmp_path / "other.pem")
    other = load_signer(tmp_path / "other.pem", None, "other.pem")
    good = signer.sign(DIGEST).to_json()
    bad = [good | {"ed25519": "AAAA"}, other.sign("cd" * 32).to_json()]
    keyring = Keyring({"ci": public, "other": other_public})
    assert keyring.signer_of(DIGEST, [*bad, good]) == ("ci", "")
    stranger = {"key": "00" * 32, "ed25519": "AAAA"}
    assert "does not verify" in keyring.signer_of(DIGEST, [*bad, stranger])[1]


def test_a_signature_is_for_one_digest(key: tuple[Signer, str]) -> None:
    signer, public = key
    assert Keyring({"ci": public}).signer_of("cd" * 32, [signer.sign(DIGEST).to_json()])[0] is None


def test_a_signature_made_for_another_purpose_does_not_count(key: tuple[Signer, str]) -> None:
    signer, public = key
    import base64

    bare = base64.b64encode(signer._key.sign(DIGEST.encode())).decode()
    assert Keyring({"ci": public}).signer_of(DIGEST, [signer.sign(DIGEST).to_json() | {"ed25519": bare}])[0] is None
    assert DOMAIN.endswith(b"\0")


def test_openssl_makes_keys_and_checks_signatures(tmp_path: Path) -> None:
    import base64

    private, public, message, signature = (
        tmp_path / name for name in ("key.pem", "public.pem", "message", "signature")
    )
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    private.chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    signer = load_signer(private, None, "key.pem")
    message.write_bytes(DOMAIN + DIGEST.encode())
    signature.write_bytes(base64.b64decode(signer.sign(DIGEST).value))
    argv = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        public,
        "-rawin",
        "-in",
        message,
        "-sigfile",
        signature,
    ]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == 0


def test_a_key_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    make_key_file(tmp_path / "keys/key.pem")
    assert stat.S_IMODE((tmp_path / "keys/key.pem").stat().st_mode) == 0o600
    with pytest.raises(EnvironmentProblem, match="cannot write the private key"):
        make_key_file(tmp_path / "keys/key.pem")


@pytest.mark.parametrize(
    "text", ["", "not a key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"]
)
def test_a_wrong_private_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        load_signer(None, text, "the environment variable KEY")
    assert "does not hold an unencrypted ed25519 private key" in caught.value.what
    assert not text or text not in caught.value.render()
    assert caught.value.__cause__ is None


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", path], check=True, capture_output=True)
    path.chmod(0o600)
    with pytest.raises(UsageProblem, match="ed25519"):
        load_signer(path, None, "rsa.pem")


def test_a_signer_does_not_print_its_key(key: tuple[Signer, str], tmp_path: Path) -> None:
    secret = "".join((tmp_path / "key.pem").read_text().splitlines()[1:-1])
    assert secret not in repr(key[0])
    assert "Signer" in repr(key[0])


@pytest.mark.parametrize("text", ["", "rsa:AAAA", "ed25519:!", "ed25519:AAAA"])
def test_a_wrong_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"key|base64"):
        decode_public_key(text)


def test_a_missing_private_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot read the private key"):
        load_signer(tmp_path / "none.pem", None, "none.pem")
