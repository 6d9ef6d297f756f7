"""How good pictures are: feature networks, measures of their features, prompts, and the record of an evaluation."""

from moongate.evaluation.benchmark import EvaluationOptions, Reference, Targets, evaluate
from moongate.evaluation.networks import NETWORKS, Network, load_network
from moongate.evaluation.prompts import PROMPT_SETS, BenchmarkConcept, custom_concept_101, read_prompts

__all__ = [
    "NETWORKS",
    "PROMPT_SETS",
    "BenchmarkConcept",
    "EvaluationOptions",
    "Network",
    "Reference",
    "Targets",
    "custom_concept_101",
    "evaluate",
    "load_network",
    "read_prompts",
]
