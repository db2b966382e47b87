import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlcomp.formats import restore
from mlcomp.layerwise import compress, layer_weights, load, load_results, save
from mlcomp.layerwise.fit import copy_model
from mlcomp.resume import save_piece
from tests.layerwise.test_save import EVERY, FOUR, MODELS, Shared, compressed, mlp, same


@EVERY
@pytest.mark.parametrize("packed", [False, True])
def test_a_model_comes_back_as_it_was(name, packed, tmp_path):
    model, report, fresh, x = compressed(name)
    assert save(model, report.results, tmp_path / "m") == tmp_path / "m"
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    back = load(tmp_path / "m", fresh.eval(), packed=packed)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    if not packed:
        assert same(back, model)
    # Sums of a product of another size may be taken in another order, hence the tolerance of float32.
    torch.testing.assert_close(back(x), model(x), rtol=1e-6, atol=1e-6)


def test_results_come_back_alone(tmp_path):
    model, report, _, _ = compressed("convolutions")
    save(model, report.results, tmp_path / "m")
    back = load_results(tmp_path / "m")
    assert list(back) == list(report.results) and [len(parts) for parts in back.values()] == [2, 2, 6]
    for name, parts in report.results.items():
        for before, after in zip(parts, back[name], strict=True):
            assert torch.equal(restore(after).dequantize(), restore(before).dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype, tmp_path):
    model, x = mlp().to(dtype).eval(), torch.randn(20, 12, dtype=dtype)
    result, report = compress(model, [x], FOUR, progress=False)
    save(result, report.results, tmp_path / "m")
    assert same(load(tmp_path / "m", mlp()), result)
    packed = load(tmp_path / "m", mlp().eval(), packed=True)
    assert packed(x).dtype == dtype
    torch.testing.assert_close(packed(x), result(x))


def test_meta_skeletons_are_filled(tmp_path):
    model, report, _, x = compressed("mlp")
    save(model, report.results, tmp_path / "m")
    with torch.device("meta"):
        empty = mlp().eval()
    for packed in (False, True):
        torch.testing.assert_close(load(tmp_path / "m", empty, packed=packed)(x), model(x))


def damaged(folder, what):
    file, document = folder / "model.safetensors", folder / "mlcomp.json"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "changed byte":
        data = bytearray(file.read_bytes())
        data[-3] ^= 4
        file.write_bytes(data)
    elif what == "missing tensors":
        file.unlink()
    elif what == "missing document":
        document.unlink()
    elif what == "cut document":
        document.write_text(document.read_text()[:-20])
    elif what == "no document":
        document.write_text("[1, 2]")
    else:
        about = json.loads(document.read_text())
        if what == "edited shape":
            about["tensors"]["0.bias"]["shape"] = [9]
        elif what == "edited bits":
            about["layers"]["0"]["parts"][0]["facts"]["bits"] = 2
        elif what == "newer":
            about["format"] = 99
        elif what == "missing part":
            del about["layers"]
        document.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("truncated", "cut short, changed"),
        ("empty", "cut short, changed"),
        ("changed byte", "cut short, changed"),
        ("missing tensors", r"safetensors is missing"),
        ("missing document", "holds no saved model"),
        ("cut document", "is damaged"),
        ("no document", "not what mlcomp writes"),
        ("edited shape", "cut short, changed"),
        ("edited bits", "cut short, changed"),
        ("newer", "format 99.*install a newer mlcomp"),
        ("missing part", "not what mlcomp writes"),
    ],
)
def test_damage_is_told(what, words, tmp_path):
    model, report, fresh, _ = compressed("mlp")
    save(model, report.results, tmp_path / "m")
    damaged(tmp_path / "m", what)
    for read in (lambda: load(tmp_path / "m", fresh), lambda: load_results(tmp_path / "m")):
        with pytest.raises(ValueError, match=words):
            read()


def test_facts_of_a_forger_are_no_way_in(tmp_path):
    """With a hash that fits, a folder still names only classes of the library, and shapes that its tensors have."""
    model, report, fresh, _ = compressed("mlp")
    save(model, report.results, tmp_path / "m")
    document = json.loads((tmp_path / "m" / "mlcomp.json").read_text())
    tensors = load_file(tmp_path / "m" / "model.safetensors")

    def forged(change):
        about = json.loads(json.dumps(document))
        change(about)
        save_piece(tmp_path / "m" / "model.safetensors", tensors, None, of=about)
        (tmp_path / "m" / "mlcomp.json").write_text(json.dumps(about))

    part = lambda about: about["layers"]["0"]["parts"][0]  # noqa: E731
    changes = [
        lambda about: part(about).update(kind="os:system"),
        lambda about: part(about)["facts"].update(shape=[8, 10**9]),
        lambda about: part(about)["facts"].update(bits="4"),
        lambda about: part(about).update(tensors=["codes", "nothing"]),
        lambda about: about["tensors"]["0.bias"].update(shape=[9]),
        lambda about: about["tensors"]["0.bias"].update(dtype="int8"),
        lambda about: about["layers"].update(other=about["layers"]["0"]),
        lambda about: about["layers"]["0"].update(weight="3.weight"),
        lambda about: about["tied"].update({"0.bias": "nothing"}),
        lambda about: about["buffers"].update({"nothing": "float32"}),
        lambda about: about["files"].update({"../m/mlcomp.json": "0"}),
        lambda about: about["layers"].update({"0": []}),
    ]
    for change in changes:
        forged(change)
        for packed in (False, True):
            with pytest.raises(ValueError):
                load(tmp_path / "m", fresh, packed=packed)
    for source in ("transformers:os", "transformers:AutoConfig", "timm:hf-hub:x/y", "builtins:eval"):
        forged(lambda about, source=source: about["model"].update(source=source, options={}))
        with pytest.raises(ValueError):
            load(tmp_path / "m")


def test_another_models_folder_is_refused(tmp_path):
    model, report, fresh, _ = compressed("mlp")
    save(model, report.results, tmp_path / "m")
    with pytest.raises(ValueError, match="another model: this one does not have"):
        load(tmp_path / "m", Shared())
    wide = mlp()
    wide[0] = nn.Linear(13, 8)
    with pytest.raises(ValueError, match=r"0.weight is \(8, 13\) here, \(8, 12\) there"):
        load(tmp_path / "m", wide)
    with pytest.raises(ValueError, match="also has"):
        load(tmp_path / "m", nn.Sequential(*mlp(), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"no library builds by name.*load\(folder, model\)"):
        load(tmp_path / "m")
    with pytest.raises(ValueError, match="holds no saved model"):
        load(tmp_path / "nowhere", fresh)


NARROW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@EVERY
@NARROW
def test_what_the_file_holds_in_a_narrower_dtype_stays_so_where_it_is_packed(name, dtype, tmp_path):
    model, report, fresh, x = compressed(name)
    save(model, report.results, tmp_path / "m", dtype=dtype)
    dense, packed = (load(tmp_path / "m", fresh.eval(), packed=packed) for packed in (False, True))
    y = packed(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, dense(x), rtol=1e-6, atol=1e-6)
    if name == "tied":
        assert [type(m).__name__ for m in packed.children()] == ["PackedEmbedding", "PackedLinear", "PackedLinear"]
        assert torch.equal(packed.embedding.weight, dense.embedding.weight)
        assert torch.equal(packed.embedding(x), dense.embedding(x))


@NARROW
def test_a_model_that_is_not_compressed_at_all_stays_as_narrow_as_its_file(dtype, tmp_path):
    torch.manual_seed(0)
    for model, x in ((mlp(), torch.randn(5, 12)), (MODELS["convolutions"][0](), torch.randn(3, 4, 6, 6))):
        folder = save(model.eval(), {}, tmp_path / type(model[0]).__name__, dtype=dtype)
        dense, packed = (load(folder, copy.deepcopy(model), packed=packed) for packed in (False, True))
        torch.testing.assert_close(packed(x), dense(x), rtol=1e-6, atol=1e-6)
        for name, layer in packed.named_children():
            if hasattr(layer, "weight"):
                assert torch.equal(layer.weight, dense.get_submodule(name).weight)
        kept = sum(b.nbytes for name, b in packed.named_buffers() if ".packed_" in f".{name}")
        assert kept == sum(weight.nbytes // 2 for weight in layer_weights(model).values())


def test_a_tied_head_stays_tied_wherever_the_model_is_taken(tmp_path):
    model, report, fresh, x = compressed("tied")
    save(model, report.results, tmp_path / "m", dtype=torch.float16)
    packed = load(tmp_path / "m", fresh.eval(), packed=True)
    y = packed(x)
    moved = copy.deepcopy(packed)._apply(torch.clone)  # as to another device
    for other in (packed, moved, copy.deepcopy(packed), copy_model(packed), copy.deepcopy(packed).half()):
        held = {t.untyped_storage().data_ptr(): t.nbytes for t in other.buffers() if t.dtype == torch.uint8}
        whole = [b for b in other.embedding.buffers() if b.dtype == torch.uint8]
        assert sum(held.values()) == whole[0].nbytes + other.body.nbytes and whole[0].nbytes == 16 * 8 * 2
        with torch.no_grad():
            whole[0][:2] = whole[0][2:4].clone()  # who writes into the embedding's bytes changes the head
        assert torch.equal(other.head.weight, other.embedding.weight)
        assert other.head.weight[0, 0] == other.embedding.weight[0, 1]
    assert not torch.equal(packed(x), y) or 0 not in x


def test_the_dtype_of_a_packed_embedding_is_that_of_the_model(tmp_path):
    model, report, fresh, x = compressed("tied")
    save(model, report.results, tmp_path / "m", dtype=torch.bfloat16)
    dense, packed = (load(tmp_path / "m", fresh.eval(), packed=packed) for packed in (False, True))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        a, b = dense.embedding.to(dtype)(x), packed.embedding.to(dtype)(x)
        assert a.dtype == b.dtype == dtype and torch.equal(a, b)


class Doubled(nn.Embedding):
    def forward(self, x):
        return 2 * super().forward(x)


class Bag(nn.Module):
    """Reads weights in ways that no packed layer does."""

    def __init__(self):
        super().__init__()
        self.doubled, self.cut = Doubled(16, 8), nn.Embedding(16, 8, max_norm=1.0)
        self.first, self.body, self.free = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(16, 8))
        self.second = nn.Embedding(16, 8)
        self.second.weight = self.free
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(
            self.body(self.doubled(x) + self.cut(x) + self.first(x) + self.second(x)) @ self.free.T[:, :8]
        )


def test_what_a_packed_layer_does_not_do_stays_dense(tmp_path):
    model = Bag().eval()
    x = torch.randint(0, 16, (4, 5))
    model(x)  # cuts the vectors that it looks at
    result, report = compress(model, [x], FOUR, progress=False)
    save(result, report.results, tmp_path / "m", dtype=torch.float16)
    dense, packed = (load(tmp_path / "m", Bag().eval(), packed=packed) for packed in (False, True))
    torch.testing.assert_close(packed(x), dense(x), rtol=1e-5, atol=1e-5)
    kinds = {name: type(module).__name__ for name, module in packed.named_children()}
    assert kinds == {
        "doubled": "Doubled",
        "cut": "Embedding",
        "first": "PackedEmbedding",
        "body": "PackedLinear",
        "second": "Embedding",
        "norm": "LayerNorm",
    }
    assert packed.second.weight is packed.free


def test_a_narrow_weight_of_another_shape_is_refused(tmp_path):
    model, report, fresh, _ = compressed("tied")
    save(model, report.results, tmp_path / "m", dtype=torch.float16)
    file, document = tmp_path / "m" / "model.safetensors", json.loads((tmp_path / "m" / "mlcomp.json").read_text())
    tensors = load_file(file) | {"embedding.weight": torch.zeros(15, 8, dtype=torch.float16)}
    file.unlink()
    save_piece(file, tensors, None, of=document)
    for packed in (False, True):
        with pytest.raises(ValueError, match=r"embedding\.weight is torch\.float16 \(15, 8\) in the file"):
            load(tmp_path / "m", fresh, packed=packed)
