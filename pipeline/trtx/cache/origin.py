"""Where entries came from, and which of them this machine may sign.

An entry that was taken from a remote or an archive has an `origin.json` beside its manifest; one that was made in this
cache has none. It is written before the entry becomes visible, and moves, is replaced and vanishes with it. Manifests
say nothing about it: they are the same on every machine.

A signature says "made here, or taken from somebody whose key is trusted here". Signing anything else would make the
bytes of a stranger trusted wherever this machine is.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtx.cache.foreign import EntryRefused
from trtx.cache.manifest import Manifest, manifest_digest
from trtx.cache.signing import Keyring, Signature, Signer, read_signatures
from trtx.cache.store import ORIGIN, Store
from trtx.files import canonical_json, read_json


class EntryUntrusted(Exception):
    """An entry of this cache must not go where entries are signed; the text says why."""


@dataclass(frozen=True)
class Origin:
    """`source` is "remote <name>" or "archive <file>"; `signatures` are those the entry came with, not believed."""

    source: str
    signatures: tuple[Signature, ...] = ()

    def dump(self) -> str:
        """The text of origin.json."""
        rows = [signature.to_json() for signature in self.signatures]
        return canonical_json({"source": self.source, "signatures": rows}).decode() + "\n"


@dataclass(frozen=True)
class Vouched:
    """The signatures that go along with an entry, and why none of them is one that this site trusts, if so."""

    signatures: tuple[Signature, ...]
    doubt: str = ""


def read_origin(store: Store, key: str) -> Origin | None:
    """None for an entry that was made in this cache; a note that cannot be read is one of an unknown origin."""
    try:
        body = read_json(store.entry(key) / ORIGIN)
        return Origin(str(body["source"]), read_signatures(body["signatures"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Origin("an unknown place")


def vouch(store: Store, manifest: Manifest, keyring: Keyring | None, signer: Signer | None) -> Vouched:
    """The signatures for an entry that leaves this cache: those it came with, and this site's own where it may sign.

    Trust is decided anew each time: a key that is not trusted any more vouches for nothing. Raises EntryRefused when
    the entry is not the one of this manifest any more.
    """
    key, before = manifest.key, store.identity(manifest.key)
    origin, current = read_origin(store, key), store.peek(key)
    # Another entry of this key may have another origin.
    if current is None or current.dump() != manifest.dump() or store.identity(key) != before:
        raise EntryRefused("it was removed or replaced meanwhile")
    digest = manifest_digest(manifest)
    own = (signer.sign(digest),) if signer else ()
    if origin is None:
        return Vouched(own, "" if own else "no key signs what is made here")
    trusted_by, why = (keyring or Keyring({})).signer_of(digest, [each.to_json() for each in origin.signatures])
    if trusted_by is None:
        return Vouched(origin.signatures, f"it came from {origin.source}, and {why}")
    return Vouched(tuple(dict.fromkeys((*origin.signatures, *own))))
