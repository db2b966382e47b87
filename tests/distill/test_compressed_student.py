import pytest
import torch
from torch import nn

from mlcomp.distill import compressed_student, train_student
from mlcomp.layerwise import keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.metrics import kl_divergence
from mlcomp.prune import global_magnitude
from mlcomp.quant import finish_qat, prepare_qat
from mlcomp.train import train
from tests.distill.nets import OPTIONS, data, equal, seeded


def dense():
    net = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    train(net, *data(200), epochs=10, lr=1e-2, progress=False)
    return net.eval()


def sparse(net, sparsity=0.7):
    return with_weights(net, global_magnitude(layer_weights(net), sparsity=sparsity))


def zeros(net):
    return {name: weight == 0 for name, weight in layer_weights(net).items()}


def test_zeros_are_held_and_the_teacher_is_followed():
    teacher, (x, _) = dense(), data(200)
    start = sparse(teacher)
    got = compressed_student(start, teacher, x, temperature=1.0, epochs=20, lr=1e-2, weight_decay=0.1, progress=False)
    assert all(bool((w[zeros(start)[n]] == 0).all()) for n, w in layer_weights(got.model).items())
    assert network_sparsity(got.model) == network_sparsity(start)
    far, near = (kl_divergence(teacher(x).detach(), net(x).detach()) for net in (start, got.model))
    assert near < 0.5 * far
    assert not got.model.training and len(got.history.loss) == 20


def test_it_is_training_by_the_teacher_with_zeros_set_back():
    """Step by step the same as masking by hand, in the middle of a training that another hook watches."""
    teacher, (x, y) = dense(), data()
    start, seen = sparse(teacher), []
    options = {"temperature": 2.0, "alpha": 0.5, "hints": {"1": "1"}, **OPTIONS}
    got = compressed_student(start, teacher, x, y, after_step=seen.append, **options)
    assert seen == list(range(1, 10))
    alone = compressed_student(start, teacher, x, y, **options)
    assert equal(got.model, alone.model)
    # With alpha 0 and no hints it is the labels' training with zeros held, bit for bit.
    net = with_weights(start, layer_weights(start))
    train(net, x, y, after_step=keep_zeros(net), **OPTIONS)
    assert equal(compressed_student(start, teacher, x, y, temperature=1.0, alpha=0.0, **OPTIONS).model, net)
    free = train_student(start, teacher, x, y, temperature=1.0, alpha=0.0, **OPTIONS).model
    assert network_sparsity(free) < 0.1


def test_a_quantized_student_follows_and_stays_on_its_grid():
    teacher, (x, _) = dense(), data(200)
    start = prepare_qat(teacher, [x], weight_bits=2, input_bits=None)
    got = compressed_student(start, teacher, x, temperature=1.0, epochs=20, lr=1e-2, progress=False).model
    far, near = (kl_divergence(teacher(x).detach(), net(x).detach()) for net in (start, got))
    assert near < 0.5 * far
    done = finish_qat(got).model
    torch.testing.assert_close(done(x), got(x).detach(), atol=1e-5, rtol=1e-5)
    assert all(len(row.unique()) <= 4 for row in done[0].weight)


def test_a_sparse_and_quantized_student_stays_both():
    teacher, (x, _) = dense(), data()
    start = prepare_qat(sparse(teacher), [x], weight_bits=3, input_bits=None)
    got = compressed_student(start, teacher, x, temperature=1.0, **OPTIONS).model
    masks = list(zeros(sparse(teacher)).values())
    for mask, layer in zip(masks, (finish_qat(got).model[i] for i in (0, 2)), strict=True):
        assert bool((layer.weight[mask] == 0).all()) and bool((layer.weight != 0).any())


def test_the_layers_whose_zeros_are_held_can_be_named():
    teacher, (x, _) = dense(), data()
    start = sparse(teacher)
    got = compressed_student(start, teacher, x, temperature=1.0, layers=["2"], **OPTIONS).model
    weights = layer_weights(got)
    assert bool((weights["2"][zeros(start)["2"]] == 0).all())
    assert float((weights["0"] == 0).double().mean()) < float(zeros(start)["0"].double().mean()) - 0.2


def test_a_student_with_nothing_to_hold_is_refused():
    teacher, (x, y) = dense(), data()
    with pytest.raises(ValueError, match="no zeros and no layers that quantize"):
        compressed_student(dense(), teacher, x, temperature=1.0, **OPTIONS)
    with pytest.raises(ValueError, match="without labels"):
        compressed_student(sparse(teacher), teacher, x, temperature=1.0, alpha=0.5, **OPTIONS)
    with pytest.raises(ValueError, match="no layer"):
        compressed_student(sparse(teacher), teacher, x, y, temperature=1.0, layers=["9"], **OPTIONS)
