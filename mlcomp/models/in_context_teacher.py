"""A small decoder that learns in context: it reads the label of a symbol from the sequence before it.

Three blocks, 48 wide, 83 856 parameters, for the tokens of :mod:`mlcomp.data.labelled_symbols`: sequences of labelled
symbols, and texts of the chain beside them.   Syllabus: 5.07
"""

from mlcomp.context import isolated
from mlcomp.data.labelled_symbols import VOCABULARY
from mlcomp.models.pretrained import build
from mlcomp.models.token_decoder import TokenDecoder

WIDTH, LAYERS = 48, 3


@isolated
def in_context_teacher(*, pretrained: bool = True, seed: int = 0) -> TokenDecoder:
    """Return the network in eval mode: (n, length) tokens → (n, length, 12) logits of the next token.

    Args:
        pretrained: load the committed weights (float16 in the file, float32 in the model), which
            ``experiments/train_in_context_teacher.py`` made; else initialize from ``seed``.
        seed: of the initialization; the global random state is left alone.
    """
    return build(
        lambda: TokenDecoder(VOCABULARY, WIDTH, LAYERS), "in_context_teacher", pretrained=pretrained, seed=seed
    )
