"""The known wrong answers of each assignment, by its folder in solutions/.

Each is: what is wrong, the code, and what the student must be told (empty: one of several messages, by chance).
"""

from tests.exercises.wrong_answers import (
    distillation,
    distillation_and_trustworthiness,
    importance_and_distillation,
    llm_pruner_and_onebit,
    optimal_brain_compression,
    pruning,
    quantization,
    quantization_and_heads,
    sparse_training,
)

WRONG: dict[str, dict[str, list[tuple[str, str, str]]]] = {
    "lecture1_pruning": pruning.WRONG,
    "lecture1_quantization": quantization.WRONG,
    "lecture2": optimal_brain_compression.WRONG,
    "lecture3_importance": importance_and_distillation.WRONG,
    "lecture3_pruning": sparse_training.WRONG,
    "lecture4_distillation": distillation.WRONG,
    "lecture4_quantization": quantization_and_heads.WRONG,
    "lecture5_distillation": distillation_and_trustworthiness.WRONG,
    "lecture5_pruning": llm_pruner_and_onebit.WRONG,
}
