"""The assignment step of k-means against cdist and argmin, and scikit-learn on a CPU."""

import torch

from benchmarks.measure import Case
from mlcomp.quant.vector.kmeans import kmeans_assign as reference


def cases(device):
    on_gpu = device.type == "cuda"
    n, entries, dim = (7_340_032, 256, 8) if on_gpu else (100_000, 256, 8)
    points = torch.randn(n, dim, device=device).to(torch.bfloat16 if on_gpu else torch.float32)
    codebook = torch.randn(entries, dim, device=device)
    versions = {"reference": lambda: reference(points, codebook)}
    parts = points.split(2**20)

    def cdist():
        return torch.cat([torch.cdist(part.float(), codebook).argmin(1) for part in parts])

    if on_gpu:
        from mlcomp.kernels.kmeans_assign import kmeans_assign

        versions = {"kernel": lambda: kmeans_assign(points, codebook), "cdist + argmin": cdist} | versions
    else:
        versions["cdist + argmin"] = cdist
        from sklearn.cluster import KMeans

        scikit = KMeans(entries, init=codebook.numpy(), n_init=1, max_iter=1).fit(points[:10_000].numpy())
        scikit.cluster_centers_ = codebook.numpy().astype(scikit.cluster_centers_.dtype)
        versions["scikit-learn"] = lambda: scikit.predict(points.numpy())

    def check():
        got = next(iter(versions.values()))().long()
        for first in range(0, n, 2**20):
            x, at = points[first : first + 2**20].double(), got[first : first + 2**20]
            score = codebook.double().square().sum(1) / 2 - x @ codebook.double().T
            assert (score.gather(1, at[:, None])[:, 0] - score.amin(1) <= 1e-4).all()

    size = points.nbytes + 4 * n + codebook.nbytes
    # Each of the N·K scores takes two comparisons, for the maximum and for its place. They run at a quarter of the
    # rate of multiply-adds, so they count as eight operations. (The products have the matrix units.)
    yield Case(
        "kmeans_assign", f"{n}×{dim}, {entries} entries", "bf16" if on_gpu else "fp32", versions, check, size,
        8 * n * entries, "fp32", ("kernel", "cdist + argmin"),
    )  # fmt: skip
