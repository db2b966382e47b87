"""Wrong answers to the exercises on distillation and synthetic data."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture4_distillation")
_pseudo = partial(_mutated, "pseudo-labels")
_feedback = partial(_mutated, "teacher-feedback")
_soft = partial(_mutated, "gradient-of-soft")
_confidence = partial(_mutated, "confidence-weights")
_mean = partial(_mutated, "mean-of-networks")
_word = partial(_mutated, "word-level")
_beam = partial(_mutated, "beam-step")
_cosine = partial(_mutated, "cosine-of-states")
_new = partial(_mutated, "keep-new")
_chain = partial(_mutated, "step-fingerprints")

_STUDENT, _TEACHER = "(student / temperature).softmax(1)", "(teacher / temperature).softmax(1)"
_LOG_MEAN = "logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))"
_F = "2 * common(a, b) / (len(a) + len(b))"

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "pseudo-labels": [
        (
            "the most confident of all",
            function(
                "pseudo_labels(probabilities, k)",
                """
                sure, best = probabilities.max(1)
                chosen = sure.argsort(descending=True)[: k * probabilities.shape[1]]
                labels = torch.full((len(sure),), -1)
                labels[chosen] = best[chosen]
                return labels
                """,
            ),
            "the most confident of all may be of one class only: take k of each class",
        ),
        (
            "the largest of a column",
            _pseudo(
                ("(best == c).nonzero()[:, 0]", "torch.arange(len(sure))"),
                ("sure[candidates]", "probabilities[:, c]"),
            ),
            "only examples whose likeliest class is c are candidates for c",
        ),
        ("everything", _pseudo(("order[:k]", "order")), "every example got a label: only the k most confident"),
        (
            "the least confident",
            _pseudo(("descending=True", "descending=False")),
            "turned round: these are the least confident ones",
        ),
        (
            "the lead",
            _pseudo(
                (
                    "sure, best = probabilities.max(1)",
                    "two, best = probabilities.topk(2, dim=1)\n    sure, best = two[:, 0] - two[:, 1], best[:, 0]",
                )
            ),
            "the largest probability ranks, not its lead over the second",
        ),
        (
            "as many of each",
            _pseudo(
                (
                    "    for c in",
                    "    k = min(k, int(torch.bincount(best, minlength=probabilities.shape[1]).min()))\n    for c in",
                )
            ),
            "a class with few candidates does not limit the others: each gets up to k",
        ),
        ("k + 1", _pseudo(("order[:k]", "order[: k + 1]")), "one too many of a class: k are taken"),
        (
            "counts classes from 1",
            _pseudo(("] = c\n", "] = c + 1\n")),
            "a label is the number of a class, or −1",
        ),
        ("k + 2", _pseudo(("order[:k]", "order[: k + 2]")), " times, it should be "),
        (
            "as they come",
            _pseudo(("sure[candidates].argsort(descending=True)", "torch.arange(len(candidates))")),
            "the right number of labels of each class, for other examples",
        ),
        ("float64", _pseudo(("    return labels\n", "    return labels.double()\n")), "the result must be int64"),
        (
            "mutates the probabilities",
            _pseudo(("probabilities.max(1)", "probabilities.mul_(2).max(1)")),
            "changed its argument",
        ),
    ],
    "teacher-feedback": [
        (
            "new − old",
            _feedback(("(old - new) *", "(new - old) *")),
            "the sign: where the student's step helped, the drawn labels must become likelier",
        ),
        (
            "the new loss",
            _feedback(("(old - new) *", "new *")),
            "the factor is the gain, L_old − L_new, not the loss after the step",
        ),
        ("steps up", _feedback(("student - lr", "student + lr")), "the student's step goes down its loss"),
        (
            "the drawn labels judge",
            _feedback(("labelled @ w.T, labels", "inputs @ w.T, drawn")),
            "the two losses are those on labelled data: the drawn labels cannot judge themselves",
        ),
        (
            "the teacher's probabilities",
            _feedback(
                (
                    "slope(teacher)",
                    "torch.func.grad(lambda z: -(z.softmax(1) * z.log_softmax(1)).sum(1).mean())(teacher)",
                )
            ),
            "the cross-entropy is with the labels that were drawn, not with the teacher's own probabilities",
        ),
        ("no factor", _feedback(("(old - new) *", "")), "the factor L_old − L_new is missing"),
        (
            "sum",
            _feedback(("(old - new) * slope(teacher)", "(old - new) * len(drawn) * slope(teacher)")),
            "the mean over the examples, not their sum",
        ),
        (
            "the student steps on the sum",
            _feedback(("moved = student - lr *", "moved = student - lr * len(drawn) *")),
            "not this gradient: check the student's step, the two losses, and softmax − one-hot",
        ),
        (
            "mutates the student",
            _feedback(("    old, new =", "    student -= 1\n    old, new =")),
            "changed its argument",
        ),
    ],
    "gradient-of-soft": [
        (
            "turned round",
            _soft((f"{_STUDENT} - {_TEACHER}", f"{_TEACHER} - {_STUDENT}")),
            "turned round: a step against the gradient must bring the student nearer to the teacher",
        ),
        (
            "no T²",
            _soft(("return temperature * (", "return 1 / temperature * (")),
            "the T² in front of the divergence",
        ),
        (
            "T²",
            _soft(("return temperature * (", "return temperature**2 * (")),
            "by z_s, not by z_s/T: one T of the T² is divided away",
        ),
        ("sum", _soft((") / n\n", ")\n")), "the mean over the examples, not their sum"),
        (
            "classes",
            _soft((") / n\n", ") / (n * classes)\n")),
            "divided by the number of classes, too: the mean is over examples only",
        ),
        (
            "the teacher alone is softened",
            _soft((_STUDENT, "student.softmax(1)")),
            "the student's logits are divided by T as well",
        ),
        (
            "no limit",
            _soft(("    if math.isinf(temperature):", "    if temperature < 0:")),
            "for T = ∞ this is ∞ · 0: return the limit",
        ),
        (
            "not centred",
            _soft(("(difference - difference.mean(1, keepdim=True))", "difference")),
            "in the limit logits count minus their mean over the classes: a constant changes no probability",
        ),
        (
            "no 1/N",
            _soft(("/ (classes * n)", "/ n")),
            "in the limit every class has the probability 1/N, which stands in front of the difference",
        ),
        (
            "teacher and student weigh alike",
            _soft((_TEACHER, "((teacher + student) / 2 / temperature).softmax(1)")),
            ": compute one example by hand",
        ),
        (
            "mutates the teacher",
            _soft(("(teacher / temperature)", "teacher.div_(temperature)")),
            "changed its argument",
        ),
    ],
    "confidence-weights": [
        ("a loss for each example", _confidence((".sum() / weights.sum()", " / weights.sum()")), "return one number"),
        (
            "float32",
            _confidence(("    weights =", "    student, teacher = student.float(), teacher.float()\n    weights =")),
            "stay in float64: the inputs are",
        ),
        (
            "mean",
            _confidence((".sum() / weights.sum()", ".mean()")),
            "the weights add up to 1: divide by their sum, not by the number of examples",
        ),
        ("sum", _confidence((" / weights.sum()", "")), "the weights add up to 1: nothing was divided"),
        (
            "the label's probability",
            _confidence((".amax(1)", ".gather(1, labels[:, None])[:, 0]")),
            "the weight is the teacher's largest probability, also where that is not the label",
        ),
        (
            "the student's confidence",
            _confidence(("teacher.softmax", "student.softmax")),
            "the confidence is the teacher's, not the student's",
        ),
        ("logits", _confidence((".softmax(1)", "")), "the largest probability, not the largest logit"),
        (
            "no weights",
            _confidence(("teacher.softmax(1).amax(1)", "torch.ones(len(labels), dtype=student.dtype)")),
            "this is the mean cross-entropy: no example weighs more than another",
        ),
        (
            "soft targets",
            _confidence(("cross_entropy(student, labels,", "cross_entropy(student, teacher.softmax(1),")),
            "the targets are the labels; of the teacher only the weights are left",
        ),
        (
            "the rest's probability",
            _confidence(("teacher.softmax(1).amax(1)", "1 - teacher.softmax(1).amax(1)")),
            "neither known mistake nor the loss: compute two examples by hand",
        ),
        ("mutates the teacher", _confidence(("teacher.softmax(1)", "teacher.mul_(2).softmax(1)")), "changed its"),
    ],
    "mean-of-networks": [
        (
            "logits",
            _mean((_LOG_MEAN, "logits.mean(0).log_softmax(-1)")),
            "logits were averaged: their softmax is a geometric mean, and one sure network can outvote all others",
        ),
        (
            "logarithms",
            _mean((_LOG_MEAN, "logits.log_softmax(-1).mean(0)")),
            "the logarithms were averaged: the mean comes first, then the logarithm",
        ),
        (
            "probabilities",
            _mean((_LOG_MEAN, "logits.softmax(-1).mean(0)")),
            "these are the probabilities: their logarithm is asked for",
        ),
        (
            "sum",
            _mean((" - math.log(len(logits))", "")),
            "this is the logarithm of the sum: divide by the number of networks",
        ),
        (
            "softmax over networks",
            _mean(("log_softmax(-1)", "log_softmax(0)")),
            "the probabilities of a network add up to 1 over its classes, the last axis",
        ),
        (
            "the largest",
            _mean((_LOG_MEAN, "logits.log_softmax(-1).amax(0)")),
            "this is the surest network's probability, not the mean of all",
        ),
        (
            "log of the mean",
            _mean((_LOG_MEAN, "logits.softmax(-1).mean(0).log()")),
            "the logarithm of a probability that was rounded to 0: stay in logarithms",
        ),
        (
            "a least probability",
            _mean((_LOG_MEAN, "logits.softmax(-1).mean(0).clamp(min=1e-30).log()")),
            "for large logits it is wrong",
        ),
        (
            "two networks",
            _mean(("len(logits)", "2 * len(logits)")),
            "not the logarithm of the mean probability",
        ),
        ("mutates the logits", _mean(("logits.log_softmax", "logits.mul_(2).log_softmax")), "changed its argument"),
    ],
    "word-level": [
        ("a loss for each word", _word((".mean()", "")), "return one number"),
        (
            "float32",
            _word(("    loss =", "    student, teacher = student.float(), teacher.float()\n    loss =")),
            "stay in float64: the inputs are",
        ),
        (
            "padding",
            _word(("loss[real].mean()", "loss.mean()")),
            "places behind the end of a sentence were counted",
        ),
        (
            "divided by all places",
            _word(("loss[real].mean()", "(loss * real).mean()")),
            "what does not count must not be divided by either: the mean is over words",
        ),
        (
            "mean of means",
            _word(("loss[real].mean()", "((loss * real).sum(1) / real.sum(1)).mean()")),
            "this is the mean of the sentences' means: every word counts the same",
        ),
        (
            "vocabulary",
            _word((".sum(-1)\n", ".mean(-1)\n")),
            "divided by the size of the vocabulary, too: over words only",
        ),
        (
            "the likeliest word",
            _word(
                (
                    "teacher.softmax(-1)",
                    "torch.nn.functional.one_hot(teacher.argmax(-1), teacher.shape[-1]).double()",
                )
            ),
            "the teacher's whole distribution is the target, not its likeliest word",
        ),
        (
            "turned round",
            _word(("teacher.softmax(-1) * student.log_softmax(-1)", "student.softmax(-1) * teacher.log_softmax(-1)")),
            "turned round: the teacher's probabilities weigh the student's logarithms",
        ),
        (
            "divergence",
            _word(("student.log_softmax(-1))", "(student.log_softmax(-1) - teacher.log_softmax(-1)))")),
            "this is the divergence: it is less than the cross-entropy, by the teacher's entropy",
        ),
        ("sum", _word(("loss[real].mean()", "loss[real].sum()")), "the mean over the words, not their sum"),
        (
            "logits in the place of logarithms",
            _word(("student.log_softmax(-1)", "student")),
            "not the mean cross-entropy of the words: compute one place by hand",
        ),
        ("mutates the marks", _word(("loss[real]", "loss[real.fill_(True)]")), "changed its argument"),
    ],
    "beam-step": [
        (
            "scores alone",
            _beam(("return best.values, best.indices // words, best.indices % words", "return best.values")),
            "return three tensors: scores, parents, words",
        ),
        (
            "the best of each",
            function(
                "beam_step(scores, following, finished, end)",
                """
                cost = following.masked_fill(finished[:, None], -math.inf)
                cost[finished, end] = 0.0
                values, words = (scores[:, None] + cost).max(1)
                order = values.argsort(descending=True)
                return values[order], order, words[order]
                """,
            ),
            "the best of all continuations: two may come from one beginning, and another may have none",
        ),
        (
            "without the past",
            _beam(("(scores[:, None] + cost)", "(torch.where(finished, scores, 0.0)[:, None] + cost)")),
            "the scores so far are lost: a sentence has the sum of all its words",
        ),
        (
            "goes on after the end",
            _beam(
                ("following.masked_fill(finished[:, None], -math.inf)", "following.clone()"),
                ("    cost[finished, end] = 0.0\n", ""),
            ),
            "a finished beginning has one continuation only: itself",
        ),
        (
            "finished ones are dropped",
            _beam(("    cost[finished, end] = 0.0\n", "")),
            "a finished beginning competes on, with its score as it is",
        ),
        (
            "pays for the end",
            _beam(("cost[finished, end] = 0.0", "cost[finished, end] = following[finished, end]")),
            "a finished beginning does not pay for another end",
        ),
        (
            "a copy for each word",
            _beam(("finished[:, None], -math.inf)", "finished[:, None], 0.0)")),
            "a finished beginning stands there once, with the word end, and not once for each word",
        ),
        (
            "the least",
            _beam(
                (".topk(b)", ".topk(b, largest=False)"),
                ("-math.inf", "math.inf"),
            ),
            "turned round: the largest log-probabilities are the best",
        ),
        (
            "ascending",
            _beam(
                (
                    "return best.values, best.indices // words, best.indices % words",
                    "return best.values.flip(0), best.indices.flip(0) // words, best.indices.flip(0) % words",
                )
            ),
            "the best comes first",
        ),
        (
            "probabilities are added",
            _beam(("scores[:, None] + cost", "scores[:, None].exp() + cost.exp()")),
            "not the scores of the best continuations",
        ),
        (
            "places in the flat table",
            _beam(("best.indices // words,", "best.indices,")),
            "the scores are right, but a parent is the number of its beginning",
        ),
        (
            "counts words from 1",
            _beam(("best.indices % words", "best.indices % words + 1")),
            "scores and parents are right; the next words are others",
        ),
        (
            "mutates the log-probabilities",
            _beam(("following.masked_fill(", "following.masked_fill_(")),
            "changed its argument",
        ),
    ],
    "cosine-of-states": [
        ("a loss for each word", _cosine((".mean()", "")), "return one number"),
        (
            "float32",
            _cosine(("similarity(student, teacher,", "similarity(student.float(), teacher.float(),")),
            "stay in float64: the inputs are",
        ),
        (
            "padding",
            _cosine(("cosine[real]", "cosine")),
            "the padding was counted: places behind the end of a sentence have hidden states, too",
        ),
        (
            "divided by all places",
            _cosine(("1 - cosine[real].mean()", "((1 - cosine) * real).mean()")),
            "the padding was left out of the sum, but not out of the number that it is divided by",
        ),
        (
            "mean of means",
            _cosine(("cosine[real].mean()", "((cosine * real).sum(1) / real.sum(1)).mean()")),
            "every word counts the same, in a short sentence as in a long one: no means of means",
        ),
        (
            "one long vector",
            _cosine(
                ("student, teacher, dim=-1", "student[real].flatten(), teacher[real].flatten(), dim=0"),
                ("cosine[real]", "cosine"),
            ),
            "each word has an angle of its own: this is one angle between two long vectors",
        ),
        (
            "product",
            _cosine(
                ("torch.nn.functional.cosine_similarity(student, teacher, dim=-1)", "(student * teacher).sum(-1)")
            ),
            "a cosine is divided by both lengths",
        ),
        ("similarity", _cosine(("1 - cosine", "cosine")), "equal directions should cost nothing: 1 − cosine"),
        (
            "sum",
            _cosine(("1 - cosine[real].mean()", "(1 - cosine[real]).sum()")),
            "the mean over all words, not their sum",
        ),
        (
            "along the places",
            _cosine(("dim=-1)\n    return 1 - cosine[real].mean()", "dim=1)\n    return 1 - cosine.mean()")),
            "not the mean of 1 − cosine over the words",
        ),
        (
            "mutates the states",
            _cosine(("similarity(student,", "similarity(student.mul_(2),")),
            "changed its argument",
        ),
    ],
    "keep-new": [
        ("a number", _new(("return kept", "return len(kept)")), "return a list of places"),
        (
            "descending",
            _new(("return kept", "return kept[::-1] + [0]")),
            "each kept text once, in the order of the texts",
        ),
        (
            "counts from 1",
            _new(("return kept", "return [i + 1 for i in kept] + [99]")),
            "a place is a number from 0 on",
        ),
        (
            "the first is no candidate",
            _new(("return kept", "return kept[1:]")),
            "the first text is new",
        ),
        (
            "recall",
            _new((_F, "common(a, b) / len(b)")),
            "this is ℓ over the words of the kept text: F takes both lengths into account",
        ),
        (
            "precision",
            _new((_F, "common(a, b) / len(a)")),
            "this is ℓ over the words of the new text: F takes both lengths into account",
        ),
        (
            "words in a row",
            _new(
                (
                    "max(row[j], row[j - 1])\n        return row[-1]\n",
                    "0\n            longest = max(longest, *row)\n        return longest\n",
                ),
                ("        row = [0]", "        longest = 0\n        row = [0]"),
            ),
            "a subsequence may have gaps: the words need not stand next to each other",
        ),
        (
            "common words",
            _new((_F, "2 * sum(min(a.count(w), b.count(w)) for w in {*a}) / (len(a) + len(b))")),
            "the order of the words counts: a subsequence, not a set of common words",
        ),
        (
            "rejected ones, too",
            _new(("for k in kept)", "for k in range(i))")),
            "a text is compared with those that were kept, not with those that were rejected",
        ),
        (
            "the last one",
            _new(("for k in kept)", "for k in kept[-1:])")),
            "a text is compared with all that were kept, not only with the last one",
        ),
        (
            "keeps what is alike",
            _new(("        if all(", "        if i == 0 or not all(")),
            "turned round: what is like a kept text goes",
        ),
        (
            "every other one",
            _new(("return kept", "return [0, *range(1, len(texts), 2)]")),
            "other texts are kept: compute ℓ and F of two short texts by hand",
        ),
        (
            "0/0",
            _new(
                (
                    f"return {_F}",
                    "p, r = common(a, b) / len(a), common(a, b) / len(b)\n        return 2 * p * r / (p + r)",
                )
            ),
            "ZeroDivisionError",
        ),
    ],
    "step-fingerprints": [
        ("the last one", _chain(("return found", "return found[-1:]")), "return one fingerprint for each step"),
        (
            "capital letters",
            _chain(("hexdigest()", "hexdigest().upper()")),
            "a fingerprint is a text of hexadecimal digits, in small letters",
        ),
        (
            "nothing of the step before",
            _chain(("[name, arguments, before]", '[name, arguments, ""]')),
            "a step whose inputs have changed has the same fingerprint: that of the step before belongs to it",
        ),
        (
            "keys as they come",
            _chain((", sort_keys=True", "")),
            "the order in which arguments were written changes the fingerprint: sort the keys",
        ),
        (
            "no name",
            _chain(("[name, arguments, before]", "[arguments, before]")),
            "two steps of different names and equal arguments have the same fingerprint",
        ),
        (
            "no arguments",
            _chain(("[name, arguments, before]", "[name, before]")),
            "another seed or temperature gives the same fingerprint: the arguments are missing",
        ),
        (
            "values alone",
            _chain(("[name, arguments, before]", "[name, [*arguments.values()], before]")),
            "the values alone do not say which argument has which: the keys belong to it",
        ),
        (
            "Python's text",
            _chain(("json.dumps([name, arguments, before], sort_keys=True)", "repr([name, arguments, before])")),
            "the text is JSON, as every language writes it, not Python's own",
        ),
        (
            "eight digits",
            _chain(("hexdigest()", "hexdigest()[:8]")),
            "the fingerprint is the whole digest, 64 digits",
        ),
        (
            "a list of all before",
            _chain(("arguments, before]", "arguments, found]")),
            "the step before stands for all that led to it: one fingerprint, not a list of all",
        ),
        (
            "no spaces",
            _chain(("sort_keys=True)", 'sort_keys=True, separators=(",", ":"))')),
            "other fingerprints: hash exactly the JSON text of the three parts",
        ),
    ],
}
