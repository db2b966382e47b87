# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   mlcomp:
#     title: Round to nearest
#     lecture: 2
#     slides: 3–5
#     syllabus: ['1.02', '1.03']
# ---
#
# How to use this file: copy it to lectures/<lecture>/NN_topic.py and edit. Then, in this order,
#
#     python tools/notebooks.py from-py lectures/<lecture>/NN_topic.py     (stamps the first two cells, formats)
#     python tools/notebooks.py run     lectures/<lecture>/NN_topic.ipynb  (fresh kernel, stores the outputs)
#     python tools/notebooks.py verify  lectures/<lecture>/NN_topic.ipynb
#
# and add the notebook to _toc.yml. `title`, `lecture` (a key of mlcomp_lectures in _config.yml) and `syllabus` (the
# ids the notebook walks through; the method index is made from them) are required, `slides` is not. Do not write the
# title or the set-up cell: `from-py` does, and it leaves this comment out. Delete no section without a reason; the
# order is the same in every notebook. At most 90 seconds on two cores, 4 GB.

# %% [markdown]
# A layer's weights are stored in 16 or 32 bits. Most of those bits carry nothing that the network needs. How many can
# we drop by simply rounding, and what do we pay? *(The problem, in a paragraph a newcomer can follow: what is given,
# what is wanted, what it costs. Code lines of at most 88 characters need no scrolling.)*

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

from mlcomp.data.synthetic import make_layer
from mlcomp.notebook import glue, show_source
from mlcomp.quant import rtn

# %% [markdown]
# ## The idea in one picture
#
# *(One figure, made by code. `hide-input` folds the plotting code away in the book. Figures have labels, units and a
# caption sentence above or below; end with `plt.show()`, so that no text output is left behind.)*

# %% tags=["hide-input"]
x = torch.linspace(-1, 1, 400)
step = 0.25
fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(x, x, color="0.6", label="weight")
ax.plot(x, step * torch.round(x / step), label="rounded")
ax.set(xlabel="weight $w$", ylabel="value used", title="Rounding to a grid of step 0.25")
ax.legend()
plt.show()

# %% [markdown]
# ## Derivation
#
# *(Statements and proofs in blocks; every step that a reader could doubt is checked in a cell, symbolically or by
# numbers. Labels start with the notebook's topic so that they are unique in the whole book.)*
#
# ```{prf:theorem} Error of rounding
# :label: rtn-bound
# Let $Q(w) = s\,\mathrm{round}(w/s)$. Then $|w - Q(w)| \le s/2$.
# ```
#
# ```{prf:proof}
# The nearest whole number to $w/s$ is at most $1/2$ away from it; multiply by $s$.
# ```
#
# Refer to it as {prf:ref}`rtn-bound`, and to papers as {cite:t}`jacob2018quantization` in the sentence or
# {cite:p}`jacob2018quantization` at its end. Keys are in `book/references.bib`.

# %% [markdown]
# ## Step by step
#
# *(Tiny steps, one idea a cell, on an example small enough to print. A cell marked `NBVAL_CHECK_OUTPUT` is compared
# with its stored output to the character: print rounded, deterministic values.)*

# %%
# NBVAL_CHECK_OUTPUT
w = torch.tensor([[-0.60, -0.05, 0.20, 0.90]])
low, high = w.min(), w.max()
s = (high - low) / (2**2 - 1)  # 2 bits: 4 points, 3 steps
z = torch.round(-low / s)
codes = torch.clamp(torch.round(w / s) + z, 0, 3)
print("step", round(s.item(), 4), "codes", codes.int().tolist())

# %% [markdown]
# ## Assembled


# %%
def round_to_grid(weight, bits):
    """Quantize each row to its own grid; the lecture's formula, line by line."""
    low = weight.min(1, keepdim=True).values.clamp(max=0)
    high = weight.max(1, keepdim=True).values.clamp(min=0)
    s = (high - low) / (2**bits - 1)
    z = torch.round(-low / s)
    codes = torch.clamp(torch.round(weight / s) + z, 0, 2**bits - 1)
    return s * (codes - z)


# %% [markdown]
# ## The library's version
#
# *(Shown from the source, never pasted: it cannot go out of date.)*

# %% tags=["hide-input"]
show_source(rtn)

# %% [markdown]
# Both agree:

# %%
weight, inputs, _ = make_layer(64, 128, 512, seed=0)
for bits in (2, 3, 4, 8):
    torch.testing.assert_close(round_to_grid(weight, bits), rtn(weight, bits=bits).dequantize())

# %% [markdown]
# ## On real data
#
# *(A real layer, a real model: `mlcomp.models`, `mlcomp.data`. Numbers in the text come from the run, through `glue`;
# `{glue:text}` puts them into the sentence. A claim is an `assert`.)*

# %%
error = {}
for bits in (2, 3, 4, 8):
    difference = (weight - rtn(weight, bits=bits).dequantize()) @ inputs
    error[bits] = (difference.norm() / (weight @ inputs).norm()).item()
glue("rtn-error-4", round(100 * error[4], 1))
assert error[2] > error[3] > error[4] > error[8]

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3))
ax.semilogy(list(error), list(error.values()), "o-")
ax.set(xlabel="bits per weight", ylabel="relative output error", title="Each bit halves the error")
ax.set_xticks(list(error))
plt.show()

# %% [markdown]
# Four bits cost {glue:text}`rtn-error-4` % of the layer's output.
#
# ```{admonition} The paper's number beside ours
# :class: note
# *(What the paper or the lecture reports, on which model, ours, and why they differ. If our scale is not theirs, say
# so in one sentence.)*
# ```

# %% [markdown]
# ## What breaks it
#
# *(An input on which the method fails, shown by running it.)*

# %%
outlier = weight.clone()
outlier[:, 0] *= 50  # one large input column stretches every row's grid
broken = outlier - rtn(outlier, bits=4).dequantize()
whole = weight - rtn(weight, bits=4).dequantize()
assert broken[:, 1:].norm() > 5 * whole[:, 1:].norm()

# %% [markdown]
# ## Exercises
#
# *(Two or three for the head and the hand; graded ones live in `solutions/` and are linked here.)*
#
# ```{exercise}
# :label: rtn-exercise-bits
# How many bits keep the error below 1 %? Predict it from {prf:ref}`rtn-bound` before you try.
# ```
#
# ```{solution} rtn-exercise-bits
# :class: dropdown
# Each bit halves $s$, hence the error; start from the figure above.
# ```
#
# ## Reading
#
# - {cite:t}`jacob2018quantization`: the affine grid, and why integer arithmetic can use it.
