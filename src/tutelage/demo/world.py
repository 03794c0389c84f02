"""What does the tiny pair talk about? Short word problems about a running total, each with a worked solution.

A problem has a name, a kind of thing, 2 to 4 steps that change a count, and up to two distractors: sentences with a
number that plays no part. Clean solutions train the teacher. `noisy_solution` writes the mixture that trains the
student: slips of arithmetic that carry on, bare guesses, and stories that drift off. Pure Python; the tokenizer and
the models live in `make_pair`.
"""

import dataclasses
import json
import random
from pathlib import Path

from tutelage.errors import OutputExistsError

MAX_TOTAL = 99
MAX_CHANGE = 20

_WOMEN = ("Mia", "Ana", "Eva", "Ida", "Lea", "Zoe", "Ruth", "Nora", "Rosa", "Tara", "Lily", "Dana")
_MEN = ("Tom", "Ben", "Leo", "Max", "Sam", "Ivan", "Omar", "Paul", "Hugo", "Nils", "Carl", "Dan")
_PEOPLE = tuple([(name, "She") for name in _WOMEN] + [(name, "He") for name in _MEN])
_THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "figs",
    "hats",
    "keys",
    "lemons",
    "marbles",
    "nuts",
    "pears",
    "pens",
    "plums",
    "rings",
    "shells",
    "stamps",
    "tiles",
)

_OPENINGS = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "There are {n} {things} in the box of {name}.",
    "{name} owns {n} {things}.",
)
_QUESTIONS = (
    "How many {things} does {name} have now?",
    "How many {things} are there in the end?",
    "How many {things} is that?",
    "Count the {things} of {name}.",
)
_DISTRACTORS = (
    "{name} is {n} years old.",
    "{other} has {n} {others}.",
    "The shop is {n} miles away.",
    "It is day {n} of the month.",
    "{other} is {n} years old.",
    "The box has {n} {others} on it.",
)
# For each operation: (sentence of the story, words of the solution).
_WORDINGS = {
    "+": (
        ("{he} buys {n} more {things}.", "buys {n}"),
        ("{he} finds {n} {things}.", "finds {n}"),
        ("{other} gives {name} {n} {things}.", "gets {n}"),
        ("{he} makes {n} more.", "makes {n}"),
        ("In come {n} more {things}.", "gets {n}"),
    ),
    "-": (
        ("{he} gives {n} of them to {other}.", "gives {n}"),
        ("{he} loses {n} {things}.", "loses {n}"),
        ("{he} sells {n} of the {things}.", "sells {n}"),
        ("{other} takes {n} of them.", "loses {n}"),
        ("Then {n} {things} are gone.", "loses {n}"),
    ),
    "*": (
        ("Soon there are {n} times as many {things}.", "has {n} times"),
        ("A trick makes each of them {n}.", "has {n} times"),
    ),
    "/": (
        ("{he} gives half to {other}.", "gives half"),
        ("Then half of the {things} are gone.", "loses half"),
    ),
}
_OPERATION_WEIGHTS = {"+": 0.36, "-": 0.36, "*": 0.14, "/": 0.14}

NUM_STEPS = (2, 4)


@dataclasses.dataclass(frozen=True)
class Shares:
    """How often which kind of solution is written; the rest of them drift off."""

    clean: float
    careless: float
    guess: float


NOISY = Shares(clean=0.35, careless=0.25, guess=0.15)


@dataclasses.dataclass(frozen=True)
class WordProblem:
    """One problem, its worked solution ending in `\\boxed{answer}`, and the answer as a string of digits."""

    id: str
    problem: str
    solution: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Step:
    """One change of the running total: an operation, its operand, and the solution's words for it."""

    operation: str
    operand: int
    words: str

    def apply(self, total: int) -> int:
        """Return the total after this step; halves round down, which only a wrong total can make matter."""
        match self.operation:
            case "+":
                return total + self.operand
            case "-":
                return total - self.operand
            case "*":
                return total * self.operand
            case _:
                return total // self.operand


@dataclasses.dataclass(frozen=True)
class Story:
    """The facts of a problem, from which right and wrong solutions are written."""

    problem: str
    name: str
    pronoun: str
    things: str
    start: int
    steps: tuple[Step, ...]

    def totals(self) -> list[int]:
        """Return the running total after each step."""
        totals, total = [], self.start
        for step in self.steps:
            total = step.apply(total)
            totals.append(total)
        return totals

    @property
    def answer(self) -> int:
        """The total after the last step."""
        return self.totals()[-1]


def make_stories(count: int, seed: int, num_steps: tuple[int, int] = NUM_STEPS) -> list[Story]:
    """Return `count` stories with pairwise different problem texts, the same ones for the same seed.

    A story has from `num_steps[0]` to `num_steps[1]` steps; with more than 4, some are longer than any the packaged
    models were trained on.

    Repeats within one call are rejected. Across seeds nothing is compared, but even the 2-step problems number more
    than 10^9, so two sets of some ten thousand problems share a text with small probability.
    """
    rng = random.Random(seed)
    stories: dict[str, Story] = {}
    while len(stories) < count:
        story = _make_story(rng, num_steps)
        stories.setdefault(story.problem, story)
    return list(stories.values())


def make_problems(count: int, seed: int, num_steps: tuple[int, int] = NUM_STEPS) -> list[WordProblem]:
    """Return `count` different word problems, the same ones for the same seed; see `make_stories` on overlap."""
    return [
        WordProblem(f"world-{seed}-{index:05d}", story.problem, clean_solution(story), str(story.answer))
        for index, story in enumerate(make_stories(count, seed, num_steps))
    ]


def write_problems(path: str | Path, count: int, seed: int) -> None:
    """Write problems as JSON lines with the keys id, problem, answer and solution; an existing file is refused."""
    path = Path(path)
    if path.exists():
        raise OutputExistsError(f"{path} exists already; problems are written to a new file. Choose another path.")
    with path.open("x", encoding="utf-8") as file:
        file.write(problem_lines(count, seed))


def problem_lines(count: int, seed: int, num_steps: tuple[int, int] = NUM_STEPS) -> str:
    """Problems as JSON lines; see `write_problems`."""
    keys = ("id", "problem", "answer", "solution")
    rows = [{key: getattr(problem, key) for key in keys} for problem in make_problems(count, seed, num_steps)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def clean_solution(story: Story) -> str:
    """Write the worked solution without a mistake."""
    return _write_solution(story, story.totals())


def careless_solution(story: Story, rng: random.Random) -> str:
    """Write a solution with at least one slip, after which later steps continue from the wrong total."""
    while True:
        totals, total = [], story.start
        for step in story.steps:
            total = step.apply(total)
            if rng.random() < 0.5:
                total += rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
            totals.append(total)
        # A count stays a count, and rounding a half may not hide the slip.
        if min(totals) >= 0 and totals[-1] != story.answer:
            return _write_solution(story, totals)


def guessed_solution(rng: random.Random) -> str:
    """Write a number between 1 and 99 without any work."""
    guess = rng.randint(1, MAX_TOTAL)
    return rng.choice(("", "Maybe ", "So ")) + f"\\boxed{{{guess}}}"


def drifting_solution(story: Story, rng: random.Random) -> str:
    """Write a solution that is right for some steps, then wanders to other people and numbers, often without answer."""
    num_kept = rng.randrange(len(story.steps))
    lines = _solution_lines(story, story.totals())[: 1 + num_kept]
    number = rng.randint(2, MAX_TOTAL)
    for _ in range(rng.randint(1, max(1, 5 - num_kept))):
        name, pronoun = rng.choice(_PEOPLE)
        if rng.random() < 0.5:
            words = rng.choice(_DISTRACTORS)
            lines.append(_fill(words, rng, name, pronoun, rng.choice(_THINGS), rng.randint(2, MAX_CHANGE)))
        else:
            step = _make_step(rng, number, name, pronoun, story.things)[0]
            lines.append(_step_line(pronoun, step, number, step.apply(number)))
            number = step.apply(number)
    if rng.random() < 0.5:
        lines.append(f"\\boxed{{{number}}}")
    return "\n".join(lines)


def noisy_solution(story: Story, rng: random.Random, shares: Shares = NOISY) -> str:
    """Write one solution drawn from a student's mixture of clean, careless, guessed and drifting ones."""
    draw = rng.random()
    if draw < shares.clean:
        return clean_solution(story)
    if draw < shares.clean + shares.careless:
        return careless_solution(story, rng)
    if draw < shares.clean + shares.careless + shares.guess:
        return guessed_solution(rng)
    return drifting_solution(story, rng)


def _make_story(rng: random.Random, num_steps: tuple[int, int]) -> Story:
    (name, pronoun), things = rng.choice(_PEOPLE), rng.choice(_THINGS)
    start = rng.randint(4, 50)
    sentences = []
    steps: list[Step] = []
    total = start
    for _ in range(rng.randint(*num_steps)):
        step, sentence = _make_step(rng, total, name, pronoun, things)
        steps.append(step)
        sentences.append(sentence)
        total = step.apply(total)
    for _ in range(min(rng.choice((0, 1, 1, 2)), max(0, 5 - len(steps)))):
        number = rng.randint(2, MAX_CHANGE)
        distractor = _fill(rng.choice(_DISTRACTORS), rng, name, pronoun, things, number)
        sentences.insert(rng.randint(0, len(sentences)), distractor)
    sentences.insert(0, _fill(rng.choice(_OPENINGS), rng, name, pronoun, things, start))
    sentences.append(_fill(rng.choice(_QUESTIONS), rng, name, pronoun, things, 0))
    return Story(" ".join(sentences), name, pronoun, things, start, tuple(steps))


def _make_step(rng: random.Random, total: int, name: str, pronoun: str, things: str) -> tuple[Step, str]:
    """Draw a step that keeps the total a whole number between 1 and 99, and its sentence in the story."""
    operands = {
        "+": range(2, min(MAX_CHANGE, MAX_TOTAL - total) + 1),
        "-": range(2, min(MAX_CHANGE, total - 1) + 1),
        "*": range(2, min(3, MAX_TOTAL // max(total, 1)) + 1),
        "/": range(2, 3 if total >= 2 and total % 2 == 0 else 2),
    }
    possible = [operation for operation in operands if operands[operation]]
    operation = rng.choices(possible, [_OPERATION_WEIGHTS[operation] for operation in possible])[0]
    operand = rng.choice(operands[operation])
    sentence, words = rng.choice(_WORDINGS[operation])
    return Step(operation, operand, words.format(n=operand)), _fill(sentence, rng, name, pronoun, things, operand)


def _fill(words: str, rng: random.Random, name: str, pronoun: str, things: str, number: int) -> str:
    """Fill a sentence, with a bystander and bystanding things that differ from the story's own."""
    other = rng.choice([person for person, _ in _PEOPLE if person != name])
    others = rng.choice([kind for kind in _THINGS if kind != things])
    return words.format(name=name, he=pronoun, things=things, n=number, other=other, others=others)


def _write_solution(story: Story, totals: list[int]) -> str:
    return "\n".join([*_solution_lines(story, totals), f"\\boxed{{{totals[-1]}}}"])


def _solution_lines(story: Story, totals: list[int]) -> list[str]:
    lines = [f"{story.name} has {story.start}."]
    for step, before, after in zip(story.steps, [story.start, *totals], totals, strict=False):
        lines.append(_step_line(story.pronoun, step, before, after))
    return lines


def _step_line(pronoun: str, step: Step, before: int, after: int) -> str:
    return f"{pronoun} {step.words}: {before}{step.operation}{step.operand}={after}"
