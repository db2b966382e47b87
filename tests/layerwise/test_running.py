import pytest
import torch
from torch import nn

from mlcomp.layerwise import StopForward, call_model, hooked
from mlcomp.layerwise.running import without_cache, without_logits
from mlcomp.modes import evaluating


def test_every_module_gets_its_own_mode_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()  # a frozen BatchNorm in a model that trains
    with pytest.raises(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        raise KeyError
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert torch.is_grad_enabled()


def test_hooks_come_off_and_a_stop_passes_through_except_exception():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            try:
                return self.inner(x)
            except Exception:
                return None

    def stop(*_):
        raise StopForward

    model = Careless()
    with pytest.raises(StopForward), hooked([model.inner.register_forward_pre_hook(stop)]):
        model(torch.ones(1, 2))
    assert model(torch.ones(1, 2)).shape == (1, 2)


def test_a_batch_is_a_tensor_positional_or_named():
    class Sum(nn.Module):
        def forward(self, a, b=0, *, c=0):
            return a + b + c

    one = torch.ones(1)
    assert call_model(Sum(), one) == 1
    assert call_model(Sum(), (one, one)) == 2 and call_model(Sum(), [one, one]) == 2
    assert call_model(Sum(), {"a": one, "c": 2}) == 3
    with pytest.raises(TypeError, match="a batch is a tensor, a tuple or list, or a mapping, got set"):
        call_model(Sum(), {1})


def test_no_keys_and_values_are_kept_unless_a_batch_asks_for_it():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=8)).eval()
    tokens = torch.arange(5)[None]
    assert call_model(model, tokens).past_key_values is not None
    with pytest.raises(KeyError), without_cache(nn.Sequential(model)):
        assert call_model(model, tokens).past_key_values is None
        assert call_model(model, {"input_ids": tokens, "use_cache": True}).past_key_values is not None
        raise KeyError
    assert model.config.use_cache is True and call_model(model, tokens).past_key_values is not None
    model.config.use_cache = False
    with without_cache(model):
        pass
    assert model.config.use_cache is False


def test_logits_are_made_of_the_last_token_only_unless_somebody_looks_at_the_others():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=8)).eval()
    tokens, blocks = torch.arange(5)[None], ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.experts.3"]
    whole = call_model(model, tokens).logits
    with pytest.raises(KeyError), without_logits(model, blocks):
        torch.testing.assert_close(call_model(model, tokens).logits, whole[:, -1:])
        two = call_model(model, {"input_ids": tokens, "logits_to_keep": 2}).logits
        torch.testing.assert_close(two, whole[:, -2:])
        assert call_model(model, {"input_ids": tokens, "labels": tokens}).logits.shape == whole.shape
        positional = (tokens, None, None, None, None, tokens)  # the sixth is labels
        assert call_model(model, positional).logits.shape == whole.shape
        raise KeyError
    with without_logits(model, [*blocks, "lm_head"]):  # which is compressed, and has to see all
        assert call_model(model, tokens).logits.shape == whole.shape
    for other in (model.model, nn.Sequential(model)):  # a model without a head, and one of another kind
        with without_logits(other, ["layers.0.mlp.up_proj"]):
            assert call_model(other, tokens)[0].shape[1] == 5
    assert torch.equal(call_model(model, tokens).logits, whole)
