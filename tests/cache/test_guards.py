import logging

import pytest
from helpers import at_angle
from hypothesis import given
from hypothesis import strategies as st

from ai_model_optimizations.cache import ENGLISH, TURKISH, SmartCache, TextGuard
from ai_model_optimizations.cache.guards import make_guard
from ai_model_optimizations.cache.guards.quantities import read_number
from ai_model_optimizations.cache.guards.text import fold

guard = make_guard("auto")

REFUSED = [
    ("Which ATMs can I use?", "Which POSs can I use?", "entity"),
    # Pain 1: opposite questions.
    ("How do I open the account?", "How do I close the account?", "antonym"),
    ("Is the port open by default?", "Is the port closed by default?", "antonym"),
    ("How do I turn on notifications?", "How do I turn off notifications on my phone?", "antonym"),
    ("How do I log in?", "How do I log out?", "antonym"),
    ("unlock my card", "lock my card", "antonym"),
    ("Is this food healthy?", "Is this food unhealthy?", "antonym"),
    ("coffee with milk", "coffee without milk", "negation"),
    ("Can I use it abroad?", "Can't I use it abroad?", "negation"),
    ("Is it open by default?", "Is it not open by default?", "negation"),
    ("a credit card", "a debit card", "antonym"),
    # Pain 12: numbers that differ by one digit.
    ("What is 17 * 3?", "What is 17 * 4?", "number"),
    ("transfer 500 dollars", "transfer 5,000 dollars", "number"),
    ("the first of them", "the third of them", "number"),
    ("Python 3.11 wheels", "Python 3.12 wheels", "number"),
    ("twenty-five people", "thirty-five people", "number"),
    ("-5 degrees", "5 degrees", "number"),
    ("100 USD to lira", "100 EUR to lira", "unit"),
    ("a run of 5 km", "a run of 5 miles", "number"),
    ("What happened on 2024-05-01?", "What happened on 2024-05-02?", "date"),
    ("Wake me at 5pm", "Wake me at 5am", "date"),
    ("open on monday", "open on tuesday", "date"),
    ("Meet on 03/04/2024", "Meet on 04/03/2024", "date"),
    # Pain 2: different questions, one answer.
    ("the weather in Paris", "the weather in London", "entity"),
    ("Who is Marie Curie?", "Who is Pierre Curie?", "entity"),
    ("price of an iphone12", "price of an iphone13", "entity"),
    ('What does "glee" mean?', 'What does "gloom" mean?', "entity"),
    ("exchange to euros", "exchange to pounds", "currency"),
    ("fly from paris to london", "fly from london to paris", "direction"),
    ("Is a cat bigger than a dog?", "Is a dog bigger than a cat?", "direction"),
    ("When does it open?", "Where does it open?", "question"),
    ("What is my balance?", "What is your balance?", "person"),
    # Turkish.
    ("hesap nasıl açılır", "hesap nasıl kapatılır", "antonym"),
    ("açık hesap var mı", "kapalı hesap var mı", "antonym"),
    ("kartım geldi", "kartım gelmedi", "negation"),
    ("para geliyor mu", "para gelmiyor mu", "negation"),
    ("bu güvenli mi", "bu güvenli değil mi", "negation"),
    ("şekerli kahve", "şekersiz kahve", "antonym"),
    ("100 dolara kaç lira", "100 euroya kaç lira", "unit"),
    ("iki hafta içinde", "üç hafta içinde", "number"),
    ("Ankara'da hava nasıl", "İzmir'de hava nasıl", "entity"),
    ("istanbul'dan ankara'ya uçak", "ankara'dan istanbul'a uçak", "direction"),
    ("sabah yediye alarm kur", "akşam yediye alarm kur", "antonym"),
    ("salı günü açık mı", "cuma günü açık mı", "date"),
]

ALLOWED = [
    ("Can I use my card at any ATMs?", "Can I use my card at an ATM?"),
    ("Which ATM's accept my card?", "What ATMs accept my card?"),
    ("refund after 14 days", "refund after two weeks"),
    ("Call me at 5pm", "call me at 17:00"),
    ("twenty-five percent of it", "25% of it"),
    ("5000 m", "5 km"),
    ("$1,000", "1000 dollars"),
    ("What is the capital of France?", "What's the capital city of France?"),
    ("my card isn't working", "my card is not working"),
    ("How do I cancel my subscription?", "How can I cancel the subscription?"),
    ("the weather in the US", "the weather in the United States"),
    ("What Is The Max Limit?", "what is the maximum limit?"),
    ("IŞIK AÇIK MI", "ışık açık mı"),
    ("isik acik mi", "ışık açık mı"),
    ("İKİ HAFTA SONRA", "14 gün sonra"),
    ("yüzde 5 faiz", "%5 faiz"),
    ("1,5 kg patates kaç lira", "1.5 kilo patates kaç lira"),
    ("İstanbul'da hava nasıl", "istanbulda hava nasıl"),
    ("1.000 lira kaç dolar", "bin lira kaç dolar"),
]


@pytest.mark.parametrize(("query", "candidate", "reason"), REFUSED)
def test_questions_with_different_answers_are_refused_either_way_round(query, candidate, reason):
    assert guard(query, candidate) == reason
    assert guard(candidate, query) == reason


@pytest.mark.parametrize(("query", "candidate"), ALLOWED)
def test_questions_that_say_the_same_pass(query, candidate):
    assert guard(query, candidate) is None
    assert guard(candidate, query) is None


@given(st.text(), st.text())
def test_any_texts_are_compared_without_error_and_alike_both_ways(a, b):
    assert guard(a, a) is None
    assert (guard(a, b) is None) == (guard(b, a) is None)


@pytest.mark.parametrize(
    ("digits", "comma", "value"),
    [
        ("1,000", False, 1000.0),
        ("1.000", False, 1.0),
        ("1.000", True, 1000.0),
        ("1,000", True, 1.0),
        ("1.5", True, 1.5),
        ("1,5", False, 1.5),
        ("1.234.567,5", True, 1234567.5),
        ("1,234,567.5", False, 1234567.5),
        ("3.11.2", False, 3112.0),
        ("2024", True, 2024.0),
    ],
)
def test_separators_are_read_as_the_language_writes_them(digits, comma, value):
    assert read_number(digits, comma) == value


def test_folding_makes_one_letter_of_the_two_turkish_ones():
    assert fold("İIıi ÇŞĞÜÖ") == "iiii csguo"


def test_tables_can_be_extended():
    english = ENGLISH.extended(
        negations=["nix"],
        antonyms=[("Hot-swap", "cold")],
        exclusive={"plan": [["Basic", "Gold"]]},
        named={"product": ["Zephyr"]},
        aliases={"golden": "gold"},
        units={"furlong": ("length", 201.168)},
    )
    own = TextGuard((english, TURKISH))
    assert own("the basic plan", "the golden plan") == "plan"
    assert own("install zephyr", "install it") == "product"
    assert own("nix of this", "this") == "negation"
    assert own("2 furlong", "402.336 m") is None
    assert guard("the basic plan", "the gold plan") is None


def test_a_wrong_hit_at_high_similarity_is_refused_counted_and_listed():
    cache = SmartCache()
    cache.put(at_angle(0.98), "opened", query="Is it open by default?", context="t")
    for _ in range(2):
        hit = cache.get_semantic_similar(
            at_angle(1.0), query="Is it closed by default?", context="t"
        )
        assert hit is None
    assert cache.stats()["rejected"] == {"antonym": 2}
    refused = cache.rejections()[0]
    assert refused.candidate == "Is it open by default?" and refused.reason == "antonym"
    assert refused.similarity == pytest.approx(0.98, abs=2e-3) and refused.context == "t"


def test_the_next_candidate_answers_when_the_best_is_refused():
    cache = SmartCache()
    for i in range(10):
        cache.put(at_angle(0.99), "no", query=f"Which bus goes to stop {i}?")
    cache.put(at_angle(0.9), "yes", query="Which bus goes to stop 77")
    hit = cache.get_semantic_similar(at_angle(1.0), query="Which bus goes to stop 77?")
    assert hit.value == "yes" and hit.guarded
    assert cache.stats()["rejected"] == {"number": 10}


def test_a_hit_that_no_guard_could_check_says_so_and_is_counted():
    cache = SmartCache()
    cache.put(at_angle(1.0), "v")
    assert cache.get_semantic_similar(at_angle(1.0), query="q").guarded is False
    assert cache.get_semantic_similar(at_angle(1.0)).guarded is False
    assert cache.stats()["unguarded_hits"] == 2


@pytest.mark.parametrize("options", [{"guard": None}, {"env": "guard"}])
def test_guards_can_be_turned_off(options, monkeypatch):
    if "env" in options:
        monkeypatch.setenv("AIMO_DISABLE", options["env"])
    cache = SmartCache(**{k: v for k, v in options.items() if k == "guard"})
    cache.put(at_angle(1.0), "v", query="open it")
    hit = cache.get_semantic_similar(at_angle(1.0), query="close it")
    assert hit.value == "v" and not hit.guarded


def test_any_callable_is_a_guard_and_several_are_asked_in_turn():
    asked = []

    def first(query, candidate):
        asked.append((query, candidate))
        return None

    cache = SmartCache(guard=[first, lambda query, candidate: "never"])
    cache.put(at_angle(1.0), "v", query="stored")
    assert cache.get_semantic_similar(at_angle(1.0), query="asked") is None
    assert asked == [("asked", "stored")]
    assert cache.stats()["rejected"] == {"never": 1}


def test_a_guard_that_fails_refuses_and_the_log_has_no_user_text(caplog):
    def broken(query, candidate):
        raise RuntimeError("out of order")

    cache = SmartCache(guard=broken)
    cache.put(at_angle(1.0), "v", query="my secret")
    with caplog.at_level(logging.ERROR, logger="ai_model_optimizations"):
        assert cache.get_semantic_similar(at_angle(1.0), query="other secret") is None
    assert cache.stats()["rejected"] == {"guard_error": 1}
    assert "out of order" in caplog.text and "secret" not in caplog.text


def test_a_guard_may_use_the_cache():
    cache = SmartCache(guard=lambda query, candidate: str(len(cache)) if len(cache) > 1 else None)
    cache.put(at_angle(1.0), "v", query="q")
    assert cache.get_semantic_similar(at_angle(1.0), query="other").value == "v"
