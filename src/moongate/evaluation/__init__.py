"""How good pictures are: feature networks, measures of their features, prompts, and the record of an evaluation."""

from moongate.evaluation.benchmark import EvaluationOptions, Reference, Targets, evaluate
from moongate.evaluation.comparison import STRENGTHS, Way, compare, comparison_sheet, ways_of
from moongate.evaluation.networks import NETWORKS, Clip, Network, check_network, load_network
from moongate.evaluation.page import base_alone, kept_pictures, write_page
from moongate.evaluation.prompts import PROMPT_SETS, default_prompts, filled, read_prompts
from moongate.evaluation.protocols import Protocol, check_protocol, read_protocol
from moongate.evaluation.record import Evaluation, Measure

__all__ = [
    "NETWORKS",
    "PROMPT_SETS",
    "STRENGTHS",
    "Clip",
    "Evaluation",
    "EvaluationOptions",
    "Measure",
    "Network",
    "Protocol",
    "Reference",
    "Targets",
    "Way",
    "base_alone",
    "check_network",
    "check_protocol",
    "compare",
    "comparison_sheet",
    "default_prompts",
    "evaluate",
    "filled",
    "kept_pictures",
    "load_network",
    "read_prompts",
    "read_protocol",
    "ways_of",
    "write_page",
]
