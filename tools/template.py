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
#     path: core
#     goals:
#     - quantize a layer's weights to a few bits by rounding, and bound the error
#     - predict how the error changes with the number of bits
#     - say which weights spoil a grid, and why
#     needs:
#     - matrices and what a linear layer does; nothing of this book
#     summary:
#     - Rounding each weight to the nearest point of its row's grid needs no data.
#     - Each bit halves the scale, and with it the error.
#     - A few large weights stretch the grid for all others.
#     use_when: there is no calibration data and eight bits, or four in small groups, are few enough.
#     dont_when: two or three bits are wanted, or a few weights of a row are much larger than the rest.
#     cost: one pass over the weights, O(rows × columns); codes of b bits and one scale for each row.
# ---
#
# How to use this file: copy it to lectures/<lecture>/NN_topic.py and edit. Then, in this order,
#
#     python tools/notebooks.py from-py lectures/<lecture>/NN_topic.py     (stamps header, set-up and footer, formats)
#     python tools/notebooks.py run     lectures/<lecture>/NN_topic.ipynb  (fresh kernel, stores the outputs)
#     python tools/notebooks.py verify  lectures/<lecture>/NN_topic.ipynb
#
# and add the notebook to _toc.yml. The metadata above are required, but for `slides`: header and footer are made from
# them (`goals` complete "You will be able to", `needs` are Markdown with links). `lecture` is a key of
# mlcomp_lectures in _config.yml, `syllabus` holds the ids that the notebook walks through. Delete no section without
# a reason; the order is the same in every notebook. At most 90 seconds on two cores, 4 GB. What `verify` checks is in
# tools/lint.py.

# %% [markdown]
# A layer's weights are stored in 16 or 32 bits. Most of those bits carry nothing that the network needs. How many can
# we drop by simply rounding, and what do we pay? *(The problem, in a paragraph a newcomer can follow: what is given,
# what is wanted, what it costs.)*

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

from mlcomp.data.synthetic import make_layer
from mlcomp.notebook import say, show, show_drawing, show_source, your_turn
from mlcomp.quant import rtn

# %% [markdown]
# ## The idea
#
# The values that a quantized weight may take are its **grid**. The distance between neighbours is the **scale** $s$.
# *(A drawing before the algebra. A term is bold where the text defines it, and is not used before.)*

# %% tags=["remove-input"]
show_drawing(
    "rounding_to_a_grid",
    "A number line with four grid points, codes 0 to 3, a scale s apart. A weight between codes 1 and 2 moves to "
    "code 2; its error is at most half the scale.",
)

# %% [markdown]
# ## Derivation
#
# *(Statements are quotations with a bold title, numbered in one count for each notebook; the book makes boxes of
# them, and links of the words "Theorem 1". Long proofs go into a fold. Every step that a reader could doubt is
# checked in a cell.)*
#
# > **Theorem 1 (Error of rounding).** Let $Q(w) = s\,\mathrm{round}(w/s)$. Then $|w - Q(w)| \le s/2$.
#
# <details><summary>Proof</summary>
#
# The nearest whole number to $w/s$ is at most $1/2$ away from it; multiply by $s$. $\square$
#
# </details>
#
# Papers are links, [Jacob et al. (2018)](https://arxiv.org/abs/1712.05877) in the sentence or at its end
# ([Jacob et al., 2018](https://arxiv.org/abs/1712.05877)), to the address that `book/references.bib` has for them.

# %% [markdown]
# ## Step by step
#
# *(Tiny steps, one idea and one output a cell, at most 20 lines, on an example small enough to print. A cell with the
# tag `nbval-check-output` is compared with its stored output to the character: print rounded, deterministic values.)*
#
# Two bits make four points, and four points have three gaps:

# %% tags=["nbval-check-output"]
w = torch.tensor([[-0.60, -0.05, 0.20, 0.90]])
low, high = w.min(), w.max()
s = (high - low) / (2**2 - 1)
z = torch.round(-low / s)
codes = torch.clamp(torch.round(w / s) + z, 0, 3)
print("scale", round(s.item(), 4), "codes", codes.int().tolist())

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
# Both agree. *(Checks stand in a folded cell of their own.)*

# %% tags=["hide-input"]
weight, inputs, _ = make_layer(64, 128, 512, seed=0)
for bits in (2, 3, 4, 8):
    torch.testing.assert_close(round_to_grid(weight, bits), rtn(weight, bits=bits).dequantize())

# %% [markdown]
# ## On real data
#
# *(A real layer, a real model: `mlcomp.models`, `mlcomp.data`. A result comes after a question about it.)*
#
# > **Predict first.** From two bits to three: by what factor does the error of the layer's output fall?
#
# <details><summary>Answer</summary>
#
# A little more than two: three gaps become seven, so the scale shrinks to 3/7, and the error with it.
#
# </details>

# %%
error = {}
for bits in (2, 3, 4, 8):
    difference = (weight - rtn(weight, bits=bits).dequantize()) @ inputs
    error[bits] = (difference.norm() / (weight @ inputs).norm()).item()

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3))
ax.semilogy(list(error), list(error.values()), "o-")
ax.set(xlabel="bits per weight", ylabel="relative output error", title="Each bit halves the error")
ax.set_xticks(list(error))
show(
    fig,
    "The relative error of the layer's output on a log axis, against bits per weight: a straight line that falls "
    "from 2 to 8 bits.",
)

# %% [markdown]
# *(Numbers in the text come from the run: a cell says them in Markdown. The next sentence reads the result: what do
# we see, why, how sure.)*

# %% tags=["remove-input"]
say(f"Four bits cost {100 * error[4]:.1f} % of the layer's output.")

# %% tags=["hide-input"]
assert error[2] > error[3] > error[4] > error[8]

# %% [markdown]
# > **The paper's number beside ours.** *(What the paper or the lecture reports, on which model, ours, and why they
# > differ. If our scale is not theirs, say so in one sentence.)*
#
# ## What breaks it
#
# *(An input on which the method fails, shown by running it.)*
#
# > **Predict first.** One column of the weight grows fifty times. What happens to the error of all the other columns?
#
# <details><summary>Answer</summary>
#
# It grows, too: the large column stretches every row's grid, and all weights of a row share its scale.
#
# </details>

# %% tags=["nbval-check-output"]
outlier = weight.clone()
outlier[:, 0] *= 50
broken = outlier - rtn(outlier, bits=4).dequantize()
whole = weight - rtn(weight, bits=4).dequantize()
print(f"{broken[:, 1:].norm() / whole[:, 1:].norm():.0f} times the error")

# %% tags=["hide-input"]
assert broken[:, 1:].norm() > 5 * whole[:, 1:].norm()

# %% [markdown]
# ## Your turn
#
# > **Your turn.** A symmetric grid has no zero point: its codes run from $-(2^{b-1}-1)$ to $2^{b-1}-1$. Write its
# > scale.


# %%
def symmetric_scale(weight, bits):
    """Return the scale of each row, shape (rows, 1)."""
    return ...  # your code


# %% tags=["hide-input"]
@your_turn(symmetric_scale)
def check(symmetric_scale):
    got = symmetric_scale(torch.tensor([[-1.4, 0.7], [0.3, 0.6]]), 3)
    assert got.shape == (2, 1), "One scale for each row: keep the dimension (keepdim=True)."
    assert got[0] > 0, "The largest weight may be negative: take absolute values first."
    assert not torch.isclose(got[1], torch.tensor(0.6 / 4)), "Codes run to 2**(bits−1) − 1, not to 2**(bits−1)."
    assert torch.allclose(got * 3, torch.tensor([[1.4], [0.6]])), "Three bits: the end of the grid is code 3."


# %% [markdown]
# ## Quiz
#
# **1.** Why does one more bit halve the error, and not more?
#
# <details><summary>Answer</summary>
#
# It doubles the number of points, so the scale halves, and the error is at most half the scale (Theorem 1).
#
# </details>
#
# **2.** Which weights of a row have the largest relative error?
#
# <details><summary>Answer</summary>
#
# The small ones: all have the same bound on the absolute error.
#
# </details>
#
# **3.** Does rounding need calibration data?
#
# <details><summary>Answer</summary>
#
# No. The grid follows from the weights alone; that is why it cannot know which errors matter.
#
# </details>
#
# ## Exercises
#
# *(Two or three for the head and the hand; graded ones live in `solutions/` and are linked here.)*
#
# > **Exercise 1 (bits for one percent).** How many bits keep the error below 1 %? Predict it from Theorem 1 before
# > you try.
#
# <details><summary>Solution</summary>
#
# Each bit halves $s$, hence the error; start from the figure above.
#
# </details>
#
# ## Reading
#
# - [Jacob et al. (2018)](https://arxiv.org/abs/1712.05877): the affine grid, and why integer arithmetic can use it.
