"""How often SmartCache hits on texts it has not seen, and how often it is wrong.

A stream of questions is drawn from labelled data: contexts uniformly, intents by Zipf's law, texts
uniformly within an intent. A miss stores the intent as the answer, so a hit is right when it
returns the intent of the question. ``--edits`` adds questions that differ from an earlier one in
one word that changes the answer (a negation, a WordNet antonym, another number). Each of these has
an answer of its own, as do out-of-scope questions, so any hit on them is wrong. Texts that the same
context has seen before are counted separately.

Every text belongs to either the tuning half or the testing half. The threshold is calibrated on a
stream of the first and evaluated on one of the second, once with the nearest entry alone deciding
and once with the neighbours deciding together (`Agreement`).

    python benchmarks/bench_cache_quality.py --banking77 DIR --clinc150 DIR [--wordnet DIR]

The data are PolyAI's banking77 (train.csv, test.csv; CC BY 4.0) and clinc150 (data_full.json; CC BY
3.0). Of clinc150 only the intents in SLOT_FREE are used: their answers do not depend on a word of
the question. Of banking77 all are used except those in BANKING_WITH_SLOTS.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import platform
import re
import subprocess
import sys
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ai_model_optimizations import _core
from ai_model_optimizations.cache import Agreement, LabelledPair, SmartCache
from ai_model_optimizations.cache.calibration import wilson_upper


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SLOT_FREE = _names(
    """
    account_blocked application_status are_you_a_bot credit_limit_change credit_score damaged_card
    direct_deposit do_you_have_pets find_phone flip_coin freeze_account gas_type goodbye greeting
    how_old_are_you improve_credit_score income insurance insurance_change jump_start lost_luggage
    maybe meaning_of_life new_card next_song no oil_change_how oil_change_when order_checks
    order_status payday pin_change pto_balance pto_request_status pto_used redeem_rewards repeat
    replacement_card_duration report_fraud report_lost_card reset_settings rewards_balance
    rollover_401k shopping_list sync_device taxes thank_you tire_change tire_pressure todo_list
    user_name w2 what_are_your_hobbies what_can_i_ask_you what_is_your_name what_song
    where_are_you_from whisper_mode who_do_you_work_for who_made_you yes
    """
)
BANKING_WITH_SLOTS = _names(
    """
    atm_support card_acceptance country_support exchange_rate exchange_via_app
    fiat_currency_support supported_cards_and_currencies transfer_timing
    """
)
# The lowest similarity at which the tuning stream looks for pairs.
LOWEST = 0.6


@dataclass(frozen=True)
class Question:
    """A text and the answer it should get."""

    text: str
    answer: str


@dataclass(frozen=True)
class Request:
    """A question from a context."""

    context: int
    question: Question


@dataclass
class Outcome:
    """Counts of hits and errors over a stream of requests."""

    requests: int = 0
    repeats: int = 0
    novel: int = 0
    hits: int = 0
    wrong: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def row(self, name: str, threshold: float) -> str:
        """One line of the table."""
        return (
            f"{name:42s} {threshold:6.4f} {self.hits / self.novel:8.1%} {self.wrong:6d} "
            f"{self.wrong / max(self.hits, 1):9.2%} "
            f"{wilson_upper(self.wrong, self.hits, 0.95):8.2%} {self.wrong / self.novel:10.3%}"
        )


def read_banking(folder: Path) -> list[Question]:
    """The texts of banking77 whose answer is their intent."""
    found = []
    for name in ("train.csv", "test.csv"):
        with open(folder / name, encoding="utf-8", newline="") as file:
            found += [Question(row["text"], row["category"]) for row in csv.DictReader(file)]
    return [question for question in found if question.answer not in BANKING_WITH_SLOTS]


def read_clinc(folder: Path) -> list[Question]:
    """The slot-free texts of clinc150, and the out-of-scope ones with an answer each."""
    content = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    found = []
    for part in content.values():
        for text, intent in part:
            if intent == "oos":
                found.append(Question(text, f"out of scope: {text}"))
            elif intent in SLOT_FREE:
                found.append(Question(text, intent))
    return found


def halves(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """Split by the text alone, so that no text is in both halves."""
    unique = list({question.text: question for question in questions}.values())
    parts = [zlib.crc32(question.text.encode()) & 1 for question in unique]
    return tuple(  # type: ignore[return-value]
        [q for q, part in zip(unique, parts, strict=True) if part == side] for side in (0, 1)
    )


# -- questions that differ in one word ----------------------------------------------------------

_AUXILIARY = re.compile(
    r"\b(is|are|was|were|do|does|did|can|could|will|would|should|has|have)\b", re.I
)
_NEGATED = re.compile(r"\bnot?\b|n't\b", re.I)
_NUMBER = re.compile(r"\d+")


def read_antonyms(folder: Path) -> dict[str, str]:
    """Antonyms of WordNet: a word and the first of its opposites."""
    lemmas: dict[tuple[str, str], list[str]] = {}
    pointers = []
    for part, kind in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):
                continue
            fields = line.split("|")[0].split()
            count = int(fields[3], 16)
            names = [re.sub(r"\(.*\)", "", name).lower() for name in fields[4 : 4 + 2 * count : 2]]
            lemmas[kind, fields[0]] = names
            rest = fields[5 + 2 * count :]
            for symbol, offset, target, place in zip(*(rest[i::4] for i in range(4)), strict=False):
                # Antonyms of nouns and verbs mostly belong to another sense: "credit" and "cash".
                if symbol == "!" and kind == "a":
                    source, aim = int(place[:2], 16) - 1, int(place[2:], 16) - 1
                    pointers.append((names[source], target, offset, aim))
    antonyms: dict[str, str] = {}
    for word, kind, offset, aim in pointers:
        antonyms.setdefault(word, lemmas[kind, offset][aim])
    return antonyms


def edit(text: str, antonyms: dict[str, str], rng: np.random.Generator) -> str | None:
    """The text with one word changed so that it asks for something else, or None."""
    ways = []
    if (auxiliary := _AUXILIARY.search(text)) and not _NEGATED.search(text):
        ways.append(text[: auxiliary.end()] + " not" + text[auxiliary.end() :])
    if (number := _NUMBER.search(text)) is not None:
        ways.append(text[: number.start()] + str(int(number[0]) + 1) + text[number.end() :])
    for word in re.finditer(r"[a-z]{4,}", text):
        opposite = antonyms.get(word[0])
        if opposite is not None and "_" not in opposite:
            ways.append(text[: word.start()] + opposite + text[word.end() :])
    return ways[rng.integers(len(ways))] if ways else None


# -- the stream ---------------------------------------------------------------------------------


def stream(
    questions: list[Question],
    length: int,
    contexts: int,
    zipf: float,
    edits: float,
    antonyms: dict[str, str],
    seed: int,
) -> list[Request]:
    """Requests drawn from `questions`; equal arguments give equal streams."""
    rng = np.random.default_rng(seed)
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        answer = question.answer
        by_answer.setdefault("" if answer.startswith("out of scope") else answer, []).append(
            question
        )
    out_of_scope = by_answer.pop("", [])
    answers = sorted(by_answer)
    rng.shuffle(answers)
    weights = np.arange(1, len(answers) + 1) ** -zipf
    weights /= weights.sum()
    requests: list[Request] = []
    seen: dict[int, list[Question]] = {}
    for _ in range(length):
        context = int(rng.integers(contexts))
        earlier = seen.setdefault(context, [])
        kind = rng.random()
        question: Question | None = None
        if kind < edits and earlier:
            changed = edit(earlier[rng.integers(len(earlier))].text, antonyms, rng)
            question = None if changed is None else Question(changed, f"edited: {changed}")
        elif kind > 0.95 and out_of_scope:
            question = out_of_scope[rng.integers(len(out_of_scope))]
        if question is None:
            texts = by_answer[answers[rng.choice(len(answers), p=weights)]]
            question = texts[rng.integers(len(texts))]
            earlier.append(question)
        requests.append(Request(context, question))
    return requests


def run(
    requests: list[Request],
    vectors: dict[str, np.ndarray],
    threshold: float,
    guard: str | None,
    agreement: Agreement | None,
    pairs: list[LabelledPair] | None = None,
) -> Outcome:
    """Serve a stream; with `pairs`, collect the pairs found instead of answering from them.

    A collecting run stores every question, as a service does in shadow mode.
    """
    cache = SmartCache(
        capacity=len(requests) + 1, max_bytes=8 << 30, ttl=None, guard=guard, agreement=agreement
    )
    outcome = Outcome()
    seen: set[tuple[int, str]] = set()
    for request in requests:
        outcome.requests += 1
        question, context = request.question, ("tenant", request.context)
        if (request.context, question.text) in seen:
            outcome.repeats += 1
            continue
        seen.add((request.context, question.text))
        outcome.novel += 1
        vector = vectors[question.text]
        hit = cache.get_semantic_similar(vector, threshold, context, question.text)
        if hit is not None:
            right = hit.value == question.answer
            outcome.hits += 1
            outcome.wrong += not right
            if pairs is not None:
                pairs.append(LabelledPair(hit.support, right))
        if hit is None or pairs is not None:
            cache.put(vector, question.answer, query=question.text, context=context)
    outcome.rejected = dict(cache.stats()["rejected"])
    return outcome


def measure(
    tune: list[Request], test: list[Request], vectors: dict[str, np.ndarray], limit: float
) -> list[dict[str, object]]:
    """Guard, agreement and calibration, on the testing stream."""
    rows = []
    for agreement, guard in itertools.product((None, Agreement()), (None, "auto")):
        pairs: list[LabelledPair] = []
        run(tune, vectors, LOWEST, guard, agreement, pairs)
        calibrator = SmartCache(guard=None)  # the pairs have already passed the guard
        calibration = calibrator.calibrate(pairs, limit, show=False)
        for calibrated in (False, True):
            name = (
                f"guard {'on' if guard else 'off'}, "
                f"{'agreement' if agreement else 'nearest alone'}, "
                f"{'calibrated' if calibrated else 'bare threshold'}"
            )
            threshold = calibration.threshold if calibrated else 0.85
            if threshold is None:
                print(f"{name:42s} no threshold meets the bound on the tuning stream")
                rows.append({"name": name, "threshold": None})
                continue
            outcome = run(test, vectors, threshold, guard, agreement)
            print(outcome.row(name, threshold))
            rows.append({"name": name, "threshold": threshold, **asdict(outcome)})
    return rows


def embed_all(texts: list[str], file: Path | None, model: str) -> dict[str, np.ndarray]:
    """Embed once; later runs with the same `file` only embed what is new."""
    known: dict[str, np.ndarray] = {}
    if file is not None and file.exists():
        with np.load(file) as stored:
            known = dict(zip(stored["texts"].tolist(), stored["vectors"], strict=True))
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    if missing:
        from ai_model_optimizations.embedding import EmbeddingModel

        rows = EmbeddingModel.load(model).encode(missing)
        known.update(zip(missing, np.asarray(rows, np.float32), strict=True))
        if file is not None:
            names = np.array(list(known), dtype=np.str_)
            np.savez(file, texts=names, vectors=np.stack(list(known.values())))
    return known


def commit() -> str:
    """The commit being measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Read the data, draw the streams, print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--banking77", type=Path, help="folder with train.csv and test.csv")
    parser.add_argument("--clinc150", type=Path, help="folder with data_full.json")
    parser.add_argument("--wordnet", type=Path, help="folder with WordNet's data.noun etc.")
    parser.add_argument("--embeddings", type=Path, help="npz file that caches the embeddings")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--length", type=int, default=20_000)
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--zipf", type=float, default=0.8)
    parser.add_argument("--edits", type=float, nargs="*", default=[0.0, 0.1])
    parser.add_argument("--limit", type=float, default=0.02, help="wrong hits per hit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    sources = {
        name: read(folder)
        for name, read, folder in (
            ("banking77", read_banking, options.banking77),
            ("clinc150", read_clinc, options.clinc150),
        )
        if folder is not None
    }
    if not sources:
        parser.error("give --banking77, --clinc150 or both")
    antonyms = read_antonyms(options.wordnet) if options.wordnet else {}
    if len(sources) > 1:
        sources["both"] = [question for questions in sources.values() for question in questions]
    streams = {
        (name, edits): [
            stream(
                half,
                options.length,
                options.contexts,
                options.zipf,
                edits,
                antonyms,
                options.seed + i,
            )
            for i, half in enumerate(halves(questions))
        ]
        for name, questions in sources.items()
        for edits in options.edits
    }
    texts = [r.question.text for pair in streams.values() for part in pair for r in part]
    vectors = embed_all(texts, options.embeddings, options.model)
    results = []
    for (name, edits), (tune, test) in streams.items():
        print(f"\n{name}, {edits:.0%} edited questions, {options.length} requests")
        print(f"{'':42s} threshold hit rate wrong wrong/hit  at most wrong/novel")
        rows = measure(tune, test, vectors, options.limit)
        results.append({"data": name, "edits": edits, "rows": rows})
    if options.output is not None:
        report = {
            "benchmark": "cache_quality",
            "commit": commit(),
            "command": " ".join(
                [Path(sys.argv[0]).name, *(a for a in sys.argv[1:] if "/" not in a)]
            ),
            "machine": platform.machine(),
            "cpu_info": str(_core.cpu_info()),
            "options": {
                key: value
                for key, value in vars(options).items()
                if isinstance(value, (int, float, list))
            },
            "results": results,
        }
        options.output.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
