"""What pages ask for and no test has: ImageNet, training images, weights, photographs, a GPU, and hours.

A command is run as it stands, but on small images of noise in the same layout, on the CPU, for one epoch, and where
the models of the paper are compared on the smallest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.distributed.run import get_args_parser as torchrun

from tokenmerge_bench.experiment import Dtype
from tokenmerge_bench.modes import Mode

IMAGENET = ("n01440764", "n01443537")
"""Two classes of ImageNet's."""
FOLDERS = {"/imagenet": "imagenet", "/data/imagenet/val": "imagenet/val"}
"""Where readers have what lies in a folder of the test."""
INSTEAD = {
    "--device": (("cuda",), "cpu"),
    "--workers": ((), "0"),
    "--modes": (get_args(Mode), "eager"),
    "--dtype": (get_args(Dtype), "float32"),
    "--dtypes": (get_args(Dtype), "float32"),
}
"""What a page may say, and what is run."""
CHECKPOINTS = {"runs/sit-tiny": "deit_tiny_patch16_224", "runs/sit-small": "deit_small_patch16_224"}
"""What readers have trained with SiT at 0.7 of the FLOPs."""
SHORTER = {
    "sweep": ["--limit", "1", "--batch-size", "1"],
    "run": ["--limit", "1", "--batch-size", "1"],
    "train": [
        word
        for key in ("epochs=1", "warmup_epochs=0", "batch_size=2", "micro_batch_size=0", "holdout=0", "repeats=1")
        for word in ("--set", key)
    ],
}


def shorter(words: Sequence[str]) -> list[str]:
    """What is added to a command so that it takes seconds."""
    more = SHORTER.get(words[1], [])
    if words[1] == "run":
        models = [CHECKPOINTS[name] for name in words if name in CHECKPOINTS]
        more = [*more, "--models", ",".join(models) or "deit_tiny_patch16_224"]
    return more


def stood_in(words: Sequence[str], folder: Path) -> list[str]:
    """The command for what a page says; files that it names and that are missing are made in `folder`."""
    program, *arguments = words
    if program == "torchrun":
        given = torchrun().parse_args(arguments)
        assert given.module
        program, arguments = given.training_script, given.training_script_args
    assert program in ("tmbench", "tokenmerge_bench")
    for position, (flag, value) in enumerate(pairwise(arguments), start=1):
        known, instead = INSTEAD.get(flag, ((), FOLDERS.get(value, value)))
        assert not known or set(value.split(",")) <= set(known), f"{flag} {value}"
        arguments[position] = instead
        if flag == "--weights" and value.endswith((".safetensors", ".pth")):
            _weights(*value.rpartition("=")[::2], arguments, folder)
    _images(folder)
    return ["tmbench", *(word for word in arguments if word != "--cuda-graphs")]


def trained_before(words: Sequence[str], folder: Path) -> list[list[str]]:
    """The commands for the checkpoints that a command takes and nothing in `folder` has made."""
    taken = [name for flag, name in pairwise(words) if flag == "--weights"]
    names = [name for name in taken if name in CHECKPOINTS and not (folder / name).exists()]
    return [
        shlex.split(
            f"tmbench train --recipe tokenreduction_30ep --model {CHECKPOINTS[name]} --method sit --budget 0.7 "
            f"--dataset /imagenet --out {name}"
        )
        for name in names
    ]


def _images(folder: Path) -> None:
    if (folder / "imagenet").exists():
        return
    for split in ("train", "val"):
        for name in IMAGENET:
            _noise(folder / "imagenet" / split / name, 2, (48, 40, 3))
    for number in range(10):
        _noise(folder / "fashion_mnist" / "train" / str(number), 1, (28, 28))
    for name in ("dog", "cat"):
        _noise(folder, 1, (300, 240, 3), name)


def _noise(folder: Path, count: int, shape: tuple[int, ...], name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name or number}.jpg")


def _weights(model: str, file: str, arguments: Sequence[str], folder: Path) -> None:
    if (folder / file).exists():
        return
    name = model or arguments[arguments.index("--models") + 1]
    held = timm.create_model(name, pretrained=True).state_dict()  # random, in these tests
    if file.endswith(".safetensors"):
        save_file(held, folder / file)
    else:
        torch.save(held, folder / file)
