import itertools

import pytest
import torch
from torch import nn

from mlcomp.train import random_batches, train
from mlcomp.train.loop import _factor


def problem(n=60):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def noise(batch, generator):
    return batch + 0.1 * torch.randn(batch.shape, generator=generator)


OPTIONS = {"epochs": 6, "lr": 1e-2, "batch_size": 16, "augment": noise, "progress": False}


def states_equal(a, b):
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_learns_and_reports_the_loss():
    x, y = problem(200)
    model = network()
    history = train(model, x, y, epochs=30, lr=1e-2, batch_size=16, progress=False)
    assert len(history.loss) == 30 and history.loss[-1] < 0.5 * history.loss[0]
    model.eval()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_one_step_is_adamws():
    """One batch, one epoch: the first AdamW step moves each parameter by −lr·g/(|g| + eps), decay apart."""
    x, y = problem(10)
    lr = 0.1
    model, start = nn.Linear(8, 3), nn.Linear(8, 3)
    start.load_state_dict(model.state_dict())
    nn.functional.cross_entropy(start(x), y).backward()
    history = train(model, x, y, epochs=1, lr=lr, batch_size=10, weight_decay=0.5, progress=False)
    for new, old in zip(model.parameters(), start.parameters(), strict=True):
        expected = old * (1 - lr * 0.5) - lr * old.grad / (old.grad.abs() + 1e-8)
        torch.testing.assert_close(new, expected, atol=1e-6, rtol=1e-5)  # float32 rounding, order of samples
    assert history.loss[0] == pytest.approx(nn.functional.cross_entropy(start(x), y).item(), rel=1e-5)


def test_learning_rate_rises_for_a_tenth_then_falls_as_a_cosine():
    shares = [_factor(101)(step) for step in range(101)]
    assert shares[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert shares[9] == 1 == max(shares) and 0 < shares[100] < 1e-3
    assert shares[55] == pytest.approx(0.5)  # half way down: 46 of 92 steps after the peak
    assert _factor(1)(0) == 1


def test_same_seed_same_weights_another_seed_others():
    x, y = problem()
    models = [network() for _ in range(3)]
    losses = [train(m, x, y, seed=s, **OPTIONS).loss for m, s in zip(models, (0, 0, 1), strict=True)]
    assert losses[0] == losses[1] != losses[2]
    assert states_equal(models[0], models[1]) and not states_equal(models[0], models[2])


def test_each_epoch_sees_every_sample_once_in_another_order():
    x, y = torch.arange(40.0)[:, None], torch.zeros(40, dtype=torch.int64)
    seen = []

    def record(batch, generator):
        seen.extend(batch[:, 0].int().tolist())
        return batch

    train(nn.Linear(1, 2), x, y, **OPTIONS | {"augment": record, "epochs": 3})
    epochs = [seen[k : k + 40] for k in (0, 40, 80)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(40))}) == 4


@pytest.mark.parametrize(("samples", "size"), [(10, 3), (10, 5), (10, 10), (4, 99), (1, 1)])
def test_random_batches_are_the_whole_batches_of_fresh_permutations(samples, size):
    """Against a queue that is filled anew when it holds less than a batch; the global generator is not touched."""
    state = torch.random.get_rng_state()
    found = [b.tolist() for b in itertools.islice(random_batches(samples, size, seed=3), 20)]
    assert torch.equal(torch.random.get_rng_state(), state)
    generator = torch.Generator().manual_seed(3)
    size, queue, want = min(size, samples), [], []
    for _ in range(20):
        if len(queue) < size:
            queue = torch.randperm(samples, generator=generator).tolist()
        want.append([queue.pop(0) for _ in range(size)])
    assert found == want
    epoch = samples // size
    for i in range(0, 20 - epoch + 1, epoch):  # nobody twice in an epoch
        drawn = list(itertools.chain(*found[i : i + epoch]))
        assert len(set(drawn)) == len(drawn) == epoch * size


@pytest.mark.parametrize("sizes", [(0, 1), (4, 0), (4, 1.5), (4, True)])
def test_random_batches_of_no_size(as_user, sizes):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        next(random_batches(*sizes, seed=0))


def test_global_random_state_and_mode_are_kept():
    x, y = problem()
    model = network().eval()
    before = torch.get_rng_state()
    train(model, x, y, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


def stopping(batches):
    """Return noise() that stops once, as Ctrl-C would, instead of giving the batch after so many."""
    given = 0

    def augment(batch, generator):
        nonlocal given
        given += 1
        if given == batches + 1:
            raise KeyboardInterrupt
        return noise(batch, generator)

    return augment


@pytest.mark.parametrize("killed_after", [1, 9, 21])  # batches: in the third, sixth and … of 4 batches an epoch
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, killed_after):
    x, y = problem()
    whole = network()
    expected = train(whole, x, y, **OPTIONS)
    options = OPTIONS | {"augment": stopping(killed_after), "checkpoint": tmp_path / "c.pt"}
    with pytest.raises(KeyboardInterrupt):
        train(network(), x, y, **options)
    assert (tmp_path / "c.pt").exists() == (killed_after >= 4)
    resumed = network()
    assert train(resumed, x, y, **options) == expected
    assert states_equal(resumed, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_after_step_is_called_after_each_step_and_may_change_the_model():
    x, y = problem(40)
    model, steps, moved = network(), [], []

    def clear(step):
        steps.append(step)
        moved.append(bool(model[0].weight.any()))  # the optimizer has just moved it
        with torch.no_grad():
            model[0].weight.zero_()

    train(model, x, y, after_step=clear, **OPTIONS)
    assert steps == list(range(1, 3 * OPTIONS["epochs"] + 1)) and all(moved)
    assert not model[0].weight.any() and model[4].weight.any()


def test_before_step_sees_the_gradients_and_may_take_the_step_itself():
    """SGD written out in the callback, which then says that the weights have been moved, equals the optimizer's."""
    x, y = problem(40)
    options = OPTIONS | {"optimizer": torch.optim.SGD}
    theirs, ours, seen = network(), network(), []

    def by_hand(step, optimizer):
        seen.append(step)
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.add_(p.grad, alpha=-group["lr"])
        return False

    assert train(theirs, x, y, **options) == train(ours, x, y, before_step=by_hand, **options)
    assert states_equal(theirs, ours) and seen == list(range(1, 3 * OPTIONS["epochs"] + 1))
    penalized = network()

    def decay(step, optimizer):  # L2 by the gradient is what SGD calls weight_decay
        for p in penalized.parameters():
            p.grad.add_(p.detach(), alpha=0.1)

    train(penalized, x, y, before_step=decay, **options)
    decayed = network()
    train(decayed, x, y, **options | {"weight_decay": 0.1})
    for a, b in zip(penalized.parameters(), decayed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not states_equal(penalized, theirs)


def test_after_step_counts_on_after_a_resumption(tmp_path):
    x, y = problem()
    steps = ()

    def dies(step):
        nonlocal steps
        steps += (step,)
        if len(steps) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), x, y, checkpoint=tmp_path / "c.pt", after_step=dies, **OPTIONS)
    train(network(), x, y, checkpoint=tmp_path / "c.pt", after_step=dies, **OPTIONS)
    assert [*steps] == [*range(1, 10), *range(9, 25)]  # two epochs of four batches were finished


def test_finished_run_is_returned_from_its_checkpoint(tmp_path):
    x, y = problem()
    first, model = network(), network()
    history = train(first, x, y, checkpoint=tmp_path / "c.pt", **OPTIONS)
    assert train(model, x, y, checkpoint=tmp_path / "c.pt", **OPTIONS) == history
    assert states_equal(first, model)


STRENGTH = 0.1


def blur(batch, generator):
    return batch * (1 - STRENGTH)


def frozen(model):
    model[0].weight.requires_grad_(False)
    return model


def test_checkpoint_of_another_run_is_refused_and_says_what_differs(tmp_path, monkeypatch):
    x, y = problem()
    options = OPTIONS | {"augment": blur, "checkpoint": tmp_path / "c.pt"}
    first = train(network(), x, y, **options)
    sharper = network()
    sharper[3].p = 0.3
    for what, model, inputs, labels, change in [
        ("lr", network(), x, y, {"lr": 1e-3}),
        ("model", network(seed=7), x, y, {}),
        ("model", sharper, x, y, {}),
        ("trained", frozen(network()), x, y, {}),
        ("inputs", network(), x.flip(0), y, {}),
        ("labels", network(), x, (y + 1) % 3, {}),
        ("loss", network(), x, y, {"loss": lambda logits, y: 2 * nn.functional.cross_entropy(logits, y)}),
        ("after_step", network(), x, y, {"after_step": lambda step: None}),
        ("before_step", network(), x, y, {"before_step": lambda step, optimizer: None}),
        ("optimizer", network(), x, y, {"optimizer": torch.optim.SGD}),
        ("augment", network(), x, y, {"augment": None}),
    ]:
        before = [value.clone() for value in model.state_dict().values()]
        with pytest.raises(ValueError, match=f"c.pt belongs to another run, with another {what}: .*move the file"):
            train(model, inputs, labels, **options | change)
        assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    monkeypatch.setitem(globals(), "STRENGTH", 0.2)
    with pytest.raises(ValueError, match="another augment"):
        train(network(), x, y, **options)
    monkeypatch.undo()
    assert train(network(), x, y, **options) == first


@pytest.mark.parametrize("damage", ["empty", "half", "flip", "text", "older"])
def test_damaged_checkpoint_is_named_with_the_way_out(tmp_path, damage):
    x, y = problem()
    path = tmp_path / "c.pt"
    train(network(), x, y, checkpoint=path, **OPTIONS)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        place = data.index(network_bytes(path))
        data[place + 2] ^= 1
    if damage == "older":  # without a hash
        saved = torch.load(path)
        torch.save({key: value for key, value in saved.items() if key != "sha256"}, path)
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "flip": data, "text": b"no"}[damage])
    with pytest.raises(ValueError, match=r"checkpoint .*c\.pt is damaged: delete it"):
        train(network(), x, y, checkpoint=path, **OPTIONS)


def network_bytes(path):
    """Return the bytes of a weight in the checkpoint."""
    return torch.load(path)["model"]["0.weight"].numpy().tobytes()


def test_frozen_parameters_stay():
    x, y = problem()
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, x, y, **OPTIONS)
    assert torch.equal(model[0].weight, before)


def test_a_last_batch_of_one_sample_is_left_out():
    """BatchNorm cannot train on one sample; 33 samples in batches of 16 leave one."""
    x, y = problem(33)
    assert len(train(network(), x, y, **OPTIONS).loss) == OPTIONS["epochs"]


def test_loss_that_diverges_is_an_error():
    x, y = problem()
    with pytest.raises(ValueError, match="the loss in epoch 0"):
        train(network(), x, y, **OPTIONS | {"loss": lambda logits, labels: logits.sum() * float("nan")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_bad_options(as_user, change, message):
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        train(network(), x, y, **OPTIONS | change)


def test_bad_data(as_user):
    x, y = problem()
    with pytest.raises(ValueError, match="same length"):
        train(network(), x, y[:-1], **OPTIONS)
    with pytest.raises(ValueError, match="NaN"):
        train(network(), x * float("nan"), y, **OPTIONS)
    model = network()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        train(model, x, y, **OPTIONS)


def test_the_loss_of_an_epoch_is_a_mean_over_samples_not_over_batches():
    """Eight samples in batches of five and three, with a rate that changes nothing."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 4, generator=g), torch.randn(8, 1, generator=g)
    model = nn.Linear(4, 1)
    whole = float(nn.functional.mse_loss(model(x), y).detach())
    history = train(
        model, x, y, epochs=1, lr=1e-12, batch_size=5, loss=nn.functional.mse_loss, progress=False, seed=3
    )
    assert history.loss[0] == pytest.approx(whole, rel=1e-5)
