import pytest
import torch
from torch import nn

from mlcomp.layerwise import collect_hessians, layer_hessian


class Two(nn.Module):
    """Two layers that may see the batch in another order, flat, or by heads."""

    def __init__(self, order=lambda x: x):
        super().__init__()
        self.first, self.pooled = nn.Linear(4, 4), nn.Linear(4, 2)
        self.order = order

    def forward(self, x, mask=None):
        self.first(self.order(x))
        return self.pooled(x[:, 0])


X = torch.randn(3, 5, 4)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
ORDERS = {
    "as it is": lambda x: x,
    "tokens first": lambda x: x.transpose(0, 1),
    "flat": lambda x: x.reshape(-1, 4),
    "by heads": lambda x: x[:, None].expand(3, 2, 5, 4),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_padding_is_left_out_in_any_order(order, dtype):
    batch = {"x": X, "mask": MASK.to(dtype)}
    found = collect_hessians(Two(ORDERS[order]), [batch], valid="mask")
    times = 2 if order == "by heads" else 1
    torch.testing.assert_close(found["first"], times * layer_hessian(X[MASK.bool()].T))
    torch.testing.assert_close(found["pooled"], layer_hessian(X[:, 0].T))


def test_a_model_that_is_tokens_first_stays_so_where_it_is_flat():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, mask):
            x = x.transpose(0, 1)
            self.a(x)
            return self.b(x.reshape(-1, 4))

    found = collect_hessians(Flat(), [{"x": X, "mask": MASK}], valid="mask")
    for name in "ab":
        torch.testing.assert_close(found[name], layer_hessian(X[MASK.bool()].T))


def test_what_could_be_meant_in_two_ways_is_refused():
    square = torch.randn(4, 4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"layer 'first'.*\(tokens, batch\): cut the batches"):
        collect_hessians(Two(), [{"x": square, "mask": mask}], valid="mask")
    with pytest.raises(ValueError, match=r"layer 'first': its input is \(3, 2, 4\).*cannot be told"):
        collect_hessians(Two(lambda x: x[:, :2]), [{"x": X, "mask": MASK}], valid="mask")
    with pytest.raises(ValueError, match=r"layer 'first': its input is \(7, 4\)"):  # tokens that were routed here
        collect_hessians(Two(lambda x: x.reshape(-1, 4)[:7]), [{"x": X, "mask": MASK}], valid="mask")
    everything = collect_hessians(
        Two(lambda x: x[:, :2]), [{"x": X, "mask": MASK}], valid={"": "mask", "first": None}
    )
    torch.testing.assert_close(everything["first"], layer_hessian(X[:, :2].reshape(-1, 4).T))


def test_masks_of_another_meaning_are_refused(as_user):
    for wrong in (torch.zeros(3, 5).masked_fill(MASK == 0, -1e4), MASK + 1, MASK.float() / 2):
        with pytest.raises(ValueError, match=r"True/1 where a token counts.*pass mask == 0"):
            collect_hessians(Two(), [{"x": X, "mask": wrong}], valid="mask")
    with pytest.raises(ValueError, match=r"must be a tensor \(batch, tokens\), got \(3, 1, 1, 5\)"):
        collect_hessians(Two(), [{"x": X, "mask": MASK[:, None, None]}], valid="mask")
    with pytest.raises(ValueError, match=r"names the entry 'masks' .*this batch has \['mask', 'x'\]"):
        collect_hessians(Two(), [{"x": X, "mask": MASK}], valid="masks")
    with pytest.raises(ValueError, match=r"no entry for layer\(s\) \['pooled'\]"):
        collect_hessians(Two(), [{"x": X, "mask": MASK}], valid={"first": "mask"})
    with pytest.raises(TypeError, match="valid is a key, a function or a mapping"):
        collect_hessians(Two(), [{"x": X, "mask": MASK}], valid=3)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))

    def forward(self, source, target, source_mask, target_mask):
        return self.decoder(target) + self.encoder(source).mean(1, keepdim=True)


def test_encoder_and_decoder_have_masks_of_their_own():
    y, other = torch.randn(3, 5, 4), MASK.flip(0)
    batch = {"source": X, "target": y, "source_mask": MASK, "target_mask": other}
    with pytest.raises(ValueError, match="one mask of valid positions cannot serve both"):
        collect_hessians(Translator(), [batch], valid="source_mask")
    masks = {"encoder": "source_mask", "decoder": lambda b: b["target_mask"]}
    found = collect_hessians(Translator(), [batch], valid=masks)
    torch.testing.assert_close(found["encoder.0"], layer_hessian(X[MASK.bool()].T))
    torch.testing.assert_close(found["decoder.0"], layer_hessian(y[other.bool()].T))


def test_patches_over_tokens_cannot_be_masked():
    net = nn.Sequential(nn.Conv1d(4, 2, 3))
    with pytest.raises(ValueError, match="patches mix valid positions with padding"):
        collect_hessians(net, [(X.mT,)], valid=lambda batch: MASK)
