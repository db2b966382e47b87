"""Labels of channels, joined while a model runs: what an operation ties together gets one label.

Each position along an axis of a weight (an output row, an input column, an entry of a norm) starts with a label. The
model runs once, each operation hands the labels of its operands on to its result, and joins those that only go
together. Label 0 stands for what cannot be removed.

Notation: the labels of a tensor are a mapping from a dimension to one label for each position along it; ``WHOLE`` in
the place of a dimension means that all its entries belong to one channel (of a single head, say).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Labels = dict[int, Tensor]

WHOLE = -1


class LabelTrace:
    """Labels in a union–find structure, and the tensors that carry them.

    Attributes:
        reasons: why labels cannot be removed, by :meth:`anchor`.
        read: the ids of the tensors that an operation has read.
        averages: names of modules that average over channels, with the labels there.
        equal: labels of the inputs or outputs of a grouped layer, with its number of groups: each must lose as many.
        channels: the labels of a convolution's inputs and outputs, by the id of its weight.
        module: name of the module that runs now.
    """

    def __init__(self) -> None:
        self.parent = [0]
        self.reasons: dict[int, str] = {}
        self.averages: list[tuple[str, Tensor]] = []
        self.equal: list[tuple[Tensor, int]] = []
        self.channels: dict[int, tuple[Tensor, Tensor]] = {}
        self.module = ""
        self.read: set[int] = set()
        self._labels: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def new(self, count: int) -> Tensor:
        """Return ``count`` new labels."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def anchor(self, label: int) -> int:
        """Return the smallest of the labels that were joined with this one."""
        parent = self.parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def root(self, label: int) -> int:
        """Return the label that stands for all those joined with this one; 0 if they cannot be removed."""
        anchor = self.anchor(label)
        return 0 if anchor in self.reasons else anchor

    def roots(self, labels: Tensor) -> Tensor:
        """Return :meth:`root` of each."""
        return torch.tensor([self.root(label) for label in labels.flatten().tolist()]).reshape(labels.shape)

    def join(self, a: Tensor, b: Tensor, reason: str = "") -> None:
        """Join the labels at the same places of two tensors; ``reason`` is kept where one of them is 0."""
        for left, right in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
            low, high = sorted((self.anchor(left), self.anchor(right)))
            if low == 0 and high:
                self.reasons.setdefault(high, reason)
            elif low != high:
                self.parent[high] = low
                if high in self.reasons:
                    self.reasons.setdefault(low, self.reasons.pop(high))

    def fix(self, labels: Tensor, reason: str) -> None:
        """Say that these channels cannot be removed, and why."""
        self.join(labels, torch.zeros_like(labels), reason)

    def get(self, tensor: object) -> Labels:
        """Return the labels of a tensor, each by its root."""
        found = self._labels.get(tensor, {}) if isinstance(tensor, Tensor) else {}
        return self._present({dim: self.roots(labels) for dim, labels in found.items()})

    def put(self, tensor: Tensor, labels: Labels) -> None:
        """Give a tensor labels in the place of those that it has."""
        labels = self._present({dim: self.roots(vector) for dim, vector in labels.items()})
        if labels or tensor in self._labels:
            self._labels[tensor] = labels

    @staticmethod
    def _present(labels: Labels) -> Labels:
        """Leave out what is all 0, and a label of the whole that stands along a dimension already."""
        kept = {dim: vector for dim, vector in labels.items() if vector.any()}
        whole = kept.get(WHOLE)
        if whole is not None and any((v == whole).any() for dim, v in kept.items() if dim != WHOLE):
            del kept[WHOLE]
        return kept

    def meet(self, places: Sequence[tuple[Labels, int]], size: int, reason: str) -> Tensor | None:
        """Join what lies at the same positions along one dimension of several tensors; return the labels there.

        Args:
            places: labels of each tensor that has ``size`` positions there, and the number of the dimension in it.
            reason: kept where one of the tensors has no channels there, so that its size cannot change.
        Returns:
            None if none of them has labels along that dimension.
        """
        if not any(dim in labels for labels, dim in places):
            return None
        rows = [
            labels.get(dim, labels.get(WHOLE, torch.zeros(1, dtype=torch.int64))).expand(size)
            for labels, dim in places
        ]
        for row in rows[1:]:
            self.join(rows[0], row, reason)
        return self.roots(rows[0])

    def meet_whole(self, every: Iterable[Labels]) -> Labels:
        """Join the labels of tensors that belong to one channel each; return them as labels."""
        found = [labels[WHOLE] for labels in every if WHOLE in labels]
        for other in found[1:]:
            self.join(found[0], other)
        return {WHOLE: found[0]} if found else {}
