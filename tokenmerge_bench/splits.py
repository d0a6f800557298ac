"""Which part of a data set to take: the names that validation, test and training images go by."""

from __future__ import annotations

import re
from collections.abc import Collection

from tokenmerge_bench.errors import InputError

__all__ = ["SPLITS", "TRAINING", "choose_split", "words"]

TRAINING = ("train", "training")
_SYNONYMS = (("validation", "val", "valid", "eval"), ("test", "testing"), TRAINING)
SPLITS = frozenset(name for group in _SYNONYMS for name in group)


def choose_split(split: str | None, present: Collection[str], where: str, whole: Collection[str] = ()) -> str | None:
    """The name among `present` that stands for `split`, or None if the whole is to be taken.

    Without `split` that is the validation split, or the test split where there is none. `whole` are names of all
    there is, which may be a split already (`imagenet/val`). Raises InputError about `where` if the split is not
    there, and if none is asked for and all there is are training images.
    """
    if split is None:
        found = next((name for group in _SYNONYMS[:2] for name in group if name in present), None)
        if found is None and present and SPLITS.issuperset(present):
            raise InputError(
                f"{where} holds neither validation nor test images: take those of training by --split train"
            )
        return found
    # The very name that was asked for goes before its synonyms.
    wanted = (split, *next((group for group in _SYNONYMS if split in group), ()))
    found = next((name for name in wanted if name in present), None)
    if found is None and set(whole).isdisjoint(wanted):
        names = sorted(SPLITS.intersection(present)) or sorted(present)[:5]
        has = f"it has {', '.join(names)}" if names else "it is not divided into splits"
        raise InputError(f"{where} has no split '{split}' (--split): {has}")
    return found


def words(path: str) -> frozenset[str]:
    """The words of a path: `test/imagenet1k-val-00.tar` has test, imagenet, k, val and tar."""
    return frozenset(re.split(r"[^a-z]+", path.lower()))
