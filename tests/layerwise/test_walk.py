"""Block by block against the definition: the whole model is run for each stage. Both must give the same bits."""

import functools
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlcomp.layerwise import compress, hooked, staging
from mlcomp.layerwise.walk import Walk, walks

transformers = pytest.importorskip("transformers")


def rounded(weight, hessian):
    """Depends on every entry of W and H."""
    moved = weight - 0.1 * weight @ hessian.to(weight) / hessian.diagonal().mean().clamp(min=1e-30).to(weight)
    step = moved.abs().max() / 4
    return torch.round(moved / step) * step


run = functools.partial(compress, method=rounded, progress=False)
SIZES = {"vocab_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16}


class Parts:
    """What was found in the last run: the blocks of each chain that is walked."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.found = []

    def whole(self):
        """From here on, models are run as a whole."""

        @contextmanager
        def none(*args):
            yield list

        self.monkeypatch.setattr(staging, "walks", none)

    def watched(self):
        """From here on, note the chains."""

        @contextmanager
        def noting(model, *args):
            names = {id(module): name for name, module in model.named_modules()}

            def proven():
                found = found_by()
                self.found += [[names[id(block)] for block in walk.chain.blocks] for walk in found]
                return found

            with walks(model, *args) as found_by:
                yield proven

        self.monkeypatch.setattr(staging, "walks", noting)


@pytest.fixture
def parts(monkeypatch):
    return Parts(monkeypatch)


def check_same(parts, model, batches, **options):
    """Run both ways; return the chains that were walked."""
    parts.whole()
    truth, expected = run(model, batches, **options)
    parts.watched()
    result, report = run(model, batches, **options)
    a, b = truth.state_dict(), result.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    changed = [row for row in report.rows if row.status == "compressed" and row.error > 0]
    assert len(changed) > 2
    for one, two in zip(expected.rows, report.rows, strict=True):
        assert {**asdict(one), "seconds": 0} == {**asdict(two), "seconds": 0}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in result.modules())
    return parts.found


def tokens(seed=0, rows=2, length=12):
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, intermediate_size=24, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("cache", [False, True])  # of keys and values, which each block adds to if it is asked for
@pytest.mark.parametrize("sequential", [True, False])
def test_llama(parts, sequential, cache):
    batches = [{"input_ids": x, "use_cache": True} if cache else x for x in map(tokens, (0, 1, 2, 9))]
    found = check_same(parts, llama(), batches[:3], sequential=sequential, held_out=batches[3:])
    assert found == [["model.layers.0", "model.layers.1", "model.layers.2"]]


def test_logits_that_nobody_looks_at_are_not_made():
    model, lengths = llama(), set()
    with hooked([model.lm_head.register_forward_pre_hook(lambda m, args: lengths.add(args[0].shape[1]))]):
        run(model, [tokens()], layers=lambda name, module: name != "lm_head", inplace=True)
    assert lengths == {1}


def test_each_run_of_a_block_begins_with_the_cache_as_it_was(parts):
    """With a mask, attention reads all keys that its cache holds: those of an earlier run would be among them."""
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :4] = 0
    batches = [{"input_ids": tokens(i), "attention_mask": mask, "use_cache": True} for i in range(3)]
    found = check_same(parts, llama(), batches, valid="attention_mask")
    assert found == [["model.layers.0", "model.layers.1", "model.layers.2"]]


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
def test_gpt2_with_padding_and_keyword_arguments(parts, sequential):
    config = transformers.GPT2Config(vocab_size=40, n_layer=2, n_head=2, n_embd=16, bos_token_id=0, eos_token_id=0)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, 7:] = 0
    batches = [{"input_ids": tokens(i), "attention_mask": mask if i else mask.flip(0)} for i in range(2)]
    found = check_same(
        parts, transformers.GPT2LMHeadModel(config), batches, sequential=sequential, valid="attention_mask"
    )
    assert found == [["transformer.h.0", "transformer.h.1"]]


@pytest.mark.slow
def test_bert_and_one_batch(parts):
    model = transformers.BertModel(transformers.BertConfig(**SIZES, intermediate_size=24))
    found = check_same(parts, model, [tokens()])
    assert sum(len({name.split(".")[2] for name in chain if name.startswith("encoder.")}) for chain in found) == 3


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
def test_an_encoder_and_a_decoder(parts, sequential):
    config = transformers.T5Config(vocab_size=40, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8)
    batches = [{"input_ids": tokens(i), "decoder_input_ids": tokens(i + 5, length=7)} for i in range(2)]
    found = check_same(parts, transformers.T5ForConditionalGeneration(config), batches, sequential=sequential)
    names = [name for chain in found for name in chain]
    assert "encoder.block.0" in names and any(name.startswith("decoder.block.") for name in names)


@pytest.mark.slow
def test_blocks_that_take_turns_with_what_comes_from_beside(parts):
    config = transformers.Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 8}, intermediate_size=24, num_key_value_heads=1, head_dim=8
    )
    found = check_same(parts, transformers.Gemma3ForCausalLM(config), [tokens(0), tokens(1)])
    assert found == [[f"model.layers.{i}" for i in range(8)]]


class Residual(nn.Module):
    def __init__(self, channels, stride=1):
        super().__init__()
        self.one = nn.Conv2d(channels, 8, 3, stride, 1)
        self.norm, self.two = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.skip = nn.Conv2d(channels, 8, 1, stride) if (channels, stride) != (8, 1) else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.two(self.act(self.norm(self.one(x)))) + self.skip(x))


@pytest.mark.parametrize("sequential", [True, False])
def test_a_residual_convnet(parts, sequential):
    torch.manual_seed(0)
    blocks = nn.Sequential(Residual(8), Residual(8, 2)), nn.Sequential(Residual(8), Residual(8))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), *blocks, nn.Flatten(), nn.Linear(8 * 9, 5))
    batches = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(5)
    found = check_same(parts, model, batches, sequential=sequential)
    assert {"2.0", "2.1", "3.0", "3.1"} <= set(found[0])  # the smallest blocks, across their containers


class Block(nn.Module):
    """Takes and returns tuples and names, drops out (not in eval mode), and attends."""

    def __init__(self, size=8):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 2, dropout=0.5, batch_first=True)
        self.up, self.down, self.drop = nn.Linear(size, 12), nn.Linear(12, size), nn.Dropout(0.5)

    def forward(self, pair, *, mask, options):
        x, total = pair
        y, weights = self.attention(x, x, x, attn_mask=mask)
        y = x + options["scale"] * self.drop(self.down(torch.tanh(self.up(y))))
        return (y, total + weights.sum()), {"weights": weights}


class Net(nn.Module):
    block = Block

    def __init__(self, number=3):
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(self.block() for _ in range(number))

    def forward(self, x):
        state, mask = (self.first(x), torch.zeros(())), torch.zeros(x.shape[1], x.shape[1])
        for block in self.blocks:
            state, _ = block(state, mask=mask, options={"scale": 0.5})
        return self.head(state[0])


def sequences(number=3):
    return list(torch.randn(number, 4, 6, 4, generator=torch.Generator().manual_seed(2)))


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_tuples_names_attention_and_dropout(parts, sequential, number):
    torch.manual_seed(0)
    found = check_same(parts, Net(), sequences(number), sequential=sequential, dtype=torch.float64)
    assert found == [["blocks.0", "blocks.1", "blocks.2", "head"]]


class Plain(nn.Module):
    """A block of the models that follow, each of which does one thing that no chain does."""

    def __init__(self, size=8):
        super().__init__()
        self.up, self.down = nn.Linear(size, 12), nn.Linear(12, size)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.slow
def test_the_plain_stack_is_a_chain(parts):
    torch.manual_seed(0)
    assert check_same(parts, Stack(), list(torch.randn(2, 5, 8))) == [["blocks.0", "blocks.1", "blocks.2"]]


class Mixes(nn.Module):
    """The first half of a block: two layers that read the same, and one after them."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.one, self.other, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, notes):
        type(self).calls += 1
        return self.out(torch.tanh(self.one(x)) * self.other(x))


class Halves(nn.Module):
    """A block of two halves; what the second is given, beside its input, says the class below."""

    first: type[nn.Module] = Mixes

    def __init__(self):
        super().__init__()
        self.mixes, self.rest = self.first(), Plain()

    def forward(self, x):
        notes: dict = {}
        x = x + self.mixes(x, notes)
        return self.rest(x) + self.more(notes)

    def more(self, notes):
        return 0


class InTheArguments(Halves):
    """The first half writes into what it was given, and the block reads it."""

    class Writes(Mixes):
        def forward(self, x, notes):
            notes["mean"] = x.mean()
            return super().forward(x, notes)

    first = Writes

    def more(self, notes):
        return notes.get("mean", 0)


class OrItFails(InTheArguments):
    def more(self, notes):
        return notes["mean"]


class InAModule(Halves):
    """The first half changes the second one."""

    class Shifts(Mixes):
        def forward(self, x, notes):
            self.shift.fill_(float(x.mean()))
            return super().forward(x, notes)

    first = Shifts

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.mixes.shift = self.shift

    def forward(self, x):
        self.shift.zero_()
        return super().forward(x)

    def more(self, notes):
        return self.shift


class OfHalves(Stack):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("block", [Halves, InTheArguments, OrItFails, InAModule])
def test_half_of_a_block_is_spared_once_it_is_finished_if_all_else_is_the_same(parts, monkeypatch, block, sequential):
    monkeypatch.setattr("mlcomp.layerwise.walk.SHARE", 1000)
    spared = []
    walk = Walk.__init__

    def noted(self, model, chain, arms, *rest):
        spared.extend(sorted(found) for found in arms)
        walk(self, model, chain, arms, *rest)

    monkeypatch.setattr(Walk, "__init__", noted)
    torch.manual_seed(0)
    batches = list(torch.randn(3, 20, 8))
    calls = []
    for share in (0, 1000):
        monkeypatch.setattr("mlcomp.layerwise.walk.SHARE", share)
        spared.clear()
        Mixes.calls = 0
        parts.found.clear()
        torch.manual_seed(0)
        found = check_same(parts, OfHalves(block), batches, sequential=sequential)
        calls.append(Mixes.calls)
        assert found == [["blocks.0", "blocks.1", "blocks.2"]]
        can = ["mixes", "rest"] if block is Halves else ["rest"]
        assert spared == [[f"blocks.{i}.{name}" for name in can] for i in range(3)]
    # Without room the first half runs for each of the four stages, and on the way on. With it, it runs for its own
    # two, after which its last layer alone is needed: the other two are spared in three blocks, the way on in two,
    # for three batches.
    assert calls[0] - calls[1] == ((2 * 3 + 2) * 3 if block is Halves and sequential else 0)


class Twofold(Mixes):
    def forward(self, x, notes):
        return 2 * super().forward(x, notes)


class SometimesMore(Mixes):
    def forward(self, x, notes):
        y = super().forward(x, notes)
        return y + 1 if x[0, 0] > 0 else y


class TwoEnds(Mixes):
    def forward(self, x, notes):
        y = super().forward(x, notes)
        return self.one(x) if x[0, 0] > 0 else y


class Again(Mixes):
    def forward(self, x, notes):
        return self.out(super().forward(x, notes))


class WithMore(Mixes):
    def forward(self, x, notes):
        return super().forward(x, notes), 1.0


class InATuple(Mixes):
    def forward(self, x, notes):
        return super().forward(x, notes), None


class WritesInto(Mixes):
    """The last layer's input is no longer there when the half has ended."""

    def forward(self, x, notes):
        z = torch.tanh(self.one(x)) * self.other(x)
        y = self.out(z)
        z.zero_()
        return y


ENDS = {Mixes: True, InATuple: True, WritesInto: True}
NO_ENDS = {Twofold: False, SometimesMore: False, TwoEnds: False, Again: False, WithMore: False}


@pytest.mark.slow
@pytest.mark.parametrize(("half", "known"), (ENDS | NO_ENDS).items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_half_ends_with_a_layer_if_it_returns_what_that_one_does_on_all_batches(parts, monkeypatch, half, known):
    class Both(Halves):
        first = half

        def forward(self, x):
            y = self.mixes(x, {})
            return self.rest(x + (y[0] if isinstance(y, tuple) else y))

    monkeypatch.setattr("mlcomp.layerwise.walk.SHARE", 1000)
    ends = []
    walk = Walk.__init__

    def noted(self, model, chain, arms, *rest):
        ends.extend({name: part.end and part.end.layer for name, part in found.items()} for found in arms)
        walk(self, model, chain, arms, *rest)

    monkeypatch.setattr(Walk, "__init__", noted)
    torch.manual_seed(0)
    model, batches = OfHalves(Both), list(torch.randn(4, 20, 8))
    batches[0][0, 0], batches[1][0, 0] = -1, 1
    assert check_same(parts, model, batches) == [["blocks.0", "blocks.1", "blocks.2"]]
    found = [end[f"blocks.{i}.mixes"] for i, end in enumerate(ends)]
    if half in (SometimesMore, TwoEnds):  # of later blocks the batches may all go the same way
        assert found[0] is None
    else:
        assert found == [f"blocks.{i}.mixes.out" if known else None for i in range(3)]


class Routed(Stack):
    """Three experts in one tensor; the sign and size of a token's first entry say which of them it goes to."""

    class Mixture(Plain):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 8, 8) / 3)

        def forward(self, x):
            x, y = super().forward(x), torch.zeros_like(x)
            where = (x[:, 0] > -0.5).long() + (x[:, 0] > 0.5).long()
            for i in range(3):
                y[where == i] = F.linear(x[where == i], self.experts[i])
            return x + torch.tanh(y)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Mixture() for _ in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
def test_experts(parts, sequential):
    torch.manual_seed(0)
    found = check_same(parts, Routed(), list(torch.randn(3, 20, 8)), sequential=sequential)
    assert found == [["blocks.0", "blocks.1"]]


class Twice(Stack):
    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.blocks[1](x)))


class Memory(Stack):
    """The last block reads what the first one wrote down."""

    class Writes(Plain):
        def forward(self, x):
            self.store["x"] = x.mean(0)
            return super().forward(x)

    class Reads(Plain):
        def forward(self, x):
            return super().forward(x + self.store["x"])

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Writes(), Plain(), self.Reads()])
        self.blocks[0].store = self.blocks[2].store = {}


class Set(Stack):
    """What runs between the blocks sets a number in the next one."""

    class Scaled(Plain):
        scale = 1.0

        def forward(self, x):
            return self.scale * super().forward(x)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Scaled() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            block.scale = 1 + float(x.abs().mean())
            x = block(x)
        return x


class WritesInPlace(Stack):
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x += 1
        return x


class SkipsOver(Stack):
    """The last block is given what the first one returned, too."""

    class Two(Plain):
        def forward(self, x, y):
            return super().forward(x) + y

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Plain(), Plain(), self.Two()])

    def forward(self, x):
        first = self.blocks[0](x)
        return self.blocks[2](self.blocks[1](first), 2 * first)


class Depends(Stack):
    """Which block comes next depends on the input."""

    def forward(self, x):
        x = self.blocks[0](x)
        return self.blocks[1](x) if x.sum() > 0 else self.blocks[2](x)


class ByNumber(Stack):
    """A number that is computed from the input is given to each block."""

    class Scaled(Plain):
        def forward(self, x, scale):
            return scale * super().forward(x)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Scaled() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, 1 + float(x.abs().mean()))
        return x


class UsesAPart(Stack):
    """A layer of the first block is called from outside of it, too."""

    def forward(self, x):
        return self.blocks[0].down(F.pad(super().forward(x), (0, 4)))


class Noise(Stack):
    class Noisy(Plain):
        def forward(self, x):
            return super().forward(x) + torch.randn(())

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Noisy() for _ in range(2))


KINDS = [Twice, Memory, Set, WritesInPlace, SkipsOver, Depends, ByNumber, UsesAPart]


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_chain_is_run_as_a_whole(parts, kind, batches, sequential):
    torch.manual_seed(0)
    signs = torch.tensor([1.0, -1.0, 1.0])[:batches].reshape(-1, 1, 1)
    inputs = list(torch.randn(batches, 20, 8) + signs)
    found = check_same(parts, kind(), inputs, sequential=sequential, on_error="skip")
    assert not any("blocks.2" in chain and "blocks.0" in chain for chain in found)


@pytest.mark.slow
def test_random_blocks_are_run_as_a_whole(parts):
    parts.watched()
    run(Noise(), [torch.randn(20, 8)])
    assert parts.found == []


@pytest.mark.slow
def test_hooks_of_the_user_see_and_change_what_they_did(parts):
    torch.manual_seed(0)
    model = Stack()
    model.blocks[1].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model.blocks[1].register_forward_hook(lambda module, args, output: output / 3)
    parts.whole()
    x = [torch.randn(20, 8), torch.randn(9, 8)]
    truth, _ = run(model, x)
    parts.watched()
    result, _ = run(model, x)
    assert parts.found == [["blocks.0", "blocks.1", "blocks.2"]]
    assert all(torch.equal(a, b) for a, b in zip(truth.parameters(), result.parameters(), strict=True))


@pytest.mark.slow
def test_a_run_that_is_resumed_goes_on_block_by_block(parts, tmp_path):
    for sequential in (True, False):
        torch.manual_seed(0)
        net, x, folder = Net(), sequences(), tmp_path / str(sequential)
        truth, _ = run(net, x, sequential=sequential)
        run(net, x, sequential=sequential, resume=folder)
        for path in sorted(folder.glob("blocks.1*")) + sorted(folder.glob("blocks.2*")):
            path.unlink()
        parts.watched()
        result, _ = run(net, x, sequential=sequential, resume=folder)
        assert parts.found.pop()[:3] == ["blocks.0", "blocks.1", "blocks.2"]
        assert all(torch.equal(a, b) for a, b in zip(truth.parameters(), result.parameters(), strict=True))


@pytest.mark.slow
def test_blocks_run_a_few_times_and_the_model_hardly(parts):
    """Six stages: the whole model runs to find, to follow and to try the chain, each block for two stages and on."""
    torch.manual_seed(0)
    model, wholes, blocks = Stack(), [], []
    model.register_forward_hook(lambda *_: wholes.append(1))
    model.blocks[2].up.register_forward_pre_hook(lambda *_: blocks.append(1))
    run(model, list(torch.randn(10, 5, 8)))
    assert len(wholes) == 1 + 10 + 1
    assert len(blocks) == 1 + 10 + 1 + 2 + 2 * 10
