"""Sets of ids by their hashes, for millions of them: which are known, and which occur twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ul_tokenizer.latents.packed_values import Array

_DIGEST = np.dtype("S16")  # 128 bits: among 10⁹ ids two share a digest with a probability of 10⁻²¹
_FEW = 1 << 16


class IdSet:
    """A set of ids in about 16 bytes each, to which more can be added.

    `name in ids` and `len(ids)` work as with a set; the ids themselves can't be listed. One thread may add ids while
    others look them up.

    Args:
        groups: the first ids, e.g. shard by shard.
    """

    def __init__(self, groups: Iterable[Sequence[str]] = ()) -> None:
        digests = [np.empty(0, _DIGEST), *(_digests(names) for names in groups)]
        # Both parts are replaced at once, so that no other thread sees an id in neither.
        self._parts: tuple[Array, set[bytes]] = np.unique(np.concatenate(digests)), set()

    def update(self, names: Sequence[str]) -> None:
        """Adds ids."""
        digests = list(map(_digest, names))
        known, (ordered, recent) = self._contains(digests), self._parts
        recent.update(digest for digest, is_known in zip(digests, known, strict=True) if not is_known)
        if len(recent) >= max(_FEW, len(ordered) // 4):
            self._parts = np.sort(np.concatenate([ordered, np.array(list(recent), _DIGEST)])), set()

    def contains(self, names: Sequence[str]) -> list[bool]:
        """Which of several ids are in the set; quicker than one at a time."""
        return self._contains(list(map(_digest, names)))

    def _contains(self, digests: list[bytes]) -> list[bool]:
        ordered, recent = self._parts
        if not len(ordered):
            return [digest in recent for digest in digests]
        wanted = np.array(digests, _DIGEST)
        places = np.searchsorted(ordered, wanted)
        places[places == len(ordered)] = 0
        found = (ordered[places] == wanted).tolist()
        return [known or digest in recent for known, digest in zip(found, digests, strict=True)]

    def __contains__(self, name: str) -> bool:
        return self.contains([name])[0]

    def __len__(self) -> int:
        ordered, recent = self._parts
        return len(ordered) + len(recent)


def _digests(names: Sequence[str]) -> Array:
    return np.array([_digest(name) for name in names], _DIGEST)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_DIGEST.itemsize).digest()


# ---------------------------------------------------------------- ids that stand twice


class RepeatedIds:
    """Finds ids that occur twice among millions, in 8 bytes each: first by Python's own hashes, then exactly.

    `add` takes all ids; `find` needs them again, and reads them only if two hashes were equal.
    """

    def __init__(self) -> None:
        self._hashes: list[Array] = []

    def add(self, names: Sequence[str]) -> None:
        """Takes some of the ids."""
        self._hashes.append(np.fromiter(map(hash, names), np.int64, len(names)))

    def find(self, groups: Iterable[Sequence[str]]) -> Iterator[tuple[int, str, int]]:
        """Yields the number of a group, an id in it, and the number of the group in which it stood before.

        Args:
            groups: the same ids in the same order.
        """
        hashes = np.sort(np.concatenate(self._hashes)) if self._hashes else np.empty(0, np.int64)
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        first: dict[str, int] = {}
        for number, names in enumerate(groups if suspects else ()):
            for name in names:
                if hash(name) not in suspects:
                    continue
                if name in first:
                    yield number, name, first[name]
                first.setdefault(name, number)
