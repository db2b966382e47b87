"""Inputs of a model for calibration, and others to measure on: runs of a text, paragraphs, images, tensors.

What is measured on does not depend on the seed, so two compressed models are compared on the same inputs.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.data.mnist5k import mnist5k
from mlcomp.data.python_reference import python_reference
from mlcomp.deploy.image_files import load_images
from mlcomp.deploy.opened_model import DIGITS, ENCODER, IMAGE_CLASSIFIER, LANGUAGE_MODEL, TEXT_CLASSIFIER, OpenedModel

Data = str | os.PathLike | Iterable | None
NOISE = "noise"
# Kind → how many samples are drawn, how many are held out, and how many go through the model at a time.
COUNTS = {LANGUAGE_MODEL: (16, 8, 4), ENCODER: (128, 64, 16), TEXT_CLASSIFIER: (128, 64, 16)}
COUNTS |= {IMAGE_CLASSIFIER: (128, 128, 32)}
SHORTEST = 80  # characters of a paragraph


@dataclass(frozen=True)
class Inputs:
    """Batches, and what they are.

    Attributes:
        calibration: batches that the method sees.
        held_out: batches that it doesn't; None if there are too few inputs for both.
        valid: the key of the mask of positions that count, for padded batches.
        told: in words, what was drawn from where.
    """

    calibration: Sequence[Any]
    held_out: Sequence[Any] | None
    valid: str | None
    told: str

    @property
    def measured(self) -> Sequence[Any]:
        """The batches that a model is measured on: held-out ones where there are some."""
        return self.calibration if self.held_out is None else self.held_out


def draw_inputs(
    opened: OpenedModel, data: Data, held_out: Data, *, samples: int | None, tokens: int | None, seed: int
) -> Inputs:
    """Return calibration inputs drawn by ``seed``, and the held-out ones, which are the first of theirs.

    Args:
        opened: the model says what it takes.
        data: None: the reference of Python (texts) or digits (the course's networks for them). A path: a text file;
            a folder of images; an .npy or .safetensors file with inputs as the model takes them, samples first.
            "noise": normal random inputs, where only the shape matters. Or an iterable of batches.
        held_out: the same. None: the other part of the reference, or the end of ``data``.
        samples: how many sequences, paragraphs or images the method sees; None: 16, 128, 128.
        tokens: of a sequence, or a paragraph at the most; None: 256, or what the model reads at the most.
        seed: of the draw.
    Raises:
        ValueError: data that the model does not take, or too little of it.
        FileNotFoundError: no such file.
    """
    if opened.kind in COUNTS and not (_is_batches(data) or _is_batches(held_out)):
        count, measured, batch_size = COUNTS[opened.kind]
    elif _is_batches(data) and (held_out is None or _is_batches(held_out)):
        return _given(data, held_out)
    else:
        raise ValueError("for this model, pass batches of its own inputs as data (and as held_out, if you have some)")
    count = count if samples is None else samples
    check_whole("samples", count, 1)
    length = min(256, opened.longest or 256) if tokens is None else tokens
    check_whole("tokens", length, 2, opened.longest)
    pool, name = _pool(opened, data, "calibration", length)
    other, other_name = (None, "its end") if held_out is None else _pool(opened, held_out, "held_out", length)
    if held_out is None and data is None:
        other, other_name = _pool(opened, None, "held_out", length)
    if other is None:
        measured = min(measured, len(pool) // 4)
        pool, other = pool[: len(pool) - measured], pool[len(pool) - measured :]
    if len(pool) < count:
        raise ValueError(
            f"{name} holds {len(pool)} samples beside those held out, fewer than the {count} wanted: take fewer "
            "samples (--samples), fewer tokens in each (--tokens), or more data"
        )
    chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    calibration = _batches(opened, [pool[i] for i in chosen], length, batch_size)
    rest = _batches(opened, [other[i] for i in range(min(measured, len(other)))], length, batch_size)
    valid = "attention_mask" if opened.kind in (ENCODER, TEXT_CLASSIFIER) else None
    what = _unit(opened, length)
    told = f"{count} {what} of {name}, drawn by seed {seed}; held out: {min(measured, len(other))} of {other_name}"
    return Inputs(calibration, rest or None, valid, told)


def _is_batches(data: Data) -> bool:
    return data is not None and not isinstance(data, str | os.PathLike)


def _given(data: Any, held_out: Any) -> Inputs:
    calibration, rest = list(data), None if held_out is None else list(held_out)
    if isinstance(data, Tensor):
        raise TypeError("data must be an iterable of batches, got one tensor: wrap it as [batch], or batch.split(n)")
    told = f"{len(calibration)} batches; held out: {'none' if rest is None else f'{len(rest)} batches'}"
    return Inputs(calibration, rest, None, told)


def _unit(opened: OpenedModel, length: int) -> str:
    if opened.images is not None:
        return "images"
    return f"runs of {length} tokens" if opened.kind == LANGUAGE_MODEL else f"paragraphs of at most {length} tokens"


def _pool(opened: OpenedModel, data: Any, split: str, length: int) -> tuple[Any, str]:
    """Return all samples that there are to draw from, and the name of the source."""
    if opened.images is not None:
        return _image_pool(opened, data, split)
    if data == NOISE:
        raise ValueError(f"{NOISE!r} is for models of images; a model of text needs a text")
    if data is None:
        text, name = python_reference(split), "the Python reference"
    else:
        path = Path(data)
        if not path.is_file():
            raise FileNotFoundError(f"there is no text file {path}: data is a path, or an iterable of batches")
        try:
            text, name = path.read_text(encoding="utf-8"), path.name
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path} is no text in UTF-8: {problem}") from problem
    if opened.kind != LANGUAGE_MODEL:
        paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
        return [part for part in paragraphs if len(part) >= SHORTEST], name
    # verbose=False: without it the tokenizer warns that the text is longer than the model's window, which is cut.
    ids = opened.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    runs = len(ids) // length
    return torch.tensor(ids[: runs * length], dtype=torch.int64).reshape(runs, length), name


def _image_pool(opened: OpenedModel, data: Any, split: str) -> tuple[Any, str]:
    images = opened.images
    assert images is not None
    if data is None:
        if images != DIGITS:
            raise ValueError(
                "this model needs images: data (--data) is a folder of them, an .npy or .safetensors file of inputs "
                f'as the model takes them, or "{NOISE}" where only the network\'s shape matters'
            )
        return mnist5k("train" if split == "calibration" else "held_out")[0], "MNIST digits"
    if data == NOISE:
        generator = torch.Generator().manual_seed(0 if split == "calibration" else 1)
        shape = (256, images.channels, images.size, images.size)
        return torch.randn(shape, generator=generator), "random noise, which says little about real inputs"
    return load_images(Path(data), images), Path(data).name


def _batches(opened: OpenedModel, samples: list[Any], length: int, size: int) -> list[Any]:
    parts = [samples[i : i + size] for i in range(0, len(samples), size)]
    if opened.images is not None or opened.kind == LANGUAGE_MODEL:
        return [torch.stack(part) for part in parts]
    options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    return [dict(opened.tokenizer(part, **options)) for part in parts]
