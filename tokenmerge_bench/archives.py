"""Images inside tar archives: indexed once, then read by offset.

timm's readers keep archives open, which forked workers would share, or stream, which cannot give image i; an index of
offsets does neither.
"""

from __future__ import annotations

import fnmatch
import re
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.imagenet import class_labels, is_flat, open_flat
from tokenmerge_bench.images import FileImages, Member, is_image
from tokenmerge_bench.splits import SPLITS, choose_split, words

__all__ = ["open_shards", "open_tar"]

_CLASS_NUMBER = re.compile(r"[0-9]{1,9}")


def open_tar(path: Path, split: str | None) -> FileImages:
    """The images in class folders of a tar archive, or ImageNet's flat validation archive with a labels file beside it.

    The class of an image is the name of the folder it lies in; where folders above name splits, only one split is
    taken. Raises InputError for a damaged or compressed archive, one without images, and as `class_labels`,
    `open_flat` and `choose_split` do.
    """
    where = f"archive '{path}'"
    members = _of_split(_index(path)[0], split, where, words(path.stem))
    if not members:
        raise InputError(f"no images in {where}: pack class folders, as n01440764/*.JPEG, into it")
    if is_flat(members):
        return open_flat(path.stem, members, path.parent, where)
    folders = [PurePosixPath(member.path).parent.name for member in members]
    if "" in folders:
        raise InputError(f"'{members[folders.index('')].path}' in {where} lies in no class folder: pack class folders")
    classes, label_of = class_labels(folders, where)
    found = [
        (f"{folder}/{PurePosixPath(m.path).name}", label_of[folder], m)
        for folder, m in zip(folders, members, strict=True)
    ]
    return FileImages.of(path.stem, classes, found)


def _of_split(members: Sequence[Member], split: str | None, where: str, whole: Collection[str]) -> list[Member]:
    """The members below a folder of the split's name; all of them where no folder names a split."""
    above = [SPLITS.intersection(PurePosixPath(member.path).parts[:-2]) for member in members]
    name = choose_split(split, set().union(*above), where, whole)
    return [member for member, folders in zip(members, above, strict=True) if name is None or name in folders]


def open_shards(name: str, data_dir: Path, split: str | None) -> FileImages:
    """A webdataset in local shards: .tar files below `data_dir`/`name`, or those of `data_dir` itself.

    Where there is no such folder, those of `data_dir` itself are the ones directly in it or in its folders of splits.

    A sample is an image and, under the same name, a `.cls` file with its label. Shards of the split are those that
    have it in their path (`val/000.tar`, `imagenet1k-validation-00.tar`); `split` may also be a pattern
    (`imagenet1k-val-*.tar`). The classes are the lines of `classnames.txt` where there is one, and otherwise as many as
    the largest label asks for. Raises InputError where something of this is missing or damaged.
    """
    root, shards = _find_shards(name, data_dir)
    found: list[tuple[str, int, Member]] = []
    for shard in _shards_of_split(root, shards, split):
        members, texts = _index(root / shard, texts=".cls")
        stem = str(PurePosixPath(shard).with_suffix(""))
        # 0001.jpg is the image of sample 0001; 0001.mask.png belongs to it, but is not the image.
        images = [member for member in members if PurePosixPath(member.path).name.count(".") == 1]
        _refuse_second_images(images, root / shard)
        found += [(f"{stem}/{image.path}", _class_number(image, texts, root / shard), image) for image in images]
    if not found:
        raise InputError(f"no images in the shards below '{root}': write samples of an image and a .cls file each")
    return FileImages.of(name.strip("/").replace("/", "-"), _class_count(root, found), found)


def _find_shards(name: str, data_dir: Path) -> tuple[Path, list[str]]:
    """The folder of the data set, and the paths of all its shards relative to it."""
    named = (data_dir / name).is_dir()
    root = data_dir / name if named else data_dir
    shards = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
    if not named:  # other folders are other data sets
        shards = [shard for shard in shards if "/" not in shard or shard.partition("/")[0] in SPLITS]
    if shards:
        return root, shards
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if folders and not named:
        raise InputError(
            f"no folder '{name}' and no .tar shards in '{root}': give wds/ and one of its folders, {', '.join(folders)}"
        )
    raise InputError(f"no .tar shards below '{root}': give the folder that holds them by --data-dir")


def _shards_of_split(root: Path, shards: list[str], split: str | None) -> list[str]:
    if split is not None and split.endswith(".tar"):
        chosen = fnmatch.filter(shards, split)
        if not chosen:
            raise InputError(f"no shard below '{root}' matches --split '{split}': a * stands for any characters")
        return chosen
    names = [SPLITS.intersection(words(shard)) for shard in shards]
    name = choose_split(split, set().union(*names), f"webdataset '{root}'", {root.name})
    return [shard for shard, known in zip(shards, names, strict=True) if name is None or name in known]


def _refuse_second_images(images: Sequence[Member], shard: Path) -> None:
    image_of: dict[PurePosixPath, str] = {}
    for image in images:
        sample = PurePosixPath(image.path).with_suffix("")
        if sample in image_of:
            both = f"'{image_of[sample]}' and '{image.path}'"
            raise InputError(f"{both} in '{shard}' are images of one sample: leave one of the two out")
        image_of[sample] = image.path


def _class_number(member: Member, texts: dict[str, bytes], shard: Path) -> int:
    beside = str(PurePosixPath(member.path).with_suffix(".cls"))
    text = texts.get(beside, b"").decode("ascii", "replace").strip()
    if not _CLASS_NUMBER.fullmatch(text):
        raise InputError(
            f"'{member.path}' in '{shard}' has no '{beside}' with the number of its class: write one, "
            "of at most 9 digits"
        )
    return int(text)


def _class_count(root: Path, found: Sequence[tuple[str, int, Member]]) -> int:
    largest = max(label for _, label, _ in found)
    listed = root / "classnames.txt"
    if not listed.is_file():
        return largest + 1
    classes = len(listed.read_text(encoding="utf-8", errors="replace").splitlines())
    if largest >= classes:
        raise InputError(f"label {largest} in the shards below '{root}' is beyond the {classes} classes of '{listed}'")
    return classes


def _index(path: Path, texts: str | None = None) -> tuple[list[Member], dict[str, bytes]]:
    """The images of an archive, unread, and the contents of the files whose names end in `texts`, if given."""
    members: list[Member] = []
    contents: dict[str, bytes] = {}
    try:
        # "r:" refuses compression: a compressed archive has no offsets to read from.
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                name = PurePosixPath(entry.name)
                if is_image(name.name) and (entry.issym() or entry.islnk()):
                    raise InputError(
                        f"'{name}' in '{path}' is a link: pack it with tar --dereference --hard-dereference"
                    )
                if entry.isfile() and is_image(name.name):
                    members.append(Member(str(name), str(path), entry.offset_data, entry.size))
                elif entry.isfile() and texts and name.name.endswith(texts):
                    file = archive.extractfile(entry)
                    contents[str(name)] = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"'{path}' is no readable tar archive ({error}): unpack it if it is compressed, or download it again"
        ) from error
    return members, contents
