"""What the votes say: wins, ties and losses of our method, and how far the voters can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from ras_dit.study.key import Key, KeyTrial
from ras_dit.study.statistics import sign_test, wilson_interval
from ras_dit.study.votes import Ballot, Vote

Outcome = Literal["win", "tie", "loss"]


@dataclass(frozen=True)
class Share:
    """So many of so many, with the 95 % Wilson interval of the share (None of nothing)."""

    count: int
    total: int

    @property
    def value(self) -> float | None:
        """The share, None of nothing."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return wilson_interval(self.count, self.total)

    @property
    def p_value(self) -> float:
        """Of the exact two-sided sign test against one half."""
        return sign_test(self.count, self.total)

    def to_dict(self) -> dict[str, Any]:
        """Count, total, share and interval."""
        return {"count": self.count, "total": self.total, "share": self.value, "interval": list(self.interval)}


@dataclass(frozen=True)
class Tally:
    """Votes counted from our method's side."""

    win: int = 0
    tie: int = 0
    loss: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Tally:
        """Count outcomes."""
        counts = Counter(outcomes)
        return cls(counts["win"], counts["tie"], counts["loss"])

    @property
    def total(self) -> int:
        """All votes."""
        return self.win + self.tie + self.loss

    @property
    def preferred(self) -> Share:
        """Ours among the votes that were no ties."""
        return Share(self.win, self.win + self.loss)

    def share(self, outcome: Outcome) -> Share:
        """Of one outcome among all votes."""
        return Share(getattr(self, outcome), self.total)

    def to_dict(self) -> dict[str, Any]:
        """Counts, and the shares with their intervals."""
        preferred = {**self.preferred.to_dict(), "p_value": self.preferred.p_value}
        outcomes: tuple[Outcome, ...] = ("win", "tie", "loss")
        return {"total": self.total, **{name: self.share(name).to_dict() for name in outcomes}, "preferred": preferred}


@dataclass(frozen=True)
class VoterResult:
    """One voter.

    Attributes:
        label: name, or the beginning of the id.
        voter: the id.
        tally: votes on pairs, repeats and catches left out.
        same: repeats with the same answer as the first time.
        caught: catches (one picture or video twice) that were called about equal.
        left: the left side among all votes that were no ties.
        median_seconds: per vote.
    """

    label: str
    voter: str
    tally: Tally
    same: Share
    caught: Share
    left: Share
    median_seconds: float


@dataclass(frozen=True)
class PairResult:
    """One pair over all voters."""

    name: str
    prompt: str | None
    tally: Tally


@dataclass(frozen=True)
class Results:
    """Everything that a report says.

    Attributes:
        ours: name of the method under test.
        against: name of what it was compared with.
        question: that voters were asked.
        tally: all votes on pairs, each counted once.
        by_pair: each pair counted once, by the majority of its votes.
        by_voter: each voter counted once, likewise.
        left: the left side among all votes that were no ties.
        same: repeats with the same answer as the first time.
        reversed: repeats where a win became a loss, or a loss a win.
        caught: catches that were called about equal.
        voters: one by one.
        pairs: one by one.
        notes: what to know about the votes.
    """

    ours: str
    against: str
    question: str
    tally: Tally
    by_pair: Tally
    by_voter: Tally
    left: Share
    same: Share
    reversed: Share
    caught: Share
    voters: tuple[VoterResult, ...]
    pairs: tuple[PairResult, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` writes it."""
        checks = {"left": self.left, "same": self.same, "reversed": self.reversed, "caught": self.caught}
        return {
            "ours": self.ours,
            "against": self.against,
            "question": self.question,
            "votes": self.tally.to_dict(),
            "pairs_by_majority": self.by_pair.to_dict(),
            "voters_by_majority": self.by_voter.to_dict(),
            "left_p_value": self.left.p_value,
            **{name: share.to_dict() for name, share in checks.items()},
            "voters": [_voter_dict(voter) for voter in self.voters],
            "pairs": [{"name": p.name, "prompt": p.prompt, **_counts(p.tally)} for p in self.pairs],
            "notes": list(self.notes),
        }


def _counts(tally: Tally) -> dict[str, int]:
    return {"win": tally.win, "tie": tally.tie, "loss": tally.loss}


def _voter_dict(result: VoterResult) -> dict[str, Any]:
    checks = {"same": result.same, "caught": result.caught, "left": result.left}
    return {
        "label": result.label,
        "voter": result.voter,
        **_counts(result.tally),
        **{name: share.to_dict() for name, share in checks.items()},
        "median_seconds": result.median_seconds,
    }


def tally(key: Key, ballots: Sequence[Ballot], notes: Sequence[str] = ()) -> Results:
    """Count the votes.

    Args:
        key: of the study.
        ballots: one for each voter, of this study.
        notes: to hand on.

    Raises:
        ValueError: no vote on any pair.
    """
    trials = {trial.id: trial for trial in key.trials}
    counted = [_Counted.of(ballot, trials) for ballot in ballots]
    per_pair = [Tally.of(c.pairs[i] for c in counted if i in c.pairs) for i in range(len(key.pairs))]
    every = Tally.of(outcome for c in counted for outcome in c.pairs.values())
    if every.total == 0:
        raise ValueError("votes: got none on any pair; collect votes first.")
    voters = tuple(_voter_result(ballot, c) for ballot, c in zip(ballots, counted, strict=True) if ballot.votes)
    return Results(
        ours=key.ours,
        against=key.against,
        question=key.question,
        tally=every,
        by_pair=Tally.of(_majority(found) for found in per_pair if found.total),
        by_voter=Tally.of(_majority(voter.tally) for voter in voters if voter.tally.total),
        left=_sum(c.left for c in counted),
        same=_sum(c.same for c in counted),
        reversed=_sum(c.reversed for c in counted),
        caught=_sum(c.caught for c in counted),
        voters=voters,
        pairs=tuple(PairResult(p.name, p.prompt, found) for p, found in zip(key.pairs, per_pair, strict=True)),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Counted:
    """One ballot: outcomes by pair, and the checks."""

    pairs: dict[int, Outcome]
    left: Share
    same: Share
    reversed: Share
    caught: Share

    @classmethod
    def of(cls, ballot: Ballot, trials: dict[str, KeyTrial]) -> _Counted:
        found: dict[str, dict[int, Outcome]] = {"pair": {}, "repeat": {}}
        caught = []
        for vote in ballot.votes:
            trial = trials[vote.trial]
            if trial.kind == "catch":
                caught.append(vote.choice == "equal")
            else:
                found[trial.kind][trial.pair] = _outcome(vote, trial)
        decided = [vote.choice == vote.left for vote in ballot.votes if vote.choice != "equal"]
        both = [(found["pair"][pair], again) for pair, again in found["repeat"].items() if pair in found["pair"]]
        return cls(
            pairs=found["pair"],
            left=_share(decided),
            same=_share([first == again for first, again in both]),
            reversed=_share([{first, again} == {"win", "loss"} for first, again in both]),
            caught=_share(caught),
        )


def _outcome(vote: Vote, trial: KeyTrial) -> Outcome:
    if vote.choice == "equal":
        return "tie"
    return "win" if vote.choice == trial.ours else "loss"


def _majority(found: Tally) -> Outcome:
    if found.win == found.loss:
        return "tie"
    return "win" if found.win > found.loss else "loss"


def _voter_result(ballot: Ballot, counted: _Counted) -> VoterResult:
    return VoterResult(
        label=ballot.label,
        voter=ballot.voter,
        tally=Tally.of(counted.pairs.values()),
        same=counted.same,
        caught=counted.caught,
        left=counted.left,
        median_seconds=median(vote.seconds for vote in ballot.votes),
    )


def _share(hits: Sequence[bool]) -> Share:
    return Share(sum(hits), len(hits))


def _sum(shares: Iterable[Share]) -> Share:
    found = list(shares)
    return Share(sum(share.count for share in found), sum(share.total for share in found))
