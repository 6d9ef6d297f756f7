"""The human preference study of the paper (Sec. 4.3, Table 2): which of two pictures people prefer.

`study` says what is compared, `making` makes a study of folders of pictures, `answers` keeps what raters said, `page`
is one HTML file to send to raters, and `results` and `strengths` measure. None but `making` imports PyTorch.
"""

from moongate.preference.answers import Answer, Choice, add, answer, picture_key, read_answers, read_sent
from moongate.preference.page import PAGE, write_page
from moongate.preference.results import LEVEL, Preference, Results, Strengths, results_of
from moongate.preference.study import PICTURES, QUESTIONS, Item, Question, Study, Target, Trial, check_rater

__all__ = [
    "LEVEL",
    "PAGE",
    "PICTURES",
    "QUESTIONS",
    "Answer",
    "Choice",
    "Item",
    "Preference",
    "Question",
    "Results",
    "Strengths",
    "Study",
    "Target",
    "Trial",
    "add",
    "answer",
    "check_rater",
    "picture_key",
    "read_answers",
    "read_sent",
    "results_of",
    "write_page",
]
