"""Answers of a language model on a file: the same data without the model, in a notebook or a test.

Syllabus: 4.18
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlcomp.generate.language_model import LanguageModel, Reply, Sampling, check_prompts
from mlcomp.resume import hash_values, replacing


class RecordedAnswers:
    """Replies that a model gave before, by prompt, seed and sampling.

    Its identity is that of the model that answered, so a pipeline with either has the same steps.

    Args:
        path: a JSON file. With a model it may be new.
        model: asked for what is not on the file yet; that is then added to it. None: only the file answers.
        about: more for the file to say about itself, such as where it was made; kept as it is.
    Raises:
        ValueError: no file, and no model; a damaged file; answers of another model.
    """

    def __init__(
        self, path: str | os.PathLike, *, model: LanguageModel | None = None, about: Mapping[str, Any] | None = None
    ):
        self.path, self.model = Path(path), model
        if not self.path.exists():
            if model is None:
                raise ValueError(f"{self.path} is not there: give the model whose answers it is to hold")
            found: dict[str, Any] = {"identity": model.identity, "answers": {}}
        else:
            found = _read(self.path)
        if model is not None and model.identity != found["identity"]:
            raise ValueError(f"{self.path} holds the answers of another model: give a new file")
        self.identity: str = found["identity"]
        self._about = {**{key: found[key] for key in found if key not in ("identity", "answers")}, **(about or {})}
        self._answers: dict[str, list] = found["answers"]

    def __len__(self) -> int:
        return len(self._answers)

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: Sampling) -> list[Reply]:
        """Return one reply for each prompt.

        Raises:
            ValueError: no prompts, an empty one, another number of seeds; an answer that is not on the file, where
                there is no model to ask.
        """
        check_prompts(prompts, seeds)
        keys = [_key(prompt, seed, sampling) for prompt, seed in zip(prompts, seeds, strict=True)]
        if self.model is None:
            lacking = [number for number, key in enumerate(keys) if key not in self._answers]
            if lacking:
                raise ValueError(
                    f"{self.path.name} holds no answer to {len(lacking)} of {len(keys)} prompts with these seeds and "
                    f"this sampling, the first: {prompts[lacking[0]][:80]!r}. Ask a model"
                )
        elif any(key not in self._answers for key in keys):
            # The whole batch, so that a run that was stopped gives what one that was not gives.
            replies = self.model.generate(prompts, seeds=seeds, sampling=sampling)
            self._answers |= {key: [r.text, r.ended] for key, r in zip(keys, replies, strict=True)}
            self._write()
        return [Reply(*self._answers[key]) for key in keys]

    def _write(self) -> None:
        found = self._about | {"identity": self.identity, "answers": self._answers}
        with replacing(self.path) as draft:
            draft.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _key(prompt: str, seed: int, sampling: Sampling) -> str:
    return hash_values((prompt, seed, dataclasses.asdict(sampling)))[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        answers = found["answers"]
        whole = isinstance(found["identity"], str) and all(
            isinstance(text, str) and isinstance(ended, bool) for text, ended in answers.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{path} is damaged, or holds something else ({problem}): take it again") from problem
    if not whole:
        raise ValueError(f"{path} is damaged, or holds something else: take it again")
    return found
