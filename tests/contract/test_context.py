"""Every public function gives the same result whatever context its caller stands in, bit for bit."""

import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mlcomp import (
    budget,
    compare,
    data,
    deploy,
    distill,
    formats,
    generate,
    layerwise,
    metrics,
    models,
    obs,
    prune,
    quant,
    sources,
)
from mlcomp.context import isolated
from mlcomp.cost import model_cost
from mlcomp.train import (
    add_lora,
    co_training,
    confident_labels,
    merge_lora,
    meta_pseudo_labels,
    net_aug,
    network_fit,
    self_training,
    train,
)
from tests.contract.public import public_functions
from tests.contract.test_checks import FUNCTIONS, drawn, good_arguments, layer
from tests.prune.dynamic import gated
from tests.prune.structured.nets import Attention
from tests.prune.structured.test_remove_channels import transformer


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def half_elsewhere():
    with default_dtype(torch.float16), torch.device("meta"):
        yield


CONTEXTS = {
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64": partial(default_dtype, torch.float64),
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "half elsewhere": half_elsewhere,
    "deterministic": deterministic,
}


def seeded(make):
    """Return what ``make`` makes, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def net() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)))


def conv_net() -> nn.Sequential:
    parts = nn.Conv2d, nn.BatchNorm2d, nn.Linear
    conv, norm, linear = seeded(
        lambda: [part(*size) for part, size in zip(parts, ((1, 4, 3), (4,), (16, 4)), strict=True)]
    )
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), linear)


def conv_group() -> prune.Group:
    return prune.dependency_groups(conv_net(), images(1))[0]


def attention_net() -> tuple:
    """A language model, tokens, and its heads."""
    return seeded(Attention).float(), labels(15).reshape(3, 5), {"out": 4}


def utility_of_modules(model, tokens, removed) -> float:
    modules = prune.module_blocks(model, tokens, {"out": 2})
    return prune.module_utility(model, modules, [tokens], prune.next_token_losses)(removed)


def small() -> tuple:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    return model, drawn(8, 3), labels(8) % 2, cross_entropy


@isolated
def widened(widths) -> nn.Module:
    layers = [nn.Conv2d(1, widths[0], 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * widths[0], 4))


def sparse_net() -> nn.Module:
    return layerwise.with_weights(net(), prune.global_magnitude(layerwise.layer_weights(net()), sparsity=0.5))


def coded_net() -> tuple:
    block = seeded(lambda: nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8)).eval())
    return block, drawn(32, 16), {"0": codes()}


class ByteTable(nn.Module):
    """A language model that knows which byte follows which; ``logits`` as in transformers, if they are named."""

    def __init__(self, named: bool):
        super().__init__()
        self.named, self.table = named, nn.Parameter(drawn(256, 256))

    def forward(self, tokens):
        return SimpleNamespace(logits=self.table[tokens]) if self.named else self.table[tokens]


def images(count: int = 48) -> torch.Tensor:
    return drawn(count, 1, 4, 4)


def labels(count: int = 48) -> torch.Tensor:
    return torch.arange(count) % 4


def batches() -> list[torch.Tensor]:
    return list(images().split(24))


def codes() -> formats.AdditiveCodes:
    return quant.residual_kmeans(drawn(8, 16), dim=4, books=1, code_bits=3)


def diffq() -> nn.Module:
    return quant.prepare_diffq(net(), group_size=4)


def hessians() -> dict[str, torch.Tensor]:
    return layerwise.collect_hessians(net(), batches())


def database() -> budget.Database:
    return budget.build_database(net(), hessians(), LEVELS, progress=False)


def saved() -> str:
    path = f"{FOLDER.name}/levels"
    database().save(path)
    return path


def corrected() -> nn.Module:
    return add_lora(net(), ["1"], rank=2, alpha=4.0)


def saved_adapter(model) -> Path:
    return deploy.save_lora_adapter(model, tempfile.mkdtemp(dir=FOLDER.name))


def bytes_of_adapter(model) -> bytes:
    return (saved_adapter(model) / "adapter_model.safetensors").read_bytes()


def compressed() -> tuple:
    model, report = layerwise.compress(net(), batches(), partial(quant.rtn, bits=4), progress=False)
    return model, report.results


def saved_model() -> str:
    path = f"{FOLDER.name}/model"
    layerwise.save(*compressed(), path, overwrite=True)
    return path


def saved_pruned() -> str:
    path, tokens = f"{FOLDER.name}/pruned", torch.arange(5)[None]
    model = transformer("Llama").float()
    layerwise.save(prune.llm_pruner(model, [tokens], share=0.3).model, {}, path, overwrite=True)
    return path


def kept() -> list[str]:
    path = f"{FOLDER.name}/kept"
    shutil.rmtree(path, ignore_errors=True)
    deploy.compress_model("mlp", method="rtn", bits=4, out=path, data="noise", samples=8, progress=False)
    return [path]


def flat() -> object:
    return obs.flatten_network(*small())


TOKENS = torch.arange(48).reshape(4, 12)


def byte_stream() -> tuple:
    model = models.byte_lm(32, pretrained=False)
    stream = prune.residual_stream(model, TOKENS[:1])
    return model, stream, prune.open_gates(stream).map(lambda z: z * (torch.arange(len(z)) % 3 > 0) / 2)


# What is called; tensors of their own they make of what they were given.


def hard_gates(log_alpha):
    return prune.hard_concrete(log_alpha, generator=torch.Generator("cpu").manual_seed(0))


def of_format(number_format, x):
    coded = number_format.encode(x)
    return coded, number_format.decode(coded), number_format.round(x), number_format.values()


def stored(kind, weight):
    matrix = kind.from_dense(weight)
    return matrix, matrix.dequantize(), matrix.nbytes


def restored(kept):
    result = formats.restore(kept)
    return result, result.dequantize()


def loaded(folder):
    return layerwise.load(folder, net()), layerwise.load(folder, net(), packed=True)


def state_of_pruned(folder):
    return dict(prune.load_pruned(folder).state_dict())


def of_source(make, share, *arguments):
    source = make(*arguments)
    facts = source.energy, source.kurtosis, source.bound, source.smallest_energy(0.5)
    return facts, source.quantile(share), source.cube_root_quantile(share), source.cells(share)


def of_law(law, x):
    return law.compress(x), law.expand(x)


def of_trace(trace, counts):
    return trace.total_losses(), trace.removed_at(counts), trace.weights_at(counts)


def gumbel(logits):
    return prune.gumbel_keep(logits, generator=torch.Generator("cpu").manual_seed(0))


def loss_of(model):
    return float(model[1].weight.detach().double().square().sum())


def of_reliability(*arguments):
    found = metrics.reliability(*arguments)
    return found, found.expected_error, found.largest_error


def first_losses(logits, tokens):
    return cross_entropy(logits[:, 0], tokens[:, 1], reduction="none")


def mean_of(output, batch):
    return output.square().mean()


def trained(model, *data):
    return model, train(model, *data, epochs=2, lr=1e-2, progress=False)


def of_fit(run):
    """Return the pseudo-labels; what predicts is the caller's own function."""
    found = run()
    return found.labels, found.history


def both_trained(teacher, student, *data):
    history = meta_pseudo_labels(teacher, student, *data, epochs=2, lr=1e-2, batch_size=16, progress=False)
    return teacher, student, history


def zeros_kept(model, after_step=None):
    after_step = layerwise.keep_zeros(model)
    with torch.no_grad():
        model[1].weight.add_(1)
    after_step(1)
    return model


def written(module, matrix):
    layerwise.set_weight_matrix(module, matrix)
    return module


def eight_bits(linear, x):
    module = quant.LLMInt8Linear(linear)
    return module, module(x)


def clipped(model, after_step=None):
    after_step = quant.clip_weights(model)
    with torch.no_grad():
        model[1].weight.mul_(3)
    after_step(1)
    return model


def packed_logits(model):
    packed = quant.pack_binarized(model, input_bits=2)
    return packed.weights, packed.thresholds, packed(torch.arange(16, device="cpu").to(torch.uint8)[None] % 4)


def observed(batches):
    rules = [quant.observer(rule) for rule in ("minmax", "moving_average", "percentile", "mse")]
    return [([rule.add(batch) for batch in batches], rule.range()) for rule in rules]


def letters(text, **options):
    return {"input_ids": [ord(letter) for letter in text]}


def blocks() -> obs.BlockInverse:
    return obs.block_fisher_inverse(drawn(5, 8), damping=0.1, block_size=4)


def inverse_parts(gradients):
    inverse = obs.block_fisher_inverse(gradients, damping=0.1, block_size=4)
    return inverse, inverse.diagonal(), inverse.product(gradients[0].double()), inverse.dense()


def matrix_free(gradients):
    inverse, window = obs.mfac_inverse(gradients, damping=0.1), obs.DynamicMFAC(8, 3, damping=0.1)
    for gradient in gradients:
        window.add(gradient)
    some = inverse.block(torch.tensor([1, 3], device="cpu"))
    return inverse, inverse.product(gradients[0]), inverse.diagonal(), some, window.product(gradients[0])


def means_of_classes(inputs, classes):
    """Fit the mean of each class; the nearer, the likelier."""
    means = torch.stack([inputs[classes == c].mean(0).flatten() for c in range(4)])
    return lambda x: (-torch.cdist(x.flatten(1), means)).softmax(1)


FEW_LABELS = {"best_per_class": 1, "rounds": 2}
TWO_EPOCHS = {"epochs": 2, "lr": 1e-2, "progress": False}
LEVELS = budget.Level(), budget.Level(sparsity=0.5), budget.Level(bits=4)
FOLDER = tempfile.TemporaryDirectory()
SHARE = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
LEFT, RIGHT = torch.tensor([1, -1, -1]), torch.tensor([2, -1, -1])  # a root with two leaves
TREE = LEFT, RIGHT, torch.tensor([0.5, 0.1, 0.0]), torch.tensor([4.0, 2.0, 2.0])
SPLITS = LEFT, RIGHT, LEFT.clamp(max=0), torch.tensor([0.1, -2.0, -2.0]), LEFT > 0
MIXTURE = torch.tensor([0.7, 0.3]), torch.tensor([-2.0, 3.0]), torch.tensor([0.6, 1.0])
WORDS = ByteTable(named=False), labels(24).view(12, 2), labels(36).view(12, 3)  # a model, prompts and outputs
W, H, SIZES = drawn(4, 16), layer()["hessian"], torch.tensor([4.0, 16.0, 64.0, 256.0])

# What is called with arguments that were made outside of the context: name → (function, how its arguments are made).
OTHERS = {
    # formats
    "absmax_int8": lambda: partial(formats.absmax_int8, W, dim=1),
    "additive_decode": lambda: partial(formats.additive_decode, codes()),
    "additive_matvec": lambda: partial(formats.additive_matvec, drawn(16), codes()),
    "int8_matmul": lambda: partial(
        formats.int8_matmul, formats.absmax_int8(drawn(3, 16), 1), formats.absmax_int8(W, 1)
    ),
    "csr_matmul": lambda: partial(formats.csr_matmul, drawn(3, 16), formats.CSR.from_dense(W)),
    "two_four_matmul": lambda: partial(
        formats.two_four_matmul, drawn(3, 16), formats.TwoFour.from_dense(prune.magnitude(W, pattern=(2, 4)))
    ),
    "pack_signs": lambda: partial(formats.pack_signs, W),
    "onebit_matmul": lambda: partial(
        formats.onebit_matmul, drawn(3, 16), formats.pack_signs(W), W[:, 0], drawn(3, 16)[0]
    ),
    "xnor_matmul": lambda: partial(formats.xnor_matmul, formats.pack_signs(drawn(3, 16)), formats.pack_signs(W)),
    "CSR": lambda: partial(stored, formats.CSR, W),
    "TwoFour": lambda: partial(stored, formats.TwoFour, prune.magnitude(W, pattern=(2, 4))),
    "Bitmask": lambda: partial(stored, formats.Bitmask, W),
    "pack": lambda: partial(formats.pack, torch.arange(16), 4),
    "pack_planes": lambda: partial(formats.pack_planes, torch.arange(600), 11),
    "unpack_planes": lambda: partial(
        formats.unpack_planes, formats.pack_planes(torch.arange(16), 11), 11, (4, 4), start=1
    ),
    "store": lambda: partial(formats.store, quant.quip(W, H, bits=3)),
    "restore": lambda: partial(restored, formats.store(quant.quip(W, H, bits=3))),
    "unpack": lambda: partial(formats.unpack, formats.pack(torch.arange(16), 4), 4, 16),
    "stored_nbytes": lambda: partial(formats.stored_nbytes, W),
    "dtype_support": lambda: partial(formats.dtype_support, ["float32", "int8", "bool"]),
    "FloatFormat": lambda: partial(of_format, formats.FloatFormat(4, 3), drawn(20)),
    "IntFormat": lambda: partial(of_format, formats.IntFormat(4), drawn(20)),
    # sources
    "as_source": lambda: partial(of_source, sources.as_source, SHARE, W),
    "sample": lambda: partial(of_source, sources.sample, SHARE, W),
    "student_t": lambda: partial(of_source, sources.student_t, SHARE, 6.0),
    "Gaussian": lambda: partial(of_source, sources.Gaussian, SHARE),
    "Laplace": lambda: partial(of_source, sources.Laplace, SHARE),
    "MuLaw": lambda: partial(of_law, quant.MuLaw(), drawn(9).clamp(-1, 1)),
    "ALaw": lambda: partial(of_law, quant.ALaw(), drawn(9).clamp(-1, 1)),
    # layerwise
    "reestimate_batchnorm": lambda: partial(layerwise.reestimate_batchnorm, conv_net(), batches()),
    "output_means": lambda: partial(layerwise.output_means, net(), batches()),
    "correct_biases": lambda: partial(layerwise.correct_biases, net(), net(), batches()),
    "relu_mean": lambda: partial(layerwise.relu_mean, drawn(5), drawn(5).abs()),
    "analytic_correction": lambda: partial(layerwise.analytic_correction, W, W.round(), drawn(16)),
    "compress": lambda: partial(
        layerwise.compress, conv_net(), batches(), partial(quant.gptq, bits=4), progress=False
    ),
    "save": lambda: partial(layerwise.save, *compressed(), f"{FOLDER.name}/again", overwrite=True),
    "load": lambda: partial(loaded, saved_model()),
    "load_results": lambda: partial(layerwise.load_results, saved_model()),
    "layer_hessian": lambda: partial(layerwise.layer_hessian, layer()["inputs"]),
    "output_loss": lambda: partial(layerwise.output_loss, W, H),
    "trace_layers": lambda: partial(layerwise.trace_layers, net(), batches(), ["1", "3"]),
    "collect_hessians": lambda: partial(layerwise.collect_hessians, conv_net(), batches()),
    "weight_matrix": lambda: partial(layerwise.weight_matrix, net()[1]),
    "set_weight_matrix": lambda: partial(written, net()[1], drawn(1, 8, 16)),
    "output_error": lambda: partial(layerwise.output_error, W[None], W[None].round(), H[None]),
    "layer_weights": lambda: partial(layerwise.layer_weights, net()),
    "with_weights": lambda: partial(layerwise.with_weights, net(), {"1": drawn(8, 16)}),
    "network_sparsity": lambda: partial(layerwise.network_sparsity, net()),
    "keep_zeros": lambda: partial(zeros_kept, net()),
    # quant
    "squared_error": lambda: partial(quant.squared_error, W, W.round()),
    "aqlm": lambda: partial(quant.aqlm, W, H, dim=4, books=1, code_bits=2, max_rounds=1, update="adam"),
    "residual_kmeans": lambda: partial(quant.residual_kmeans, drawn(8, 16), dim=4, books=1, code_bits=3),
    "beam_search": lambda: partial(quant.beam_search, drawn(8, 16), H, codes()),
    "tune_codebooks": lambda: partial(quant.tune_codebooks, drawn(8, 16), H, codes(), update="adam", steps=3),
    "tune_block": lambda: partial(quant.tune_block, *coded_net(), max_rounds=1, steps=3),
    "capture_block": lambda: partial(quant.capture_block, net(), batches(), "1"),
    "pv_tuning": lambda: partial(quant.pv_tuning, *coded_net(), rounds=1, steps=3),
    "pseudo_noise": lambda: partial(
        quant.pseudo_noise, W, torch.full((8,), 3.0), group_size=8, generator=layer()["generator"]
    ),
    "prepare_diffq": lambda: partial(quant.prepare_diffq, net(), group_size=4),
    "diffq_size": lambda: partial(quant.diffq_size, diffq()),
    "diffq_codes": lambda: partial(quant.diffq_codes, diffq()),
    "meet_size": lambda: partial(quant.meet_size, diffq(), 120),
    "lsq_quantize": lambda: partial(quant.lsq_quantize, W, torch.tensor(0.3), low=-4, high=3),
    "lsq_initial_step": lambda: partial(quant.lsq_initial_step, W, high=3),
    "prepare_qat": lambda: partial(quant.prepare_qat, net(), batches(), weight_bits=4, input_bits=4),
    "finish_qat": lambda: partial(quant.finish_qat, quant.prepare_qat(net(), batches(), weight_bits=4, input_bits=4)),
    "prepare_onebit": lambda: partial(quant.prepare_onebit, net()),
    "finish_onebit": lambda: partial(quant.finish_onebit, quant.prepare_onebit(net())),
    "prepare_group_wise": lambda: partial(quant.prepare_group_wise, net(), weight_bits=3, group_size=4),
    "finish_group_wise": lambda: partial(quant.finish_group_wise, quant.prepare_group_wise(net(), weight_bits=3)),
    "straight_through": lambda: partial(quant.straight_through, W, W.round()),
    "ste_round": lambda: partial(quant.ste_round, W),
    "range_grid": lambda: partial(quant.range_grid, -W.abs(), W.abs(), bits=4),
    "fold_batchnorm": lambda: partial(quant.fold_batchnorm, conv_net().eval()),
    "brecq": lambda: partial(quant.brecq, net(), images(), bits=3, steps=5),
    "observer": lambda: partial(observed, batches()),
    "activation_grid": lambda: partial(quant.activation_grid, -1.0, 2.0, bits=4),
    "integer_linear": lambda: partial(quant.integer_linear, quant.ptq(net(), batches()).model[1], drawn(3, 16)),
    "hadamard_matrix": lambda: partial(quant.hadamard_matrix, 12),
    "hadamard_transform": lambda: partial(quant.hadamard_transform, W),
    "ptq": lambda: partial(quant.ptq, conv_net(), batches(), bias_correction=True),
    "input_ranges": lambda: partial(quant.input_ranges, net(), batches(), {"1": 8}, "mse"),
    "data_type_levels": lambda: partial(quant.data_type_levels, "float", 4),
    "companded_codebook": lambda: partial(quant.companded_codebook, quant.MuLaw(), 8),
    "optimal_companding": lambda: partial(quant.optimal_companding, "gaussian", 8),
    "lloyd_max": lambda: partial(quant.lloyd_max, "laplace", 8),
    "quantize_mixed": lambda: partial(quant.quantize_mixed, W, torch.full((8,), 3, dtype=torch.uint8), group_size=8),
    "double_quantize": lambda: partial(quant.double_quantize, W, block_size=8, scale_block=4),
    "scale_levels": lambda: partial(quant.scale_levels, "dynamic"),
    "qlora": lambda: partial(quant.qlora, net(), rank=2, alpha=4.0),
    "quantile_codebook": lambda: partial(quant.quantile_codebook, "gaussian", 8),
    "nf4_codebook": lambda: quant.nf4_codebook,
    "e8_nearest": lambda: partial(quant.e8_nearest, drawn(5, 8)),
    "e8p_encode": lambda: partial(quant.e8p_encode, drawn(5, 8)),
    "e8p_decode": lambda: partial(quant.e8p_decode, quant.e8p_encode(drawn(5, 8))),
    "kmeans": lambda: partial(quant.kmeans, drawn(30, 4), 4, generator=layer()["generator"]),
    "kmeans_assign": lambda: partial(quant.kmeans_assign, drawn(30, 4), drawn(4, 4)),
    "fit_tree": lambda: partial(quant.fit_tree, drawn(30, 4), 4, branching=2, generator=layer()["generator"]),
    "pack_nf4": lambda: partial(quant.pack_nf4, quant.double_quantize(W, block_size=8)),
    "nf4_matmul": lambda: partial(
        quant.nf4_matmul, drawn(3, 16), quant.pack_nf4(quant.double_quantize(W, block_size=8))
    ),
    "pack_w4": lambda: partial(quant.pack_w4, quant.rtn(W, bits=4)),
    "w4a16_matmul": lambda: partial(quant.w4a16_matmul, drawn(3, 16), quant.pack_w4(quant.rtn(W, bits=4))),
    "outlier_columns": lambda: partial(quant.outlier_columns, 4 * W),
    "llm_int8": lambda: partial(quant.llm_int8, 4 * drawn(3, 16), W),
    "outlier_features": lambda: partial(quant.outlier_features, [4 * W]),
    "LLMInt8Linear": lambda: partial(eight_bits, net()[1], 4 * drawn(3, 16)),
    "binarize": lambda: partial(quant.binarize, W, stochastic=True, generator=layer()["generator"]),
    "binarized_mlp": lambda: partial(quant.binarized_mlp, (16, 8, 4)),
    "clip_weights": lambda: partial(clipped, quant.binarized_mlp((16, 8, 4))),
    "squared_hinge": lambda: partial(quant.squared_hinge, W, labels(4)),
    "nearest_power": lambda: partial(quant.nearest_power, W),
    "ShiftBatchNorm": lambda: partial(quant.ShiftBatchNorm, 4),
    "fold_thresholds": lambda: partial(quant.fold_thresholds, nn.BatchNorm1d(4), 4, 9),
    "pack_binarized": lambda: partial(packed_logits, quant.binarized_mlp((16, 8, 4)).eval()),
    # prune
    "group_magnitude": lambda: partial(prune.group_magnitude, drawn(4, 3, 3, 3), granularity="kernel", sparsity=0.5),
    "permute_channels": lambda: partial(
        prune.permute_channels, net(), prune.dependency_groups(net(), images(2))[0], torch.arange(8).flip(0)
    ),
    "connection_sensitivity": lambda: partial(prune.connection_sensitivity, net(), images(), labels()),
    "snip": lambda: partial(prune.snip, net(), images(), labels(), sparsity=0.5),
    "gradual_pruning": lambda: partial(
        prune.gradual_pruning, net(), images(), labels(), sparsity=0.5, epochs=2, lr=0.01, every=1, progress=False
    ),
    "global_magnitude": lambda: partial(prune.global_magnitude, [W, W[:, :3]], sparsity=0.5),
    "layer_normalized": lambda: partial(prune.layer_normalized, [W, W[:, :3]], sparsity=0.5),
    "random_pruning": lambda: partial(prune.random_pruning, [W, W[:, :3]], sparsity=0.5),
    "smallest_mask": lambda: partial(prune.smallest_mask, W, 5),
    "nm_mask": lambda: partial(prune.nm_mask, W, (2, 4)),
    "cost_complexity_path": lambda: partial(prune.cost_complexity_path, *TREE),
    "tree_leaves": lambda: partial(prune.tree_leaves, *SPLITS, drawn(5, 2)),
    "choose_alpha": lambda: partial(prune.choose_alpha, drawn(3, 5).abs()),
    "lasso": lambda: partial(prune.lasso, drawn(12, 4), drawn(12), penalty=0.5),
    "lasso_path": lambda: partial(prune.lasso_path, drawn(12, 4), drawn(12), steps=5),
    "robust_pca": lambda: partial(prune.robust_pca, W),
    "alternating_projections": lambda: partial(prune.alternating_projections, W, rank=2, nonzeros=5),
    "planted_matrix": lambda: partial(prune.planted_matrix, 4, 6, rank=2, share=0.25),
    "calibrate": lambda: partial(prune.calibrate, net(), sparse_net(), batches(), finetune_steps=3),
    "channel_importance": lambda: partial(prune.channel_importance, conv_net(), images(), labels(), ["0", "1"]),
    "channel_loss_changes": lambda: partial(
        prune.channel_loss_changes, conv_net(), images(), labels(), {"1": [0, 2]}
    ),
    "weight_importance": lambda: partial(prune.weight_importance, conv_net(), images(), labels()),
    "dependency_groups": lambda: partial(prune.dependency_groups, conv_net(), images(1)),
    "fixed_channels": lambda: partial(prune.fixed_channels, conv_net(), images(1)),
    "group_weights": lambda: partial(prune.group_weights, conv_net(), conv_group()),
    "remove_channels": lambda: partial(prune.remove_channels, conv_net(), {conv_group(): [1]}, fold=batches()),
    "attention_heads": lambda: partial(prune.attention_heads, *attention_net()[:2]),
    "remove_heads": lambda: partial(
        lambda model, tokens, _: prune.remove_heads(model, {"out": [2, 3]}, tokens), *attention_net()
    ),
    "head_importance": lambda: partial(
        lambda model, tokens, heads: prune.head_importance(model, [tokens], heads, prune.next_token_losses),
        *attention_net(),
    ),
    "head_loss_changes": lambda: partial(
        lambda model, tokens, heads: prune.head_loss_changes(model, [tokens], heads, prune.next_token_losses),
        *attention_net(),
    ),
    "next_token_losses": lambda: partial(prune.next_token_losses, *attention_net()[:2]),
    "bonsai": lambda: partial(
        prune.bonsai, lambda removed: -(float(removed.sum()) ** 2), torch.ones(6), sparsity=0.5, samples=9
    ),
    "drawn_submodels": lambda: partial(prune.drawn_submodels, torch.arange(6) > 1, 5, share=0.3, seed=0),
    "module_scores": lambda: partial(prune.module_scores, drawn(9, 4) > 0, drawn(9)),
    "module_blocks": lambda: partial(prune.module_blocks, *attention_net()[:2], {"out": 2}),
    "module_utility": lambda: partial(utility_of_modules, *attention_net()[:2], torch.arange(2) > 0),
    "cats": lambda: partial(prune.cats, gated.model(), gated.batches(), sparsity=0.5),
    "activation_thresholds": lambda: partial(
        prune.activation_thresholds, gated.model(), gated.batches(), sparsity=0.5
    ),
    "activation_sparsity": lambda: partial(
        prune.activation_sparsity, prune.relufication(gated.model()), gated.batches()
    ),
    "threshold_mlps": lambda: partial(prune.threshold_mlps, gated.model(), {"first": 0.3}),
    "relufication": lambda: partial(prune.relufication, gated.model()),
    "sparse_gated_mlp": lambda: partial(
        prune.sparse_gated_mlp, drawn(3, 16), drawn(8, 16), drawn(8, 16), drawn(4, 8), 0.1
    ),
    "gumbel_keep": lambda: partial(gumbel, drawn(5, 6, 2)),
    "masked_attention": lambda: partial(prune.masked_attention, *[drawn(2, 2, 5, 4)] * 3, kept=torch.ones(2, 5)),
    "ratio_loss": lambda: partial(prune.ratio_loss, [(drawn(3, 7) > 0).float()], [0.5]),
    "train_dynamic_vit": lambda: partial(
        prune.train_dynamic_vit,
        models.vit(pretrained=False),
        drawn(4, 1, 28, 28),
        labels(4),
        ratios={1: 0.5},
        epochs=1,
        progress=False,
    ),
    "hard_concrete": lambda: partial(hard_gates, drawn(5, 6)),
    "probability_above": lambda: partial(prune.probability_above, drawn(5, 6), value=0.3),
    "expected_gate": lambda: partial(prune.expected_gate, drawn(5, 6)),
    "deterministic_gates": lambda: partial(prune.deterministic_gates, drawn(5, 6)),
    "residual_stream": lambda: partial(prune.residual_stream, byte_stream()[0], TOKENS),
    "open_gates": lambda: partial(prune.open_gates, byte_stream()[1]),
    "gated_size": lambda: partial(prune.gated_size, *byte_stream()[1:]),
    "remove_gated": lambda: partial(prune.remove_gated, *byte_stream()),
    "cofi": lambda: partial(
        distill.cofi, byte_stream()[0], TOKENS, sparsity=0.5, epochs=2, lr=1e-3, finetune_epochs=1, progress=False
    ),
    "gradient_flow": lambda: partial(prune.gradient_flow, conv_net(), images(), labels()),
    "grasp": lambda: partial(prune.grasp, conv_net(), images(), labels(), sparsity=0.5),
    "erdos_renyi": lambda: partial(prune.erdos_renyi, {"a": W, "b": W.T}, sparsity=0.5),
    "shuffled_zeros": lambda: partial(prune.shuffled_zeros, {"a": W}, {"a": W.clamp(min=0)}),
    "lottery_tickets": lambda: partial(
        prune.lottery_tickets, conv_net(), images(), labels(), rounds=1, epochs=2, lr=1e-2, progress=False
    ),
    "train_large": lambda: partial(
        compare.train_large, {"a": conv_net()}, images(), labels(), budget=416 * 8, kept=[40], lr=1e-2
    ),
    "rigl": lambda: partial(
        prune.rigl, sparse_net(), images(), labels(), epochs=2, every=1, lr=1e-2, batch_size=16, progress=False
    ),
    "sparse_evolution": lambda: partial(
        prune.sparse_evolution, sparse_net(), images(), labels(), epochs=2, lr=1e-2, batch_size=16, progress=False
    ),
    "train_gammas": lambda: partial(
        prune.train_gammas, conv_net(), images(), labels(), strength=0.1, epochs=2, progress=False
    ),
    "degree_rules": lambda: partial(prune.degree_rules, {"x": (), "y": ("x",)}, "x"),
    "coupled_nodes": lambda: partial(prune.coupled_nodes, {"x": (), "y": ("x",)}, "x", products=["y"]),
    "structure_importance": lambda: partial(
        prune.structure_importance, conv_net(), batches(), [conv_group()], order="both", loss=mean_of
    ),
    "group_importance": lambda: partial(
        prune.group_importance, conv_net(), batches(), [conv_group()], expansion="element", loss=mean_of
    ),
    "filter_norms": lambda: partial(prune.filter_norms, conv_net(), [conv_group()]),
    "reinitialize": lambda: partial(prune.reinitialize, conv_net(), seed=3),
    "scratch_epochs": lambda: partial(
        prune.scratch_epochs, conv_net(), prune.remove_channels(conv_net(), {conv_group(): [1]}), images(1), epochs=9
    ),
    "training_bill": lambda: partial(prune.training_bill, conv_net(), images(1), samples=5, epochs=2),
    "from_scratch": lambda: partial(
        prune.from_scratch, conv_net(), images(), labels(), {conv_group(): [1]}, epochs=2, lr=1e-2, progress=False
    ),
    "least_channels": lambda: partial(prune.least_channels, {conv_group(): drawn(conv_group().channels)}, share=0.5),
    "llm_pruner": lambda: partial(prune.llm_pruner, conv_net(), batches(), share=0.5, loss=mean_of),
    "load_pruned": lambda: partial(state_of_pruned, saved_pruned()),
    "slimming_channels": lambda: partial(prune.slimming_channels, conv_net(), [conv_group()], share=0.5),
    "network_slimming": lambda: partial(
        prune.network_slimming,
        conv_net(),
        images(),
        labels(),
        share=0.5,
        strength=0.1,
        epochs=2,
        finetune_epochs=1,
        progress=False,
    ),
    # obs
    "fisher_inverse": lambda: partial(obs.fisher_inverse, drawn(5, 4), damping=0.1),
    "empirical_fisher_gradients": lambda: (lambda f: partial(obs.empirical_fisher_gradients, f, f.theta))(flat()),
    "block_fisher_inverse": lambda: partial(inverse_parts, drawn(5, 8)),
    "woodfisher": lambda: partial(obs.woodfisher, drawn(8), drawn(5, 8), sparsity=0.5, damping=0.1),
    "obert": lambda: partial(obs.obert, drawn(8), drawn(5, 8), sparsity=0.5, damping=0.1, group_size=2),
    "obert_saliency": lambda: partial(obs.obert_saliency, drawn(8), blocks(), group_size=2),
    "mfac": lambda: partial(obs.mfac, drawn(8), drawn(5, 8), sparsity=0.5, damping=0.1),
    "mfac_inverse": lambda: partial(matrix_free, drawn(5, 8)),
    "joint_step": lambda: partial(obs.joint_step, drawn(8), drawn(5, 8), drawn(8) > 0, damping=0.1),
    "ebd_saliency": lambda: partial(obs.ebd_saliency, drawn(8), drawn(8), drawn(8).abs() + 0.1),
    "network_ebd": lambda: partial(obs.network_ebd, *small(), sparsity=0.5),
    "select_counts": lambda: partial(obs.select_counts, drawn(4, 5).abs(), 8),
    "l_obs_error_bound": lambda: partial(obs.l_obs_error_bound, [W], [0.1]),
    "literal_exact_obs": lambda: partial(obs.literal_exact_obs, drawn(16).double(), torch.linalg.inv(H.double()), 5),
    "literal_obq": lambda: partial(obs.literal_obq, drawn(16).double(), torch.linalg.inv(H.double()), torch.round),
    "flatten_network": lambda: partial(obs.flatten_network, *small()),
    "network_hessian": lambda: partial(obs.network_hessian, flat()),
    "hessian_diagonal": lambda: partial(obs.hessian_diagonal, flat()),
    "gauss_newton": lambda: partial(obs.gauss_newton, flat()),
    "gauss_newton_diagonal": lambda: partial(obs.gauss_newton_diagonal, flat()),
    "network_obd": lambda: partial(obs.network_obd, *small(), sparsity=0.5),
    "obs": lambda: partial(obs.obs, *small(), sparsity=0.5),
    "replay": lambda: partial(obs.replay, obs.exact_obs_trace(W, H), torch.tensor([[1, 2, 3, 4]])),
    "Trace": lambda: partial(of_trace, obs.exact_obs_trace(W, H), torch.arange(4)),
    # budget, compare, distill, metrics, cost
    "soft_targets": lambda: partial(distill.soft_targets, W, temperature=2.0),
    "soft_target_loss": lambda: partial(distill.soft_target_loss, W, W.round(), temperature=2.0),
    "distillation_loss": lambda: partial(
        distill.distillation_loss, W, W.round(), torch.arange(4), temperature=2.0, alpha=0.5
    ),
    "hint_loss": lambda: partial(distill.hint_loss, W, W.round()),
    "hint_projection": lambda: partial(distill.hint_projection, W, drawn(4, 5)),
    "born_again": lambda: (
        lambda nets: partial(distill.born_again, nets.__getitem__, images(), labels(), generations=1, **TWO_EPOCHS)
    )([net(), net()]),
    "ensemble_log_probabilities": lambda: partial(distill.ensemble_log_probabilities, [W, W.round()]),
    "train_hints": lambda: partial(
        distill.train_hints, net(), net(), images(), hints={"1": "1"}, epochs=2, lr=1e-2, progress=False
    ),
    "layer_by_layer": lambda: partial(
        distill.layer_by_layer, net(), batches(), ["1", "3"], weight_bits=3, inputs="student", steps=2
    ),
    "train_student": lambda: partial(
        distill.train_student, net(), conv_net(), images(), labels(), temperature=2.0, alpha=0.5, **TWO_EPOCHS
    ),
    "distilbert_loss": lambda: partial(
        distill.distilbert_loss,
        W,
        W.round(),
        torch.arange(4),
        student_hidden=drawn(4, 5),
        teacher_hidden=drawn(4, 5).round(),
    ),
    "distilbert": lambda: partial(
        distill.distilbert, net(), net(), images(), labels(), hidden="1", cosine=0.5, **TWO_EPOCHS
    ),
    "onebit_loss": lambda: partial(
        distill.onebit_loss,
        W,
        W.round(),
        student_hidden=[drawn(4, 5)],
        teacher_hidden=[drawn(4, 5).round()],
    ),
    "onebit_student": lambda: partial(
        distill.onebit_student, quant.prepare_onebit(net()), net(), images(), hidden=["1"], **TWO_EPOCHS
    ),
    "keep_layers": lambda: partial(distill.keep_layers, nn.Sequential(net()), "0", (0, 1)),
    "sequence_student": lambda: partial(
        distill.sequence_student, *WORDS, outputs=labels(36).view(12, 3).flip(1), end=0, alpha=0.5, **TWO_EPOCHS
    ),
    "in_context_student": lambda: partial(
        distill.in_context_student,
        *(WORDS[0], WORDS[0], WORDS[2], torch.tensor([False, True, True]).expand(12, 3)),
        alpha=0.5,
        text=labels(24).view(12, 2),
        **TWO_EPOCHS,
    ),
    "instruction_rows": lambda: partial(distill.instruction_rows, [[1, 2], [3]], [[2], [1, 0]], end=0),
    "response_loss": lambda: partial(distill.response_loss, W, torch.tensor([2, -100, 3, 15])),
    "teacher_outputs": lambda: partial(distill.teacher_outputs, *WORDS[:2], beam=2, length=3, end=0),
    "minillm": lambda: partial(distill.minillm, *WORDS[:1] * 2, WORDS[1], length=3, end=0, **TWO_EPOCHS),
    "minillm_loss": lambda: partial(
        distill.minillm_loss, drawn(2, 3, 4), drawn(2, 3, 4).round(), labels(6).view(2, 3) % 4, end=0, mixing=0.2
    ),
    "fit_gaussian": lambda: partial(distill.fit_gaussian, *MIXTURE, direction="reverse"),
    "gaussian_divergence": lambda: partial(
        distill.gaussian_divergence, drawn(3), drawn(3).exp(), *MIXTURE, direction="reverse"
    ),
    # generate
    "search_outputs": lambda: partial(generate.search_outputs, *WORDS[:2], beam=2, length=3, end=0),
    "sample_outputs": lambda: partial(generate.sample_outputs, *WORDS[:2], length=3, end=0),
    "sample_rationales": lambda: partial(generate.sample_rationales, *WORDS[:2], samples=2, length=3, end=0),
    "majority_vote": lambda: partial(generate.majority_vote, torch.tensor([[1, 2], [1, 0], [3, 0]])),
    "voting_accuracy": lambda: partial(generate.voting_accuracy, torch.tensor([0.5, 0.3, 0.2]), 5),
    "output_log_probability": lambda: partial(generate.output_log_probability, *WORDS, end=0),
    "compressed_student": lambda: partial(
        distill.compressed_student, sparse_net(), net(), images(), temperature=1.0, **TWO_EPOCHS
    ),
    "build_database": lambda: partial(budget.build_database, net(), hessians(), LEVELS, progress=False),
    "load_database": lambda: partial(budget.load_database, saved()),
    "stitch": lambda: partial(budget.stitch, net(), database(), [1, 2]),
    "level_losses": lambda: partial(budget.level_losses, net(), database(), loss_of, progress=False),
    "kept_share": lambda: partial(compare.kept_share, 4),
    "pruning_snr": lambda: partial(compare.pruning_snr, sources.sample(W), bits=4),
    "compare": lambda: partial(compare.compare, sources.Gaussian(), bits=3),
    "crossover_kurtosis": lambda: partial(compare.crossover_kurtosis, 3),
    "quantization_snr": lambda: partial(compare.quantization_snr, sources.sample(W), bits=3),
    "bits_per_byte": lambda: partial(compare.bits_per_byte, ByteTable(named=False), labels(64), context=16),
    "quantize_matrices": lambda: partial(compare.quantize_matrices, net(), bits=4),
    "fit_power_law": lambda: partial(compare.fit_power_law, SIZES, 1 + SIZES.double() ** -0.5),
    "best_precision": lambda: partial(
        compare.best_precision, {3: ([1, 2, 9], [3.0, 2, 1]), 4: ([2, 9], [1, 2.0])}, SIZES
    ),
    "snr_db": lambda: partial(metrics.snr_db, W, W.round()),
    "accuracy": lambda: partial(metrics.accuracy, net(), images(), labels()),
    "perplexity": lambda: partial(metrics.perplexity, ByteTable(named=True), [labels(20).view(2, 10)]),
    "kl_divergence": lambda: partial(metrics.kl_divergence, W, W.round()),
    "embedding_similarity": lambda: partial(metrics.embedding_similarity, W, W + 0.1),
    "reliability": lambda: partial(of_reliability, W.flatten().sigmoid(), W.flatten() > 0),
    "expected_calibration_error": lambda: partial(metrics.expected_calibration_error, W, labels(4)),
    "fit_temperature": lambda: partial(
        metrics.fit_temperature, torch.eye(4) + 0.1 * W[:, :4], torch.tensor([0, 1, 2, 0])
    ),
    "add_noise": lambda: partial(metrics.add_noise, W, std=0.1),
    "fgsm": lambda: partial(metrics.fgsm, net(), images(), labels(), epsilon=0.1),
    "random_tokens": lambda: partial(metrics.random_tokens, TOKENS, share=0.5, allowed=torch.arange(48) > 3),
    "hotflip": lambda: partial(
        metrics.hotflip,
        models.byte_lm(32, pretrained=False),
        TOKENS,
        TOKENS,
        embedding="embedding",
        allowed=torch.arange(256) < 64,
        losses=first_losses,
        candidates=2,
    ),
    "subgroup_accuracy": lambda: partial(metrics.subgroup_accuracy, W.flatten() > 0, labels(64)),
    "worst_by_chance": lambda: partial(metrics.worst_by_chance, W.flatten() > 0, labels(64), draws=5),
    "changed_predictions": lambda: partial(metrics.changed_predictions, W, W.round(), labels(4)),
    "ranked_groups": lambda: partial(metrics.ranked_groups, W.flatten()),
    "ink": lambda: partial(metrics.ink, images().abs()),
    "slant": lambda: partial(metrics.slant, images().abs()),
    "model_cost": lambda: partial(model_cost, conv_net(), images(2)),
    # deploy, train, models, data
    "save_lora_adapter": lambda: partial(bytes_of_adapter, corrected()),
    "load_lora_adapter": lambda: partial(deploy.load_lora_adapter, net(), saved_adapter(corrected())),
    # deploy
    "compress_model": lambda: partial(
        deploy.compress_model, conv_net(), method="gptq", bits=4, data=batches(), held_out=batches(), progress=False
    ),
    "compare_models": lambda: partial(deploy.compare_models, kept()),
    "open_model": lambda: partial(deploy.open_model, "mlp"),
    "train": lambda: partial(trained, net(), images(), labels()),
    "confident_labels": lambda: partial(confident_labels, W.softmax(1), best_per_class=1),
    "network_fit": lambda: partial(
        lambda nets, x, y: network_fit(nets.__getitem__, epochs=2, lr=1e-2)(x, y)(x), [net()], images(), labels()
    ),
    "self_training": lambda: partial(
        of_fit,
        partial(self_training, means_of_classes, images(8), labels(8), images(), rounds=2, best=3),
    ),
    "co_training": lambda: partial(
        of_fit,
        partial(co_training, [means_of_classes] * 2, [images(8)] * 2, labels(8), [images()] * 2, **FEW_LABELS),
    ),
    "meta_pseudo_labels": lambda: partial(both_trained, net(), net(), images(8), labels(8), images()),
    "net_aug": lambda: partial(
        net_aug, widened, images(), labels(), widths=(2,), epochs=2, lr=1e-2, batch_size=16, progress=False
    ),
    "add_lora": lambda: partial(add_lora, net(), ["1"], rank=2, alpha=4.0),
    "merge_lora": lambda: partial(merge_lora, corrected()),
    "byte_lm": lambda: partial(models.byte_lm, 64, pretrained=False),
    "convnet": lambda: models.convnet,
    "mlp": lambda: models.mlp,
    "vit": lambda: models.vit,
    "lenet_300_100": lambda: models.lenet_300_100,
    "digits": lambda: data.digits,
    "random_shift": lambda: partial(data.random_shift, images(), layer()["generator"]),
    "make_layer": lambda: partial(data.make_layer, 4, 8, 10),
    "group_products": lambda: partial(data.group_products, 20, seed=1),
    "checkable_instructions": lambda: partial(data.checkable_instructions, 20, seed=1),
    "labelled_symbols": lambda: partial(data.labelled_symbols, 20, seed=1),
    "token_decoder": lambda: partial(models.token_decoder, 12, 16, 1),
    "in_context_teacher": lambda: partial(models.in_context_teacher, pretrained=False),
    "number_words": lambda: partial(data.number_words, 20, seed=1),
    "token_batches": lambda: partial(data.token_batches, letters, "abcdefgh" * 9, length=4, count=4, batch_size=2),
}
# Public functions that are not called here, and why.
LEFT_OUT = {
    "they make no tensors, or a generator makes them where it is read": """packed_nbytes sparse_nbytes is_layer hooked
        replace_module batchnorm_pairs cubic_schedule erdos_renyi_densities choose_levels density_levels
        pareto_front layer_nbytes
        layer_time layer_energy balance_tokens peak_rate batch_starts find_group committed_table committed_results
        python_reference python_sentences reference_bytes cache_dir fetch derived input_matrices random_batches
        vit_multiply_adds
        spread_layers
        lora_layers lora_parameters scaled_rates emissions_kg energy_kwh kv_cache_nbytes overparameterized_width
        training_memory weights_nbytes""",
    "it takes models of transformers, and its own test calls it": "export_compressed_tensors",
    "they work on texts": "list_prompt parse_numbered rouge_l sift sift_pairs vote vote_each",
    "they ask a language model, and their own tests call them": "self_instruct synthetic_classifier",
    "they call the model as their caller would": "call_model gating",
    "they run a model that is fetched, through functions that are called here": "measure_method picture_of_methods",
}
FETCHED = "minilm embed mobilenet_v2_weights mobilenet_v2 smollm2 mnist5k mnist_calibration".split()
BARE = " ".join(LEFT_OUT.values()).split()


def everything() -> dict[str, Callable]:
    """Every public function by its name, a kernel by "kernels." and its name."""
    found = {}
    for home, name, function in public_functions():
        found["kernels." * home.startswith("mlcomp.kernels.") + name] = function
    return found


EVERYTHING, LAYERWISE = everything(), set(FUNCTIONS.values())
CALLS = {n: partial(lambda f: partial(f, **good_arguments(f)), f) for n, f in EVERYTHING.items() if f in LAYERWISE}
CALLS |= OTHERS


def same(a, b, path: str) -> None:
    """Raise unless both hold the same numbers, in the same dtypes, in ordinary tensors on the same device."""
    assert type(a) is type(b), f"{path}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        assert not b.is_inference(), f"{path} was made in inference mode"
        torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{path}: {text}")
    elif isinstance(a, nn.Module):
        same(dict(a.state_dict()), dict(b.state_dict()), path)
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            same(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            same(left, right, f"{path}[{i}]")
    elif is_dataclass(a):
        for field in fields(a):
            if field.name != "seconds":  # a report tells them, never twice the same
                same(getattr(a, field.name), getattr(b, field.name), f"{path}.{field.name}")
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=1e-12, nan_ok=True), path  # LAPACK's sums go by where the memory lies
    elif not callable(a):
        assert a == b, path


def outcome(call: Callable) -> tuple:
    """Return what the call gives, and what can be decoded from that."""
    result = call()
    coded = hasattr(result, "dequantize") and not isinstance(result, torch.Tensor)
    return result, result.dequantize() if coded else None


def test_every_public_function_is_called_or_left_out_for_a_reason():
    functions = {name for name in EVERYTHING if not name.startswith("kernels.")}
    assert functions - set(CALLS) == {*BARE, *FETCHED}
    assert [name for name, f in EVERYTHING.items() if name not in BARE and not hasattr(f, "__wrapped__")] == []


SLOW = {"crossover_kurtosis", "kernels.exact_obs", "kernels.obq"}


def check_contexts(name, contexts):
    want = outcome(CALLS[name]())
    for context in contexts:
        call = CALLS[name]()
        with CONTEXTS[context]():
            got = outcome(call)
        same(want, got, f"{name} under {context}")
    assert torch.get_default_dtype() is torch.float32 and torch.empty(0).is_cpu


# Every third function in one context, another for each, the same ones each time.
@pytest.mark.parametrize("name", [n for n in CALLS if n not in SLOW and zlib.crc32(n.encode()) % 3 == 0])
def test_the_result_is_the_same_in_a_context(name, as_user):
    check_contexts(name, [list(CONTEXTS)[zlib.crc32(name.encode()) // 3 % len(CONTEXTS)]])


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_the_same_in_every_context(name, as_user):
    check_contexts(name, CONTEXTS)


# table_quantize hands on the codebook that it was given.
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, f in EVERYTHING.items() if f in LAYERWISE and n != "table_quantize"])
def test_arguments_that_were_made_in_inference_mode(name, as_user):
    want = outcome(CALLS[name]())
    with torch.inference_mode():
        call = CALLS[name]()
    same(want, outcome(call), f"{name} of tensors that were made in inference mode")


GRADIENTS = {
    "straight_through": lambda x: quant.straight_through(x, x.detach().round()),
    "ste_round": quant.ste_round,
    "lsq_quantize": lambda x: quant.lsq_quantize(x, torch.full_like(x[0, 0], 0.3), low=-4, high=3),
    "output_loss": lambda x: layerwise.output_loss(x, H),
    "soft_target_loss": lambda x: distill.soft_target_loss(x, W.round(), temperature=2.0),
    "hadamard_transform": quant.hadamard_transform,
    "squared_error": lambda x: quant.squared_error(x, W + 1),
    "pseudo_noise": lambda x: quant.pseudo_noise(
        x, SIZES.new_full((8,), 3), group_size=8, generator=torch.Generator("cpu").manual_seed(0)
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_pass_in_every_context_that_records_them(name):
    found = {}
    for context in ("deterministic", "autocast", "float64", "bfloat16", "half elsewhere"):
        x = W.clone().requires_grad_()
        with CONTEXTS[context]():
            loss = GRADIENTS[name](x).square().sum()
        (found[context],) = torch.autograd.grad(loss, x)
        assert found[context].any()
        same(found["deterministic"], found[context], f"{name} under {context}")
    with torch.no_grad():
        assert not GRADIENTS[name](W.clone().requires_grad_()).requires_grad


def test_what_is_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        model, _ = layerwise.compress(net(), batches(), partial(quant.gptq, bits=4), progress=False)
        inputs = images()
    before = [p.clone() for p in model.parameters()]
    train(model, inputs, labels(), epochs=1, lr=0.1, progress=False)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("context", ["inference mode", "autocast"])
def test_a_model_whose_own_forward_sets_a_context(context):
    """The sums over its first layer's inputs are as without; in inference mode so is all else."""

    class InContext(nn.Sequential):
        def forward(self, x):
            with CONTEXTS[context]():
                return super().forward(x)

    plain, model = net(), InContext(*net())
    names = ["1", "3"] if context == "inference mode" else ["1"]
    want, got = (layerwise.collect_hessians(m, batches(), names) for m in (plain, model))
    same(want, got, "hessians")
    if context == "inference mode":
        made = [
            layerwise.compress(m, batches(), partial(quant.gptq, bits=4), progress=False)[0] for m in (plain, model)
        ]
        same(*(m.state_dict()["3.weight"] for m in made), "compressed")
