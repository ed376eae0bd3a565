"""The remotes of a site, asked together: which entries they have, and why one of them is not used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtx.models.sources.base import TRUE
from trtx.plan.site import load_site, pull_request_variable

if TYPE_CHECKING:
    from trtx.cache.remote import Offer, Remote, RemoteSpec
    from trtx.cache.remote_push import WritableRemote
    from trtx.cache.signing import Keyring, Signer
    from trtx.plan import site_schema


# What the key of cache.sign is called where it verifies; the names of trusted_keys have no spaces.
OWN_KEY = "this site's key"


@dataclass(frozen=True)
class Hit:
    """An entry and the remote that has it."""

    remote: Remote
    offer: Offer


class Remotes:
    """The configured remotes in their order. What they answered is remembered for the life of this object."""

    def __init__(self, remotes: Sequence[Remote], notes: Sequence[str] = ()) -> None:
        self.all = tuple(remotes)
        self.skipped: dict[str, str] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self._notes = tuple(notes)
        self._offers: dict[str, dict[str, Offer]] = {remote.name: {} for remote in remotes}
        self._asked: dict[str, set[str]] = {remote.name: set() for remote in remotes}

    @property
    def writable(self) -> list[WritableRemote]:
        from trtx.cache.remote_push import WritableRemote

        return [remote for remote in self.all if isinstance(remote, WritableRemote)]

    def find(self, keys: Iterable[str]) -> dict[str, Hit]:
        """Which of the keys a remote has, the first in order that does; all remotes are asked side by side.

        Takes no longer than the slowest remote may; one that is down, slow or wrong is noted in `skipped`.
        """
        wanted = list(dict.fromkeys(keys))
        self._ask([remote for remote in self.all if remote.name not in self.skipped], wanted)
        hits: dict[str, Hit] = {}
        for remote in (each for each in self.all if each.name not in self.skipped):
            for key in wanted:
                offer = self._offers[remote.name].get(key)
                if offer is not None and key not in hits and (remote.name, key) not in self.refused:
                    hits[key] = Hit(remote, offer)
        return hits

    def _ask(self, remotes: Sequence[Remote], keys: Sequence[str]) -> None:
        from trtx.cache.background import DaemonPool
        from trtx.cache.remote import RemoteTrouble

        pool = DaemonPool(max(1, len(remotes)), "remotes")
        asked = []
        for remote in remotes:
            new = [key for key in keys if key not in self._asked[remote.name]]
            if new:
                asked.append((remote, new, pool.submit(lambda remote=remote, new=new: remote.find_many(new))))  # type: ignore[misc]
        for remote, new, future in asked:
            try:
                offers, refused = future.result()
            except RemoteTrouble as error:
                self.skipped[remote.name] = str(error)
                continue
            except Exception as error:  # noqa: BLE001  What a remote says never fails a build.
                self.skipped[remote.name] = f"{type(error).__name__}: {error}"
                continue
            self._asked[remote.name].update(new)
            self._offers[remote.name].update(offers)
            self.refused.update({(remote.name, key): why for key, why in refused.items()})

    def note(self, offer: Offer) -> Hit:
        """Remember an entry that appeared on a remote meanwhile; one that was refused there before is forgotten."""
        key = offer.manifest.key
        self._asked[offer.remote].add(key)
        self._offers[offer.remote][key] = offer
        self.refused.pop((offer.remote, key), None)
        return Hit(next(remote for remote in self.all if remote.name == offer.remote), offer)

    def refuse(self, hit: Hit, why: str) -> None:
        """Do not use an entry again: its content was not what it claimed to be."""
        self.refused[hit.remote.name, hit.offer.manifest.key] = why

    def distrusted(self, remote: Remote, key: str) -> Offer | None:
        """The entry of this key that the remote offered and that was refused when it was taken."""
        return self._offers[remote.name].get(key) if (remote.name, key) in self.refused else None

    def is_bad(self, remote: Remote, key: str) -> bool:
        """Whether the remote has something for this key that must be replaced."""
        return (remote.name, key) in self.refused

    def skip(self, remote: Remote, why: str) -> None:
        """Do not ask a remote again."""
        self.skipped[remote.name] = why

    def notes(self) -> list[str]:
        """What people should know, one line each: remotes skipped, entries refused, writing switched off."""
        lines = list(self._notes)
        for remote in self.all:
            if remote.name in self.skipped:
                lines.append(f"remote {remote.name} ({remote.spec.url}) was skipped: {self.skipped[remote.name]}")
            reasons = [why for (name, _), why in self.refused.items() if name == remote.name]
            for why in dict.fromkeys(reasons):
                count = reasons.count(why)
                lines.append(f"remote {remote.name}: {count} {'entries' if count > 1 else 'entry'} ignored: {why}")
        return lines

    def to_json(self) -> list[dict[str, Any]]:
        """The remotes for `-o json`."""
        names = {remote.name for remote in self.writable}
        return [
            {
                "name": remote.name,
                "url": remote.spec.url,
                "mode": "read-write" if remote.name in names else "read",
                "trust": remote.spec.trust,
                "skipped": self.skipped.get(remote.name),
            }
            for remote in self.all
        ]


def open_remotes(environ: Mapping[str, str]) -> Remotes | None:
    """The remotes that this site configures; None without any, and offline.

    Nothing is asked yet. In a pull-request job every remote is read-only, whatever the file says. Raises UsageProblem
    for a configuration that is wrong, EnvironmentProblem for a signing key that cannot be read.
    """
    site = None if environ.get("TRTX_OFFLINE", "").upper() in TRUE else load_site(environ)
    if site is None or not site.cache.remotes:
        return None
    from trtx.cache.remote import Remote
    from trtx.cache.remote_push import WritableRemote

    variable = pull_request_variable(environ)
    signer = None if variable else make_signer(site, environ)
    keyring = make_keyring(site, signer)
    remotes: list[Remote] = []
    notes = []
    for configured in site.cache.remotes:
        why = _why_read_only(configured, variable, signer) if configured.mode == "read-write" else None
        spec = make_spec(configured, writable=configured.mode == "read-write" and why is None)
        remotes.append(WritableRemote(spec, keyring, signer) if spec.writable else Remote(spec, keyring))
        if why is not None:
            notes.append(f"remote {spec.name} is only read: {why}")
    return Remotes(remotes, notes)


def _why_read_only(configured: site_schema.Remote, variable: str | None, signer: Signer | None) -> str | None:
    """Why a read-write remote is not written to; None when it is."""
    if variable is not None:
        return f"{variable} says this is a pull-request job"
    if configured.trust == "signed" and signer is None:
        return "its entries must be signed, and cache.sign names no key"
    return None


def make_spec(configured: site_schema.Remote, *, writable: bool) -> RemoteSpec:
    from trtx.cache.remote import RemoteSpec

    return RemoteSpec(
        configured.name, configured.url, writable, configured.trust, configured.endpoint, configured.timeout
    )


def make_keyring(site: site_schema.Site | None, signer: Signer | None = None) -> Keyring:
    """The public keys that the site trusts, its own among them.

    Raises EnvironmentProblem when signatures cannot be checked here.
    """
    from trtx.cache.signing import Keyring, require_cryptography

    keys = {**({OWN_KEY: signer.public_key} if signer else {}), **(site.cache.trusted_keys if site else {})}
    if keys:
        require_cryptography()
    return Keyring(keys)


def make_signer(site: site_schema.Site | None, environ: Mapping[str, str]) -> Signer | None:
    """What signs entries, where the site configures a key. Raises UsageProblem, EnvironmentProblem."""
    if site is None or site.cache.sign is None:
        return None
    from trtx.cache.signing import load_signer
    from trtx.errors import UsageProblem

    sign = site.cache.sign
    if sign.private_key_env is None:
        path = Path(sign.private_key or "").expanduser()
        return load_signer(path, None, str(path))
    text = environ.get(sign.private_key_env)
    if not text:
        raise UsageProblem(
            f"the environment variable {sign.private_key_env} is not set",
            why="the configuration says it holds the key that signs entries",
            fix="set it, or remove `sign` from the configuration",
        )
    return load_signer(None, text, f"the environment variable {sign.private_key_env}")
