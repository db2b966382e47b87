"""Loaders of real data, and synthetic layers."""

from mlcomp.data.checkable_instructions import checkable_instructions
from mlcomp.data.committed_table import committed_results, committed_table
from mlcomp.data.digits import digits
from mlcomp.data.group_products import group_products
from mlcomp.data.labelled_symbols import labelled_symbols
from mlcomp.data.mnist5k import mnist5k, mnist_calibration
from mlcomp.data.number_words import NumberWords, number_words
from mlcomp.data.python_reference import python_reference, python_sentences
from mlcomp.data.reference_bytes import reference_bytes
from mlcomp.data.shift import random_shift
from mlcomp.data.synthetic import make_layer
from mlcomp.data.tokens import token_batches

__all__ = [
    "NumberWords",
    "checkable_instructions",
    "committed_results",
    "committed_table",
    "digits",
    "group_products",
    "labelled_symbols",
    "make_layer",
    "mnist5k",
    "mnist_calibration",
    "number_words",
    "python_reference",
    "python_sentences",
    "random_shift",
    "reference_bytes",
    "token_batches",
]
