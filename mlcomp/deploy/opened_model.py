"""What is known of a model that was opened by name: its kind, and what inputs it takes."""

from dataclasses import dataclass
from typing import Any

from torch import nn

LANGUAGE_MODEL, ENCODER = "language model", "text encoder"
TEXT_CLASSIFIER, IMAGE_CLASSIFIER, NETWORK = "text classifier", "image classifier", "network"


@dataclass(frozen=True)
class ImageInput:
    """What images a network takes: ``channels`` of ``size``² pixels in [0, 1], less ``mean``, divided by ``std``.

    A picture is first scaled so that its shorter side has ``resize`` pixels.
    """

    channels: int
    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = ImageInput(3, 224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = ImageInput(1, 28, 28, (0.0,), (1.0,))


@dataclass(frozen=True)
class OpenedModel:
    """A model, and what is needed to give it inputs.

    Attributes:
        name: by which it was opened.
        model: in eval mode.
        tokenizer: of a model of text, else None.
        kind: "language model", "text encoder", "text classifier", "image classifier", or "network" where its inputs
            are not known.
        images: what images it takes, None for other inputs.
        longest: tokens that it can read at the most; None: no end is known.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    kind: str
    images: ImageInput | None = None
    longest: int | None = None

    @property
    def source(self) -> str | None:
        """By what name a saved folder builds the network, for :func:`mlcomp.layerwise.save`."""
        return self.name if self.name.startswith(("torchvision:", "timm:")) else None


class ByteTokenizer:
    """Text to bytes, called as a tokenizer is."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the bytes of ``text`` as whole numbers."""
        return {"input_ids": list(text.encode("utf-8"))}
