"""Wrong answers to the exercises on distillation of language models and trustworthiness."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture5_distillation")
_kl = partial(_mutated, "kl-gradients")
_minima = partial(_mutated, "reverse-minima")
_reward = partial(_mutated, "future-rewards")
_gradient = partial(_mutated, "minillm-gradient")
_weights = partial(_mutated, "mixture-weights")
_context = partial(_mutated, "in-context-loss")
_target = partial(_mutated, "instruction-targets")
_vote = partial(_mutated, "vote-accuracy")
_kept = partial(_mutated, "kept-rationales")
_error = partial(_mutated, "calibration-error")
_attack = partial(_mutated, "gradient-sign")
_trust = partial(_mutated, "beyond-accuracy")

_REVERSE = "q * (ratio - (q * ratio).sum(1, keepdim=True))"
_DIVERGENCE = "(log_q.exp() * (log_q - log_p)).sum(-1)"
_AFTER = "rewards.flip(1).cumsum(1).flip(1) - rewards"
_SINGLE = "single = q * (ratio - (q * ratio).sum(1, keepdim=True))"
_TARGETS = "[-100 if t + 1 < len(prompt) else tokens[t + 1] for t in range(len(tokens) - 1)]"
_WINS = "sum(votes) == n and votes[0] > 0 and votes[0] == max(votes[:-1])"
_LABEL = "label + beta * text"


def _binned(place: str, gap: str) -> str:
    """Return an answer that goes through the bins one by one."""
    return function(
        "calibration_error(confidence, right, bins)",
        f"""
        total = torch.zeros((), dtype=confidence.dtype)
        for m in range(bins):
            here = {place}
            if here.any():
                acc, conf = right[here].double().mean(), confidence[here].mean()
                total = total + {gap}
        return total
        """,
    )


_EDGES = "(confidence > m / bins) & (confidence <= (m + 1) / bins) | ((confidence == 0) & (m == 0))"
_GAP = "here.double().mean() * (acc - conf).abs()"

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "kl-gradients": [
        ("the reverse alone", _kl(("return q - p, ", "return ")), "return two tensors: forward and reverse"),
        (
            "swapped",
            _kl((f"q - p, {_REVERSE}", f"{_REVERSE}, q - p")),
            "the two are swapped: forward is KL(p ‖ q), with the teacher's probabilities in front",
        ),
        (
            "turned round",
            _kl(("return q - p, q", "return p - q, -q")),
            "turned round: a step against the gradient must lower the divergence",
        ),
        (
            "no mean",
            _kl((_REVERSE, "q * ratio")),
            "softmax has a sum of 1: of log(q/p) its mean under q is taken away, which is the divergence itself",
        ),
        (
            "by probabilities",
            _kl((f"q - p, {_REVERSE}", "-p / q, ratio + 1")),
            "these are derivatives by the probabilities: go on to the logits",
        ),
        (
            "mean",
            _kl(("q - p, q *", "(q - p) / len(z), q / len(z) *")),
            "each example by itself: nothing is divided by their number",
        ),
        (
            "no entropy",
            _kl(("z.log_softmax(1) - p.log()", "-p.log()")),
            "the student's own entropy is missing in the reverse direction: log q is differentiated, too",
        ),
        (
            "the plain mean",
            _kl(("(q * ratio).sum(1, keepdim=True)", "ratio.mean(1, keepdim=True)")),
            "not the gradient of the ",
        ),
        (
            "the mean under p",
            _kl(("(q * ratio)", "(p * ratio)")),
            " divergence: try two classes by hand",
        ),
        ("mutates the logits", _kl(("z.softmax(1)", "z.mul_(2).softmax(1)")), "changed its argument"),
    ],
    "reverse-minima": [
        (
            "forward",
            _minima((_DIVERGENCE, "(log_p.exp() * (log_p - log_q)).sum(-1)")),
            "this is the forward divergence: its only minimum has the mean and the variance of p",
        ),
        (
            "the least",
            _minima(
                (
                    "return lowest.nonzero() + 1",
                    "best = int(table.argmin())\n    return torch.tensor([[best // b, best % b]])",
                )
            ),
            "all local minima, not the least of them",
        ),
        (
            "edges",
            _minima(
                (
                    "    inner = table[1:-1, 1:-1]",
                    "    pad = torch.nn.functional.pad\n"
                    "    table = pad(table, (1, 1, 1, 1), value=math.inf)\n    inner = table[1:-1, 1:-1]",
                ),
                ("lowest.nonzero() + 1", "lowest.nonzero()"),
            ),
            "the outer rows and columns do not count: what lies behind them is not known",
        ),
        (
            "along the means",
            _minima(("if (i, j) != (1, 1):", "if j == 1 and i != 1:")),
            "a minimum has eight neighbours: other standard deviations, and both at once",
        ),
        (
            "no entropy",
            _minima((_DIVERGENCE, "(log_q.exp() * -log_p).sum(-1)")),
            "none was found: is log q missing in the divergence, or are these maxima?",
        ),
        ("maxima", _minima(("inner < table", "inner > table")), "none was found: is log q missing"),
        (
            "places inside",
            _minima(("lowest.nonzero() + 1", "lowest.nonzero()")),
            "right, but counted inside the table without its edges: add 1",
        ),
        (
            "shifted by two",
            _minima(("lowest.nonzero() + 1", "lowest.nonzero() + 2")),
            "other places: print the table for one mean and look at it",
        ),
        ("marks", _minima(("return lowest.nonzero() + 1", "return lowest")), "the shape must be"),
        (
            "mutates log p",
            _minima(("(log_q - log_p)", "(log_q - log_p.mul_(1.5))")),
            "changed its argument",
        ),
    ],
    "future-rewards": [
        (
            "its own reward",
            _reward((" - rewards\n", "\n"), ("- 1 - place", "- place")),
            "the token's own reward is in it: the single-step part has counted that already",
        ),
        (
            "sum",
            _reward(("after / left.clamp(min=1)", "after")),
            "the mean of the rewards that follow, not their sum: else short sentences win",
        ),
        (
            "past",
            function(
                "future_rewards(log_p, log_q, lengths)",
                """
                place = torch.arange(log_p.shape[1])
                rewards = log_p - log_q
                before = (rewards.cumsum(1) - rewards) / place.clamp(min=1)
                return torch.where(place < lengths[:, None], before, 0.0)
                """,
            ),
            "these are the rewards before the token, which it cannot change",
        ),
        (
            "turned round",
            _reward(("log_p - log_q", "log_q - log_p")),
            "turned round: the reward is log p − log q, high where the teacher likes the token better",
        ),
        (
            "padding",
            function(
                "future_rewards(log_p, log_q, lengths)",
                """
                place = torch.arange(log_p.shape[1])
                rewards = log_p - log_q
                after = rewards.flip(1).cumsum(1).flip(1) - rewards
                after = after / (len(place) - 1 - place).clamp(min=1)
                return torch.where(place < lengths[:, None], after, 0.0)
                """,
            ),
            "rewards behind the end of a sentence were counted",
        ),
        (
            "the whole length",
            _reward(("after / left.clamp(min=1)", "after / lengths[:, None]")),
            "divided by the length of the sentence: the number of tokens that follow is asked for",
        ),
        (
            "one more",
            _reward(("after / left.clamp(min=1)", "after / (left + 1)")),
            "divided by one too many: the token itself is not among those that follow",
        ),
        (
            "0/0",
            _reward(("torch.where(left > 0, after / left.clamp(min=1), 0.0)", "after / left")),
            "0/0: after the last token nothing follows",
        ),
        (
            "something behind the end",
            _reward(
                (
                    "after / left.clamp(min=1), 0.0)",
                    "after / left.clamp(min=1), torch.where(place < lengths[:, None], 0.0, 1.0))",
                )
            ),
            "behind the end of a sentence return 0",
        ),
        (
            "half",
            _reward(("after / left", "after / 2 / left")),
            "not the mean of the rewards that follow: write down one sentence of three tokens",
        ),
        ("mutates the rewards", _reward(("log_p - log_q, 0.0", "log_p.sub_(log_q), 0.0")), "changed its argument"),
    ],
    "minillm-gradient": [
        (
            "twice",
            _gradient((".flip(0) - rewards", ".flip(0)")),
            "the reward of the token itself is counted twice: R starts behind it",
        ),
        (
            "no single steps",
            _gradient(("return single - ", "return -")),
            "the single-step part is missing: the gradient of KL(q_t ‖ p_t) at each place",
        ),
        (
            "single steps alone",
            _gradient(("return single - after[:, None] * (one_hot - q)", "return single")),
            "the other part is missing: a token changes what comes after it",
        ),
        (
            "plain policy gradient",
            _gradient(
                (".flip(0) - rewards", ".flip(0)"),
                ("return single - after[:, None]", "return -(after[:, None] - 1)"),
            ),
            "right in the mean, but with more variance: the formula takes a token's own part exactly",
        ),
        (
            "plus",
            _gradient(("single - after", "single + after")),
            "the sign of the second part: a token with high rewards after it must become likelier",
        ),
        (
            "forward",
            _gradient((_SINGLE, "single = q - log_p.exp()")),
            "the single steps are KL(q ‖ p), too, not KL(p ‖ q)",
        ),
        (
            "past",
            _gradient(("rewards.flip(0).cumsum(0).flip(0)", "rewards.cumsum(0)")),
            "R holds what comes after a token, not what was before it",
        ),
        (
            "no softmax",
            _gradient(("(one_hot - q)", "one_hot")),
            "neither known mistake nor the gradient: start with a sentence of one token",
        ),
        ("one row", _gradient(("(one_hot - q)\n", "(one_hot - q)[:1]\n")), ""),
        (
            "summed",
            _gradient(("return single - after[:, None] * (one_hot - q)", "return single.sum(0)")),
            "the shape",
        ),
        ("mutates the logits", _gradient(("z.log_softmax(1)", "z.mul_(2).log_softmax(1)")), "changed its argument"),
    ],
    "mixture-weights": [
        (
            "one token",
            _weights((".cumsum(1)", "")),
            "this is the weight of each token alone: the product up to it is asked for",
        ),
        (
            "turned round",
            _weights(("log_q - mixture", "mixture - log_q")),
            "turned round: the student's probability over the mixture's",
        ),
        (
            "logarithms are mixed",
            _weights(
                (
                    "torch.logaddexp(log_p + math.log(alpha), log_q + math.log(1 - alpha))",
                    "alpha * log_p + (1 - alpha) * log_q",
                )
            ),
            "probabilities are mixed, not their logarithms",
        ),
        (
            "the student's share",
            _weights(("log_p + math.log(alpha), log_q", "log_q + math.log(alpha), log_p")),
            "α is the teacher's share in the mixture",
        ),
        (
            "up to the token before",
            _weights(("(log_q - mixture).cumsum(1)", "((log_q - mixture).cumsum(1) - (log_q - mixture))")),
            "the token itself belongs to the product",
        ),
        (
            "all tokens",
            _weights((".cumsum(1)", ".sum(1, keepdim=True).expand(log_p.shape)")),
            "tokens that come later do not belong to the product",
        ),
        (
            "over the teacher",
            _weights(("log_q - mixture", "log_q - log_p")),
            "not the product of the ratios: try a sentence of one token",
        ),
        (
            "probabilities",
            function(
                "mixture_weights(log_p, log_q, alpha)",
                "p, q = log_p.exp(), log_q.exp()\nreturn (q / (alpha * p + (1 - alpha) * q)).cumprod(1)",
            ),
            "0/0 where probabilities are too small for floating point: stay in logarithms",
        ),
        (
            "a least probability",
            function(
                "mixture_weights(log_p, log_q, alpha)",
                "p, q = (x.exp().clamp(min=1e-30) for x in (log_p, log_q))\n"
                "return (q / (alpha * p + (1 - alpha) * q)).cumprod(1)",
            ),
            "wrong for very unlikely tokens: the ratio stays as it is",
        ),
        ("mutates the logarithms", _weights(("(log_q - mixture)", "log_q.sub_(mixture)")), "changed its argument"),
    ],
    "in-context-loss": [
        ("a loss for each token", _context((_LABEL, "cost")), "return one number"),
        (
            "float32",
            _context((f"return {_LABEL}", f"return ({_LABEL}).float()")),
            "stay in float64: the inputs are",
        ),
        (
            "not shifted",
            _context(("student[:, :-1]", "student[:, 1:]"), ("teacher[:, :-1]", "teacher[:, 1:]")),
            "the logits at a place are about the token after it: shift by one",
        ),
        (
            "every token",
            _context(("cost[kind[:, 1:] == k] for k in (1, 2)", "cost[kind[:, 1:] <= 1], cost[kind[:, 1:] == 2]")),
            "tokens of kind 0 are read, but do not count",
        ),
        (
            "the last label",
            _context(
                (
                    "    parts =",
                    "    label = kind[:, 1:] == 1\n"
                    "    later = label.long().flip(1).cumsum(1).flip(1) > 1\n    parts =",
                ),
                ("cost[kind[:, 1:] == k] for k in (1, 2)", "cost[label & ~later], cost[kind[:, 1:] == 2]"),
            ),
            "all labels that count do, not only the last one of a sequence",
        ),
        (
            "one mean",
            _context(
                (
                    "part.sum() / max(len(part), 1) for part in parts",
                    "part.sum() / max(sum(map(len, parts)), 1) for part in parts",
                )
            ),
            "two means, one over labels and one over text: else the longer part has all the weight",
        ),
        (
            "α and 1 − α",
            _context(("(1 - alpha) * hard + alpha * soft", "alpha * hard + (1 - alpha) * soft")),
            "α belongs to the soft part, 1 − α to the hard one",
        ),
        (
            "hard",
            _context(("(1 - alpha) * hard + alpha * soft", "hard")),
            "the soft part is missing: the teacher is not asked",
        ),
        (
            "soft",
            _context(("(1 - alpha) * hard + alpha * soft", "soft")),
            "the hard part is missing: the tokens themselves are not asked",
        ),
        (
            "reverse",
            _context(("log_p.exp() * (log_p - log_q)", "log_q.exp() * (log_q - log_p)")),
            "the soft part is KL(p ‖ q): the teacher's probabilities stand in front",
        ),
        ("sum", _context((" / max(len(part), 1)", "")), "means over tokens, not sums"),
        ("no β", _context(("beta * text", "text")), "the text is weighted with β"),
        (
            "0/0",
            _context(("part.sum() / max(len(part), 1)", "part.mean()")),
            "a mean over nothing is 0, not 0/0",
        ),
        (
            "the teacher's cross-entropy",
            _context(("(log_p - log_q)", "-log_q")),
            "not the loss: compute a sequence of three tokens by hand",
        ),
        ("mutates the kinds", _context(("kind[:, 1:] == k", "kind.clamp_(max=1)[:, 1:] == k")), "changed its"),
    ],
    "instruction-targets": [
        (
            "targets alone",
            _target(("return torch.tensor(inputs), torch", "return torch")),
            "return two tensors: inputs and targets",
        ),
        (
            "not shifted",
            _target((_TARGETS, "[-100 if t < len(prompt) else tokens[t] for t in range(len(tokens) - 1)]")),
            "the target at a place is the token after it, not its own",
        ),
        (
            "the instruction",
            _target((_TARGETS, "tokens[1:]")),
            "the instruction is read, not learned: −100",
        ),
        (
            "no end",
            _target(
                (
                    "    width =",
                    "    targets = [[-100 if t == end else t for t in row] for row in targets]\n    width =",
                )
            ),
            "where to stop is learned as well: the target of the last token of a response is the end",
        ),
        (
            "the filling",
            _target(("row + [-100] *", "row + [end] *")),
            "what fills a row is no response: −100, or the model learns to stop and stop",
        ),
        (
            "not the first token",
            _target(("t + 1 < len(prompt)", "t < len(prompt)")),
            "the first token of the response is learned, too, at the last place of the instruction",
        ),
        (
            "ends where it is cut",
            _target(("(prompt + response + [end])[: longest + 1]", "(prompt + response)[:longest] + [end]")),
            "a response that was cut off has no end: it would teach to stop in the middle",
        ),
        (
            "zeros",
            _target(("[-100 if", "[0 if")),
            "other targets: write down one row, and below it the row shifted by one",
        ),
        (
            "filled with −100",
            _target(("row + [end] *", "row + [-100] *")),
            "the targets are right; the inputs are all tokens but the last",
        ),
        ("floats", _target(("torch.tensor(targets)", "torch.tensor(targets).double()")), "the result must be int64"),
        ("mutates the lists", _target(("(prompt + response", "(prompt.pop() and prompt + response")), "changed its"),
    ],
    "vote-accuracy": [
        ("a list", _vote(("return total", "return [total]")), "return one number"),
        (
            "float32",
            _vote(("return total", "return torch.tensor(total).float()")),
            "stay in float64: the inputs are",
        ),
        (
            "majority",
            _vote((_WINS, "sum(votes) == n and 2 * votes[0] > n"), (" / votes[:-1].count(votes[0])", "")),
            "most votes are enough: no majority of all samples is needed",
        ),
        (
            "ties are lost",
            _vote((_WINS, f"{_WINS} and votes[:-1].count(votes[0]) == 1")),
            "among equals one is drawn: the right answer wins some of these",
        ),
        (
            "ties are won",
            _vote((" / votes[:-1].count(votes[0])", "")),
            "among equals one is drawn: the right answer loses some of these",
        ),
        (
            "ties are even",
            _vote(("/ votes[:-1].count(votes[0])", "/ min(2, votes[:-1].count(votes[0]))")),
            "among three equal answers each wins with a third",
        ),
        (
            "no coefficients",
            _vote(("ways * chance", "chance")),
            "votes can fall in many orders: the multinomial coefficient is missing",
        ),
        (
            "no answer votes",
            _vote(("max(votes[:-1])", "max(votes)"), ("votes[:-1].count", "votes.count")),
            "a sample without an answer does not vote",
        ),
        (
            "chance where nobody votes",
            _vote((" and votes[0] > 0", "")),
            "if nobody votes, nothing is drawn: that is wrong",
        ),
        (
            "two samples agree",
            _vote(("return total", "return float(shares[0]) ** 2 if n == 2 else total")),
            "two samples never help, and never harm",
        ),
        (
            "one sample",
            function("vote_accuracy(shares, n)", "return float(shares[0])"),
            "not the probability: go through three samples and two answers by hand",
        ),
        ("mutates the shares", _vote(("    total =", "    shares /= 2\n    total =")), "changed its argument"),
    ],
    "kept-rationales": [
        ("a number", _kept(("return kept", "return len(kept)")), "return a list of places"),
        (
            "counts from 1",
            _kept(("return kept", "return [i + 1 for i in kept] + [99]")),
            "a place is a number from 0",
        ),
        ("descending", _kept(("return kept", "return kept[::-1]")), "each place once, in ascending order"),
        (
            "the first mark",
            _kept(('text.rsplit("####", 1)', 'text.split("####")[:2]')),
            "a text may write the mark more than once: its answer stands behind the last one",
        ),
        (
            "texts",
            _kept(
                ("float(parts[1])", "parts[1].strip()"),
                ("== labels[question]", "== str(labels[question])"),
            ),
            "18 and 18.0 are one answer: compare numbers",
        ),
        (
            "anywhere",
            _kept(("stated(text) == labels[question]", "str(labels[question]) in text.split()")),
            "the label stands somewhere in the text, but it is not its answer",
        ),
        (
            "copies",
            _kept((" and text not in mine", ""), ("mine.add(text)", "mine.append(text)"), ("set()", "[]")),
            "the same text of the same question is kept once",
        ),
        (
            "across questions",
            _kept(("text not in mine", "all(text not in other for other in known)")),
            "the same text may be right for two questions: it counts as known for its own question only",
        ),
        ("no limit", _kept((" and len(mine) < k", "")), "no more than k texts of a question are kept"),
        (
            "the first k",
            _kept(("len(mine) < k", "[q for q, _ in samples[:place]].count(question) < k")),
            "k of those that are right, not those among the first k",
        ),
        ("k in all", _kept(("len(mine) < k", "len(kept) < k")), "k for each question, not k in all"),
        (
            "the first question's label",
            _kept(("== labels[question]", "== labels[0]")),
            "others are kept: which answer does each text state, and what was kept before it?",
        ),
        (
            "numbers anywhere behind the mark",
            _kept(("float(parts[1])", "float(parts[1].split()[-1])")).replace(
                "except ValueError", "except (ValueError, IndexError)"
            ),
            "none of these texts states a number behind a mark",
        ),
        ("no number", _kept(("except ValueError:", "except KeyError:")), "ValueError"),
    ],
    "calibration-error": [
        ("a gap for each bin", _error(("gap.abs().sum()", "gap.abs()")), "return one number"),
        ("float32", _error(("gap.abs().sum()", "gap.abs().sum().float()")), "stay in float64: the inputs are"),
        (
            "edges above",
            _error(("bucketize(confidence, edges)", "bucketize(confidence, edges, right=True)")),
            "an edge belongs to the bin below it",
        ),
        (
            "bins count alike",
            _binned(_EDGES, "(acc - conf).abs()").replace(
                "return total",
                "return total / len(torch.bucketize(confidence, torch.arange(1, bins) / bins).unique())",
            ),
            "a bin counts as much as it holds: n_m/n",
        ),
        (
            "signed",
            _error(("gap.abs().sum()", "gap.sum()")),
            "the size of each gap: a bin that is too sure and one that is not sure enough do not cancel",
        ),
        (
            "middles",
            _binned(_EDGES, "here.double().mean() * (acc - (m + 0.5) / bins).abs()"),
            "the mean confidence of a bin, not its middle",
        ),
        (
            "the largest",
            _binned(_EDGES, "((acc - conf).abs() - total).clamp(min=0)"),
            "this is the largest gap: the mean over all predictions is asked for",
        ),
        ("squares", _binned(_EDGES, "here.double().mean() * (acc - conf) ** 2"), "gaps are not squared"),
        (
            "without 0",
            _binned("(confidence > m / bins) & (confidence <= (m + 1) / bins)", _GAP),
            "a confidence of 0 belongs to the first bin",
        ),
        (
            "equal counts",
            _binned(
                "torch.zeros_like(right).index_fill(0, confidence.argsort()["
                "m * len(right) // bins : (m + 1) * len(right) // bins], True)",
                _GAP,
            ),
            "bins of equal width, not with equally many predictions",
        ),
        (
            "empty bins",
            _binned(_EDGES, _GAP).replace("if here.any():", "if True:"),
            "a bin without predictions is 0/0: leave it out",
        ),
        (
            "half",
            _error(("/ len(confidence)", "/ len(confidence) / 2")),
            "not the error: sort five predictions into two bins by hand",
        ),
        ("mutates the confidence", _error(("- confidence)", "- confidence.mul_(2))")), "changed its argument"),
    ],
    "gradient-sign": [
        ("down", _attack(("x + epsilon", "x - epsilon")), "turned round: the attack lets the loss rise"),
        (
            "the gradient",
            _attack(("gradient.sign()", "gradient")),
            "every pixel moves by ε: the sign of the gradient, not the gradient",
        ),
        (
            "a unit vector",
            _attack(("gradient.sign()", "gradient / gradient.norm(dim=1, keepdim=True)")),
            "every pixel moves by ε: the sign of the gradient, not a vector of the length ε",
        ),
        ("not clipped", _attack((".clamp(0, 1)", "")), "an image has pixels from 0 to 1: clip it"),
        (
            "its own answers",
            _attack(("one_hot(labels,", "one_hot(slope.argmax(1),")),
            "the loss is that of the true label, not of what the network says",
        ),
        (
            "no ReLU",
            _attack((" * (hidden > 0)", ""), ("hidden.relu()", "hidden")),
            "hidden units that are off pass nothing back",
        ),
        (
            "the change is clipped",
            _attack((".clamp(0, 1)", ".clamp(0, epsilon)")),
            "the image is clipped to 0 … 1, not the change",
        ),
        (
            "half of ε",
            _attack(("x + epsilon", "x + epsilon / 2")),
            "not the attack: check the gradient by the pixels of one image",
        ),
        (
            "two signs",
            _attack(("gradient.sign()", "torch.where(gradient >= 0, 1.0, -1.0)")),
            "where the gradient is 0 a pixel stays: all hidden units are off here",
        ),
        ("float32", _attack((".clamp(0, 1)", ".clamp(0, 1).float()")), "the result must be float64"),
        ("mutates the images", _attack(("(x + epsilon", "(x.mul_(1.01) + epsilon")), "changed its argument"),
    ],
    "beyond-accuracy": [
        ("two numbers", _trust(("return min(accuracy), ", "return ")), "return three numbers"),
        (
            "before",
            _trust(("accuracy.append(float(new))", "accuracy.append(float(old))")),
            "the worst subgroup after compression, not before",
        ),
        (
            "empty groups",
            _trust(
                ("groups.unique()", "range(int(groups.max()) + 1)"),
                (".double().mean() for p", ".double().sum() / max(int(here.sum()), 1) for p"),
            ),
            "a number that no example has is no subgroup",
        ),
        (
            "the fall of the worst",
            _trust(("max(falls)", "falls[accuracy.index(min(accuracy))]")),
            "the largest fall may be in another subgroup than the worst one",
        ),
        (
            "the fall of all",
            _trust(("max(falls)", "float((before == labels).double().mean() - (after == labels).double().mean())")),
            "this is the fall of all together: that of a subgroup may be much larger",
        ),
        (
            "the distance of accuracies",
            _trust(
                (
                    "float((before != after).double().mean())",
                    "abs(float((before == labels).double().mean() - (after == labels).double().mean()))",
                )
            ),
            "the accuracies may agree and the predictions differ: count examples with another prediction",
        ),
        (
            "lost",
            _trust(("(before != after)", "((before == labels) & (after != labels))")),
            "every changed prediction counts, also one that is right now or was wrong before",
        ),
        (
            "among errors",
            _trust(("(before != after)", "(before != after)[after != labels]")),
            "the share of all examples, not of the wrong ones",
        ),
        (
            "0/0",
            _trust(("groups.unique()", "range(int(groups.max()) + 1)"), ("min(accuracy)", "sum(accuracy)")),
            "0/0: a subgroup without examples",
        ),
        ("the best", _trust(("min(accuracy)", "max(accuracy)")), "the worst accuracy"),
        ("the least fall", _trust(("max(falls)", "min(falls)")), "the largest fall"),
        ("unchanged", _trust(("before != after", "before == after")), "the share changed"),
        ("percent", _trust(("return min(accuracy)", "return 100 * min(accuracy)")), ", it should be "),
        (
            "mutates the labels",
            _trust(("    accuracy, falls", "    labels += 1\n    accuracy, falls")),
            "changed its",
        ),
    ],
}
