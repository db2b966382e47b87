"""Self-instruct: a language model is shown a few tasks and goes on with the list; what is new joins the list.

Source: Wang, Kordi, Mishra, Liu, Smith, Khashabi, Hajishirzi 2023, arXiv:2212.10560, sections 2.1 and 2.2, steps 1
and 4; the authors' public code.   Syllabus: 4.18

Unlike the public code: of a reply that was cut only the last item is dropped, not all of them; the random numbers of
each prompt hang on its place, so that a run that was killed goes on as if it had not been; there is no presence
penalty, which not every model takes.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlcomp.checks import check_whole
from mlcomp.generate.language_model import LanguageModel, Reply, Sampling, item_seed
from mlcomp.generate.pipeline import Pipeline
from mlcomp.generate.sift import REASONS, sift

HEADING = "Come up with a series of tasks:"
# The temperature and top-p of the authors' public code. A blank line ends a list.
SAMPLING = Sampling(max_tokens=160, temperature=0.7, top_p=0.5, stop=("\n\n",))


@dataclass(frozen=True)
class Instructions:
    """Tasks that a model made.

    Args:
        kept: in the order in which they were made.
        rejected: reason → how many.
        prompts: how many the model was asked.
    """

    kept: tuple[str, ...]
    rejected: dict[str, int]
    prompts: int

    def funnel(self) -> list[tuple[str, int]]:
        """Return what is left after each filter, from all items that were read in the replies."""
        left = len(self.kept) + sum(self.rejected.values())
        lines = [("parsed", left)]
        for reason in REASONS:
            left -= self.rejected.get(reason, 0)
            lines.append((f"not {reason}", left))
        return lines


def list_prompt(heading: str, items: Sequence[str]) -> str:
    """Return a heading, a numbered list of items, each on one line, and the number after the last."""
    lines = [f"{number}. {' '.join(item.split()).rstrip(':')}" for number, item in enumerate(items, 1)]
    return "\n".join([heading, *lines, f"{len(items) + 1}."])


def parse_numbered(reply: Reply) -> list[str]:
    """Return the items of a reply that goes on where a number of a list ended, each on one line.

    The last item of a reply that was cut is left out.
    """
    items = re.split(r"\n\s*\d+\s?[.)]", reply.text)
    if not reply.ended:
        items = items[:-1]
    return [text for item in items if (text := " ".join(item.split()))]


def self_instruct(
    folder: str | os.PathLike,
    model: LanguageModel,
    seeds: Sequence[str],
    *,
    rounds: int,
    prompts: int = 8,
    human: int = 6,
    own: int = 2,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
) -> Instructions:
    """Return new tasks, made in rounds; those of earlier rounds are shown in later ones, too.

    Args:
        folder: new, or one of an earlier run, which then goes on after its last whole round.
        model: gets the prompts of a round at once.
        seeds: tasks written by people, at least ``human`` + ``own``.
        rounds: how often the model is asked.
        prompts: how many in a round.
        human, own: how many seeds, and how many tasks of the model, are shown; while the model has made fewer than
            ``own``, seeds stand for them.
        seed: of what is shown, and of the replies.
    Raises:
        ValueError: a number out of range, too few seeds, and what the pipeline and the model refuse.
    Guarantee: the same arguments give the same tasks, also where the run was killed and begun again.
    """
    check_whole("rounds", rounds, 1)
    check_whole("prompts", prompts, 1)
    check_whole("human", human, 0)
    check_whole("own", own, 0)
    if isinstance(seeds, str) or len(seeds) < human + own or human + own == 0:
        raise ValueError(f"seeds must be a sequence of at least human + own = {human + own} tasks, and these above 0")
    pipeline = Pipeline(folder)
    kept: list[str] = []
    rejected: Counter[str] = Counter()
    given = {"prompts": prompts, "human": human, "own": own, "seed": seed}
    for number in range(rounds):
        shown = pipeline.step(f"prompt_{number}", round_prompts, list(seeds), kept, number=number, **given)
        first = item_seed(seed, "round", number)
        replies = pipeline.generate(f"generate_{number}", model, shown, seed=first, sampling=sampling, batch=prompts)
        texts = [[reply.text, reply.ended] for reply in replies]
        found = pipeline.step(f"filter_{number}", read_and_sift, texts, [*seeds, *kept])
        kept = kept + found["kept"]
        rejected.update(found["rejected"])
    return Instructions(tuple(kept), dict(rejected), rounds * prompts)


def round_prompts(
    seeds: list[str], kept: list[str], *, number: int, prompts: int, human: int, own: int, seed: int
) -> list[str]:
    """Return the prompts of a round."""
    made = []
    for place in range(prompts):
        draw = random.Random(item_seed(seed, "shown", number, place))
        theirs = draw.sample(kept, min(own, len(kept)))
        items = draw.sample(seeds, human + own - len(theirs)) + theirs
        draw.shuffle(items)
        made.append(list_prompt(HEADING, items))
    return made


def read_and_sift(replies: list[list[Any]], pool: list[str]) -> dict[str, Any]:
    """Return the tasks of a round that are kept, and for what reasons how many are not."""
    texts = [text for reply in replies for text in parse_numbered(Reply(*reply))]
    sifted = sift(texts, pool=pool)
    return {"kept": list(sifted.kept), "rejected": Counter(filter(None, sifted.reasons))}
