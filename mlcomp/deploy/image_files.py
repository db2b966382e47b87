"""Images for calibration: a folder of pictures, or a file of tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mlcomp.deploy.opened_model import ImageInput

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Pictures(Sequence):
    """The pictures of a folder, in the order of their names; each is read when it is asked for."""

    def __init__(self, paths: Sequence[Path], images: ImageInput):
        self.paths, self.images = paths, images

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Pictures(self.paths[index], self.images)
        return read_picture(self.paths[index], self.images)


def load_images(path: Path, images: ImageInput) -> Any:
    """Return what can be indexed by a sample: a folder's pictures, or a tensor from a file, samples first.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no pictures in the folder; a file of another kind, or of inputs of another shape.
    """
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
        if not paths:
            raise ValueError(f"{path} holds no pictures ({', '.join(ENDINGS)})")
        return Pictures(paths, images)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}: data is a path, or an iterable of batches")
    tensor = read_tensor(path)
    wanted = (images.channels, images.size, images.size)
    if tensor.ndim != 4 or tensor.shape[1] != wanted[0]:
        raise ValueError(f"{path} must hold (samples, {', '.join(map(str, wanted))}), got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(
            f"{path} holds {tensor.dtype}: it must hold inputs as the model takes them, pixels in [0, 1] less "
            f"{images.mean}, divided by {images.std}; a folder of pictures is prepared so by itself"
        )
    return tensor.float()


def read_tensor(path: Path) -> Tensor:
    """Return the array of an .npy file, or the one tensor of a .safetensors file."""
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if len(tensors) != 1:
                raise ValueError(f"it holds {len(tensors)} tensors, and must hold one")
            return next(iter(tensors.values()))
    except (ValueError, TypeError, SafetensorError) as problem:
        raise ValueError(f"{path} cannot be read: {problem}") from problem
    raise ValueError(f"{path} must be an .npy or .safetensors file, or a folder of pictures")


def read_picture(path: Path, images: ImageInput) -> Tensor:
    """Return a picture as the network takes it: scaled, the middle cut out, normalized.

    Raises:
        ValueError: the file holds no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            picture = file.convert("L" if images.channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as problem:
        raise ValueError(f"{path} holds no picture that can be read: {problem}") from problem
    scale = images.resize / min(picture.size)
    wide, high = (max(images.size, round(side * scale)) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - images.size) // 2, (high - images.size) // 2
    pixels = np.asarray(picture.crop((left, top, left + images.size, top + images.size)), dtype=np.float32) / 255
    tensor = torch.from_numpy(pixels).reshape(images.size, images.size, images.channels).permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    return (tensor - mean) / std
