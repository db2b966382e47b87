r"""PV-tuning's rival: codes that follow latent weights, which the straight-through estimator moves.

Notation: $\hat W = s \cdot D(C, b)$ the decoded weight of a layer, W its latent one, φ the loss. A step moves C, s
and the rest by their own gradients, W by $\partial\varphi / \partial\hat W$; then every group of W, over the new
scale of its row, gets the codes b of the nearest sum of new entries.
Source: the "straight-through estimation" of Malinovskii et al. 2024, arXiv:2405.14852, section 3; Bengio, Léonard,
Courville 2013, arXiv:1308.3432, section 3.   Syllabus: 1.15
"""

import torch
from torch import Tensor, nn

from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.quant.additive.additive_student import AdditiveStudent
from mlcomp.quant.additive.continuous_tuning import AdamSteps
from mlcomp.quant.additive.nearest_codes import nearest_codes


class StraightThroughSteps(AdamSteps):
    """Steps of Adam on the continuous parameters and on latent weights, which begin as the block's own."""

    def __init__(self, student: AdditiveStudent, *, steps: int, learning_rate: float, beam: int) -> None:
        dense = [student.block.get_parameter(name).detach() for name in student.names.values()]
        self.latent = [nn.Parameter(weight.flatten(1).float().clone()) for weight in dense]
        self.beam = beam
        super().__init__(student, steps=steps, learning_rate=learning_rate, latent=self.latent)

    def step(self, chosen: Tensor) -> None:
        """Make one step on the ``chosen`` samples, then give every group its codes."""
        super().step(chosen)
        self.follow()

    def matrices(self) -> list[Tensor]:
        """Return the decoded weights; adding a zero made of the latent ones brings the gradient to them, too."""
        pairs = zip(self.student.decoded(), self.latent, strict=True)
        return [decoded + (latent - latent.detach()) for decoded, latent in pairs]

    @torch.no_grad()
    def follow(self) -> None:
        """Give every group the codes nearest to its latent weights."""
        for weight, latent in zip(self.student.weights.values(), self.latent, strict=True):
            out, groups, books = weight.codes.shape
            scale = weight.scale.detach().repeat_interleave(groups)  # a row's groups stand one after the other
            pieces = AdditiveCodes(weight.codes.reshape(-1, 1, books), weight.codebooks.detach(), scale)
            codes = nearest_codes(latent.detach().reshape(out * groups, -1), pieces, beam=self.beam)
            weight.codes.copy_(codes.reshape(out, groups, books))
