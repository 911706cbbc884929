"""A blind comparison by people: pairs of pictures or videos on one page, votes as JSON, wins with their intervals."""

from __future__ import annotations

from ras_dit.study.build import Study, StudyConfig, build_study
from ras_dit.study.key import Key
from ras_dit.study.pairs import Pair, find_pairs
from ras_dit.study.results import Results, tally
from ras_dit.study.statistics import sign_test, wilson_interval
from ras_dit.study.votes import Ballot, Ballots, Vote, read_ballots

__all__ = [
    "Ballot",
    "Ballots",
    "Key",
    "Pair",
    "Results",
    "Study",
    "StudyConfig",
    "Vote",
    "build_study",
    "find_pairs",
    "read_ballots",
    "sign_test",
    "tally",
    "wilson_interval",
]
