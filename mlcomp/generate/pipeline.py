"""A pipeline of synthetic data: steps, each of whose results lies in a folder of its own and is not made twice.

A step's folder is named by the step and by a hash of all that its result depends on: the function's code, the inputs,
the settings, the seed among them, and the language model's identity. Other settings have another folder; the old one
stays, and is found again when the settings come back. Each is a :class:`mlcomp.resume.ResumeFolder`: a result is
there whole or not at all, and carries a hash.
Source: Patel, Raffel, Callison-Burch 2024, arXiv:2402.10379 (DataDreamer), section 4: steps that are cached by
fingerprint and resumed.   Syllabus: 4.18
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mlcomp.checks import check_whole
from mlcomp.generate.language_model import LanguageModel, Reply, Sampling, check_prompts, item_seed
from mlcomp.resume import ResumeFolder, hash_values
from mlcomp.workers import Map, Sent, check_map, mapped

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Pipeline:
    """Steps that are done once, in a folder.

    Args:
        folder: new, or one of an earlier run.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.counts: dict[str, int] = {}  # step → how many items it left, where its result is a list
        self.made: dict[str, int] = {}  # step → how many of its pieces were made in this run, and not found

    def step(self, name: str, function: Callable, *inputs: Any, **settings: Any) -> Any:
        """Return ``function(*inputs, **settings)``: computed, or as it lies in the step's folder.

        Args:
            name: small letters, digits and underscores; once in a pipeline.
            function: depends on its arguments alone, and returns what JSON can hold, or a dict of tensors.
            inputs, settings: what a hash can be made of; a language model counts by its identity.
        Raises:
            ValueError: another name, or one that was there before; a folder that is damaged or holds something else.
            TypeError: the result is neither.
        Guarantee: what comes back is read from the folder, whether or not it was there before.
        """
        store = self._folder(name, {"function": hash_values(function), "inputs": _hash(inputs)} | _each(settings))
        if "result" not in store:
            tensors, facts = _parts(function(*inputs, **settings))
            store.save("result", tensors, facts)
            self.made[name] += 1
        tensors, facts = store.load("result")
        return self._counted(name, tensors or facts["value"])

    def generate(
        self,
        name: str,
        model: LanguageModel,
        prompts: Sequence[str],
        *,
        seed: int,
        sampling: Sampling,
        batch: int = 8,
        map: Map = map,
    ) -> list[Reply]:
        """Return the model's reply to each prompt; a run that was killed goes on after its last whole batch.

        Args:
            name: as for :meth:`step`.
            model: asked for ``batch`` prompts at a time.
            prompts: none of them empty.
            seed: prompt i is answered with the seed ``item_seed(seed, i)``.
            map: by which the batches are answered: a callable like the built-in (:mod:`mlcomp.workers`). A pool of
                threads for a server's model; a pool of processes is sent the model with each batch.
        Raises:
            ValueError: what :meth:`step` and the model refuse; a ``map`` that does not work.
        Guarantee: the folder is the same for every ``map``, and what one has begun another may finish.
        """
        check_whole("batch", batch, 1)
        check_map(map, type(model))
        seeds = [item_seed(seed, number) for number in range(len(prompts))]
        check_prompts(prompts, seeds)
        store = self._folder(
            name,
            _each({"model": model, "prompts": list(prompts), "seed": seed, "batch": batch})
            | {"sampling": hash_values(sampling)},
        )
        slices = {f"from_{start:06d}": slice(start, start + batch) for start in range(0, len(prompts), batch)}
        todo = {piece: (prompts[cut], seeds[cut]) for piece, cut in slices.items() if piece not in store}
        replies = []
        with closing(mapped(partial(_answered, Sent(model), sampling), todo, map)) as made:
            for piece in slices:
                if piece in todo:
                    store.save(piece, {}, {"replies": [[reply.text, reply.ended] for reply in next(made)]})
                    self.made[name] += 1
                replies += [Reply(*reply) for reply in store.load(piece)[1]["replies"]]
        return self._counted(name, replies)

    def funnel(self) -> str:
        """Return a line for each step that has a list for a result, with how many items it left."""
        width = max(map(len, self.counts), default=0)
        return "\n".join(f"{name:{width}s} {count:6d}" for name, count in self.counts.items())

    def _folder(self, name: str, fingerprint: dict[str, str]) -> ResumeFolder:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"a step's name has small letters, digits and underscores, got {name!r}")
        if name in self.made:
            raise ValueError(f"there is a step {name!r} already: give each a name of its own")
        self.made[name] = 0
        place = self.folder / f"{name}-{hash_values(fingerprint)[:16]}"
        if not place.exists() and any(self.folder.glob(f"{name}-*")):
            log.info("the step %s has other settings or inputs than before: it runs, and what it left stays", name)
        return ResumeFolder(place, fingerprint)

    def _counted(self, name: str, result: Any) -> Any:
        if isinstance(result, list):
            self.counts[name] = len(result)
        return result


def _answered(model: Sent, sampling: Sampling, asked: tuple[Sequence[str], Sequence[int]]) -> list[Reply]:
    prompts, seeds = asked
    return model.value.generate(prompts, seeds=seeds, sampling=sampling)


def _hash(value: Any) -> str:
    if isinstance(value, tuple | list) and any(hasattr(part, "identity") for part in value):
        return hash_values([_hash(part) for part in value])
    return value.identity if hasattr(value, "identity") else hash_values(value)


def _each(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: _hash(value) for name, value in settings.items()}


def _parts(value: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a result's tensors, and the rest."""
    if isinstance(value, Mapping) and value and all(isinstance(part, Tensor) for part in value.values()):
        return dict(value), {}
    return {}, {"value": value}
