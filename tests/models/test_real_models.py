"""The loaders of real models, with every way to a network closed: what they need must lie in the cache.

A machine that has never fetched the models downloads them first (fixture ``cached``); one that cannot, fails.
"""

import socket
import subprocess
import sys

import pytest
import torch

from mlcomp.assets import fetch
from mlcomp.data import python_reference, python_sentences, token_batches
from mlcomp.metrics import embedding_similarity, perplexity
from mlcomp.models import embed, minilm, mobilenet_v2, mobilenet_v2_weights, smollm2


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to connect or to look up a name fails the test."""

    def refuse(*args, **kwargs):
        pytest.fail(f"tried to reach the network: {args}")

    for asset in ("minilm", "smollm2", "mobilenet_v2"):
        fetch(asset)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the loaders must not rely on the reader's setting


@pytest.mark.slow
def test_smollm2_is_the_language_model(no_network, capfd):
    model, tokenizer = smollm2()
    assert capfd.readouterr() == ("", "")  # a notebook stores what a cell prints
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # as published: "135M"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**tokens, max_new_tokens=1, do_sample=False)[0, -1]
    assert tokenizer.decode(answer) == " Paris"


@pytest.mark.slow
def test_smollm2_reads_english(no_network):
    model, tokenizer = smollm2()
    text = python_reference("held_out")
    plain = token_batches(tokenizer, text, length=128, count=4)
    shuffled = [b[:, torch.randperm(128, generator=torch.Generator().manual_seed(0))] for b in plain]
    # 10 to 40 on this text, by the Python version; the same words in no order are hard to predict for any model.
    assert 5 < perplexity(model, plain) < 60 < 500 < perplexity(model, shuffled)


@pytest.mark.slow
def test_smollm2_weights_lie_on_the_q4_grid(no_network):
    """As its docstring says: at most 16 values in each block of 32 along the inputs."""
    model, _ = smollm2()
    blocks = model.model.layers[3].mlp.up_proj.weight.reshape(-1, 32)[:500]
    assert max(len(block.unique()) for block in blocks) <= 16


@pytest.mark.slow
def test_changing_a_model_in_place_leaves_the_cache_alone(no_network):
    for load in (smollm2, minilm):
        model = load()[0]
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert any(bool(p.any()) for p in load()[0].parameters())


@pytest.mark.slow
def test_minilm_knows_what_sentences_mean(no_network, capfd):
    model, tokenizer = minilm()
    assert capfd.readouterr() == ("", "")
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    sentences = ["A cat sat on the mat.", "A kitten is sitting on a rug.", "Inflation rose in March."]
    similar = embed(model, tokenizer, sentences)
    assert similar.shape == (3, 384)
    torch.testing.assert_close(similar.norm(dim=1), torch.ones(3))
    cosines = similar @ similar.T
    assert cosines[0, 1] > 0.5 and cosines[0, 2] < 0.2 and cosines[1, 2] < 0.2


def test_embedding_does_not_depend_on_the_batch(no_network):
    """Padding enters neither attention nor mean."""
    model, tokenizer = minilm()
    sentences = python_sentences("held_out", count=5)
    together = embed(model, tokenizer, sentences)
    alone = embed(model, tokenizer, sentences, batch_size=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)  # float32 sums in another order
    assert embedding_similarity(together, alone) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        embed(model, tokenizer, [])


def test_mobilenet_v2_fits_its_published_size(no_network):
    weights = mobilenet_v2_weights()
    assert all(isinstance(v, torch.Tensor) for v in weights.values())
    model = mobilenet_v2()  # strict: each key has its place
    assert sum(p.numel() for p in model.parameters()) == 3_504_872  # torchvision's documentation
    multiplications = 0

    def count(module, inputs, output):
        nonlocal multiplications
        multiplications += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert multiplications == 300_774_272  # 0.30 G in torchvision's documentation; 300 M in the paper's table 4


def test_mobilenet_v2_logits(no_network):
    """Against torchvision 0.28's own MobileNetV2 with these weights, which gave the same logits to the last bit."""
    x = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        logits = mobilenet_v2()(x)[0]
    assert int(logits.argmax()) == 877
    expected = torch.tensor([-0.1764, 0.0834, 0.1687, 0.453])
    torch.testing.assert_close(logits[:4], expected, atol=1e-3, rtol=1e-3)  # 53 layers in float32


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (smollm2, minilm):
        with pytest.raises(ImportError, match=r'needs transformers, which is not installed .*\.whl\[notebooks\]"'):
            load()


@pytest.mark.slow
def test_importing_the_loaders_is_light():
    code = (
        "import sys, mlcomp.models, mlcomp.data, mlcomp.train, mlcomp.metrics\n"
        "print([m for m in ('transformers', 'sklearn', 'gguf', 'accelerate', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
