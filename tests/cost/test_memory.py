import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.cost import kv_cache_nbytes, overparameterized_width, training_memory, weights_nbytes
from mlcomp.formats import packed_nbytes


def test_the_lectures_numbers():
    # Its slide: 260, 130, 65 and, for one bit, "8.1GB".
    assert [weights_nbytes(65_000_000_000, bits) / 1e9 for bits in (32, 16, 8, 1)] == [260, 130, 65, 8.125]


@given(st.integers(0, 10**12), st.integers(1, 64))
def test_whole_bits_are_those_of_packed_codes(parameters, bits):
    assert weights_nbytes(parameters, bits) == packed_nbytes(parameters, bits)


def test_bits_that_are_not_whole():
    assert weights_nbytes(1000, 4.5) == 563  # 562.5 bytes
    assert (
        weights_nbytes(16_777_216, 4.126953125) == 16_777_216 // 2 + 16_777_216 * 65 // 4096
    )  # 0.126953125 = 65/512
    # A third of a bit more for 3·10¹⁵ weights: floating point would be off here.
    assert weights_nbytes(3 * 10**15 + 1, 8) == 3 * 10**15 + 1


def test_the_cache_of_a_real_architecture():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**size, intermediate_size=32, vocab_size=50)
    tokens = torch.zeros(2, 11, dtype=torch.long)
    with torch.no_grad():
        cache = transformers.LlamaForCausalLM(config)(tokens, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_nbytes(3, 2, 8, 11, sequences=2, bits=32) == held


def test_training_holds_what_adam_holds():
    net = torch.nn.Linear(30, 20)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(4, 30)).sum().backward()
    optimizer.step()
    moments = sum(s[key].nbytes for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    memory = training_memory(620)
    assert memory.weights == sum(p.nbytes for p in net.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in net.parameters())
    assert (memory.moments, memory.total) == (moments, 16 * 620)


def test_training_a_part():
    # 1000 weights in 4 bits stay; 100 in 16 bits are trained: 500 + 200, 200, 400.
    memory = training_memory(1100, weight_bits=4, trained=100, trained_bits=16)
    assert (memory.weights, memory.gradients, memory.moments, memory.total) == (700, 200, 400, 1300)


@given(st.integers(1, 10**15))
def test_the_width_is_the_smallest(samples):
    k = overparameterized_width(samples)
    assert k * k >= 2 * samples > (k - 1) ** 2
    assert k * (k + 1) // 2 > samples


def test_the_width_for_mnist():
    assert overparameterized_width(60_000) == 347 == math.ceil(math.sqrt(120_000))
    assert [overparameterized_width(n) for n in (1, 2, 3, 8, 9)] == [2, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "call",
    [
        lambda: weights_nbytes(-1, 8),
        lambda: weights_nbytes(2.5, 8),
        lambda: weights_nbytes(65e9, 8),
        lambda: weights_nbytes(8, 0),
        lambda: weights_nbytes(8, math.nan),
        lambda: kv_cache_nbytes(3, 2, 8, -1),
        lambda: kv_cache_nbytes(3, 2, 8, 1, sequences=1.5),
        lambda: kv_cache_nbytes(3, 2, 8, 1, bits=-1),
        lambda: training_memory(10, trained=11),
        lambda: training_memory(10, weight_bits=0),
        lambda: overparameterized_width(0),
        lambda: overparameterized_width(True),
    ],
)
def test_bad_numbers(call, as_user):
    with pytest.raises(ValueError, match="must be"):
        call()
