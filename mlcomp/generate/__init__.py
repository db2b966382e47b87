"""Text from language models: prompts, replies, and pipelines that make data of them."""

from mlcomp.generate.beam_search import Beams, search_outputs
from mlcomp.generate.language_model import LanguageModel, Reply, Sampling
from mlcomp.generate.openai_server import OpenAIServer, ServerError
from mlcomp.generate.outputs import output_log_probability, sample_outputs
from mlcomp.generate.pipeline import Pipeline
from mlcomp.generate.recorded_answers import RecordedAnswers
from mlcomp.generate.rouge_l import rouge_l
from mlcomp.generate.self_consistency import majority_vote, sample_rationales, voting_accuracy
from mlcomp.generate.self_instruct import Instructions, list_prompt, parse_numbered, self_instruct
from mlcomp.generate.sift import Sifted, sift
from mlcomp.generate.synthetic_classifier import Student, synthetic_classifier
from mlcomp.generate.transformers_model import TransformersModel
from mlcomp.generate.vote import vote, vote_each

__all__ = [
    "Beams",
    "Instructions",
    "LanguageModel",
    "OpenAIServer",
    "Pipeline",
    "RecordedAnswers",
    "Reply",
    "Sampling",
    "ServerError",
    "Sifted",
    "Student",
    "TransformersModel",
    "list_prompt",
    "majority_vote",
    "output_log_probability",
    "parse_numbered",
    "rouge_l",
    "sample_outputs",
    "sample_rationales",
    "search_outputs",
    "self_instruct",
    "sift",
    "synthetic_classifier",
    "vote",
    "vote_each",
    "voting_accuracy",
]
