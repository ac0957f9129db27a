"""English words for `TextGuard`. All are folded: lower case, no marks."""

from __future__ import annotations

from .tables import LanguageTables


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((a, b) for a, _, b in (pair.partition("/") for pair in text.split()))


_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

_COUNTRIES = _set("""
afghanistan albania algeria argentina armenia australia austria azerbaijan bahrain bangladesh
belarus belgium bolivia bosnia brazil bulgaria cambodia cameroon canada chile china colombia croatia
cuba cyprus czechia denmark dubai ecuador egypt england estonia ethiopia finland france georgia
germany ghana greece guatemala hungary iceland india indonesia iran iraq ireland israel italy
jamaica japan jordan kazakhstan kenya korea kosovo kuwait latvia lebanon libya lithuania luxembourg
malaysia malta mexico moldova mongolia montenegro morocco nepal netherlands nigeria norway oman
pakistan palestine panama paraguay peru philippines poland portugal qatar romania russia rwanda
scotland senegal serbia singapore slovakia slovenia somalia spain sudan sweden switzerland syria
taiwan tanzania thailand tunisia turkey turkiye uganda ukraine uruguay usa uk uzbekistan venezuela
vietnam wales yemen zimbabwe africa asia europe
""")
_CITIES = _set("""
amsterdam ankara antalya athens atlanta austin baghdad bangkok barcelona beijing berlin bern bogota
boston brussels bucharest budapest cairo chicago copenhagen dallas delhi denver detroit dublin
edinburgh florence frankfurt geneva hamburg hanoi helsinki houston istanbul izmir jakarta jerusalem
johannesburg karachi kyiv lagos lima lisbon liverpool london lyon madrid manchester manila melbourne
miami milan montreal moscow mumbai munich nairobi naples nashville orlando osaka oslo ottawa paris
philadelphia phoenix portland prague riyadh rome rotterdam sacramento seattle seoul shanghai
sofia stockholm stuttgart sydney tehran tokyo toronto vancouver venice vienna warsaw washington
zurich florida texas california ohio alaska hawaii nevada arizona oregon utah newyork losangeles
sanfrancisco sandiego lasvegas hongkong saltlakecity
""")
_LANGUAGES = _set("""
arabic chinese czech danish dutch english finnish french german greek hebrew hindi hungarian italian
japanese korean mandarin norwegian persian portuguese russian spanish swahili swedish thai turkish
ukrainian urdu vietnamese american australian british canadian mexican indian brazilian
""")
_BRANDS = _set("""
visa mastercard amex maestro paypal venmo zelle android ios iphone ipad macbook windows linux macos
google apple amazon microsoft facebook instagram twitter whatsapp samsung netflix spotify uber lyft
chrome firefox safari python java javascript rust mysql postgresql sqlite redis mongodb docker
kubernetes honda toyota ford bmw tesla hilton marriott walmart citibank santander
""")
_CURRENCIES = _set("""
usd eur gbp jpy chf aud cad rub inr cny dollar euro pound lira yen franc ruble rupee yuan peso
krona bitcoin ethereum
""")

ENGLISH = LanguageTables(
    markers=_set("""
    the is are was were do does did how what when where why who which my your can i to of and for
    with this that it not have has will would should
    """),
    negations=_set("""
    not no never none nobody nothing nowhere neither nor without cannot cant dont doesnt didnt isnt
    arent wasnt werent wont wouldnt couldnt shouldnt hasnt havent hadnt aint unable hardly
    """),
    negation_pattern=r".*n't",
    antonyms=_pairs("""
    above/below accept/decline accept/refuse accept/reject activate/deactivate add/delete
    add/remove add/subtract admit/deny advantage/disadvantage agree/disagree allow/block
    allow/deny allow/forbid allow/prevent allow/prohibit alone/together always/never
    approve/deny approve/reject arrival/departure arrive/depart arrive/leave
    ascending/descending asleep/awake asset/liability attack/defend beautiful/ugly before/after
    begin/end begin/finish benefit/drawback best/worst better/worse big/small boring/interesting
    borrow/lend bottom/top brave/afraid break/repair bright/dark busy/idle buy/sell calm/anxious
    cheap/expensive cheapest/priciest clean/dirty close/open closed/open common/rare
    compress/decompress connect/disconnect correct/false correct/incorrect correct/wrong
    create/delete create/destroy credit/debit day/night dead/alive decode/encode
    decrease/increase decrypt/encrypt deep/shallow default/custom defrost/freeze
    deposit/withdraw deposit/withdrawal difficult/easy disable/enable domestic/international
    download/upload drunk/sober dry/wet earliest/latest early/late east/west easy/hard
    employ/fire empty/full enter/exit enter/leave even/odd exclude/include excluding/including
    expand/collapse export/import external/internal fail/pass fail/succeed failed/successful
    failure/success false/true far/near fast/slow faster/slower fat/thin father/mother
    female/male few/many fewer/more fewest/most find/lose first/last fixed/variable
    follow/unfollow forget/remember forward/backward forward/reverse found/lost free/paid
    freeze/unfreeze fresh/stale front/back frozen/thawed full/partial future/past gain/lose
    gain/loss good/bad grow/shrink guilty/innocent happy/sad hard/soft hardware/software
    have/lack healthy/ill healthy/sick heavy/light hide/show high/low higher/lower
    highest/lowest hire/fire horizontal/vertical hot/cold husband/wife improve/worsen
    inbound/outbound income/expense incoming/outgoing increase/lower increase/reduce
    indoor/outdoor inflate/deflate inhale/exhale input/output install/uninstall
    interior/exterior join/leave junior/senior know/forget known/unknown large/small
    largest/smallest lease/own least/most left/right legal/illegal less/more like/dislike
    like/hate lock/unlock long/short longer/shorter longest/shortest loose/tight loud/quiet
    louder/quieter love/hate lower/raise lower/upper major/minor man/woman manual/automatic
    max/min maximize/minimize maximum/minimum mount/unmount much/little mute/unmute narrow/wide
    native/foreign negative/positive new/old newer/older newest/oldest nice/nasty noisy/quiet
    north/south offline/online old/young older/younger open/shut optional/mandatory
    optional/required parent/child pause/resume permanent/temporary personal/business
    plural/singular poor/rich present/absent private/public profit/loss profitable/unprofitable
    pull/push raise/drop raw/cooked receive/send receiver/sender refund/charge remote/local
    reply/forward rise/fall rising/falling rude/polite safe/dangerous safe/unsafe same/different
    save/discard save/spend seller/buyer serial/parallel shut/open simple/complex single/married
    smooth/rough sooner/later start/end start/finish start/stop startup/shutdown static/dynamic
    strong/weak subscribe/unsubscribe sunrise/sunset supply/demand support/oppose sweet/bitter
    sweet/sour synchronous/asynchronous tall/short thick/thin together/apart under/over
    useful/useless victory/defeat warm/cool warmer/cooler win/lose winner/loser with/without
    """),
    exclusive={
        "antonym": (
            _set("red orange yellow green blue purple pink brown black white grey"),
            _set("breakfast lunch dinner brunch"),
            _set("morning afternoon evening night midnight noon"),
            _set("spring summer autumn winter"),
            _set("credit debit prepaid"),
            _set("virtual physical"),
            _set("daily weekly monthly quarterly yearly"),
            _set("north south east west"),
            _set("username password email phone"),
            _set("breakfast lunch dinner"),
            _set("mother father brother sister son daughter husband wife"),
            _set("bachelor master doctorate"),
        ),
        "question": (_set("when where why who"),),
        "person": (_set("my your his her their"),),
        "unit": (_set("celsius fahrenheit kelvin"), _set("miles kilometers km"), _set("lbs kg")),
    },
    named={
        "entity": _COUNTRIES | _CITIES | _LANGUAGES | _BRANDS,
        "currency": _CURRENCIES,
        "date": _set("""
        monday tuesday wednesday thursday friday saturday sunday january february march april june
        july august september october november december today tomorrow yesterday tonight christmas
        easter thanksgiving halloween
        """),
    },
    aliases={
        "america": "usa",
        "states": "usa",
        "britain": "uk",
        "turkiye": "turkey",
        "holland": "netherlands",
        "dollars": "dollar",
        "usd": "dollar",
        "bucks": "dollar",
        "euros": "euro",
        "eur": "euro",
        "pounds": "pound",
        "gbp": "pound",
        "yens": "yen",
        "jpy": "yen",
        "liras": "lira",
        "francs": "franc",
        "chf": "franc",
        "rubles": "ruble",
        "rupees": "rupee",
        "pesos": "peso",
        "mastercards": "mastercard",
        "annually": "yearly",
        "annual": "yearly",
        "kilometres": "kilometers",
        "gray": "grey",
        "kms": "km",
        "mom": "mother",
        "dad": "father",
        "fall": "autumn",
        "bsc": "bachelor",
        "msc": "master",
        "phd": "doctorate",
        "e-mail": "email",
        "nyc": "newyork",
    },
    units={
        **dict.fromkeys(("ms", "millisecond", "milliseconds"), ("time", 0.001)),
        **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ("time", 1.0)),
        **dict.fromkeys(("min", "mins", "minute", "minutes"), ("time", _MINUTE)),
        **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), ("time", _HOUR)),
        **dict.fromkeys(("day", "days"), ("time", _DAY)),
        **dict.fromkeys(("week", "weeks"), ("time", 7 * _DAY)),
        **dict.fromkeys(("month", "months"), ("months", 1.0)),
        **dict.fromkeys(("year", "years", "yr", "yrs"), ("months", 12.0)),
        **dict.fromkeys(("mm", "millimeter", "millimeters"), ("length", 0.001)),
        **dict.fromkeys(("cm", "centimeter", "centimeters"), ("length", 0.01)),
        **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), ("length", 1.0)),
        **dict.fromkeys(
            ("km", "kms", "kilometer", "kilometers", "kilometre", "kilometres"), ("length", 1000.0)
        ),
        **dict.fromkeys(("inch", "inches"), ("length", 0.0254)),
        **dict.fromkeys(("ft", "foot", "feet"), ("length", 0.3048)),
        **dict.fromkeys(("mi", "mile", "miles"), ("length", 1609.344)),
        **dict.fromkeys(("mg", "milligram", "milligrams"), ("mass", 0.001)),
        **dict.fromkeys(("g", "gram", "grams"), ("mass", 1.0)),
        **dict.fromkeys(("kg", "kgs", "kilo", "kilos", "kilogram", "kilograms"), ("mass", 1000.0)),
        **dict.fromkeys(("oz", "ounce", "ounces"), ("mass", 28.349523125)),
        **dict.fromkeys(("lb", "lbs"), ("mass", 453.59237)),
        **dict.fromkeys(("ton", "tons", "tonne", "tonnes"), ("mass", 1e6)),
        **dict.fromkeys(("ml", "milliliter", "milliliters"), ("volume", 0.001)),
        **dict.fromkeys(("l", "liter", "liters", "litre", "litres"), ("volume", 1.0)),
        **dict.fromkeys(("gallon", "gallons"), ("volume", 3.785411784)),
        **dict.fromkeys(("cup", "cups"), ("volume", 0.2365882365)),
        **dict.fromkeys(("tbsp", "tablespoon", "tablespoons"), ("volume", 0.01478676478)),
        **dict.fromkeys(("tsp", "teaspoon", "teaspoons"), ("volume", 0.00492892159)),
        **dict.fromkeys(("c", "celsius"), ("celsius", 1.0)),
        **dict.fromkeys(("f", "fahrenheit"), ("fahrenheit", 1.0)),
        "kb": ("data", 1e3),
        "mb": ("data", 1e6),
        "gb": ("data", 1e9),
        "tb": ("data", 1e12),
        **dict.fromkeys(("%", "percent", "pct"), ("percent", 1.0)),
        **dict.fromkeys(("$", "usd", "dollar", "dollars", "bucks"), ("dollar", 1.0)),
        **dict.fromkeys(("cent", "cents"), ("dollar", 0.01)),
        **dict.fromkeys(("\u20ac", "eur", "euro", "euros"), ("euro", 1.0)),
        **dict.fromkeys(("\u00a3", "gbp", "pound", "pounds"), ("pound", 1.0)),
        **dict.fromkeys(("\u20ba", "lira", "liras"), ("lira", 1.0)),
        **dict.fromkeys(("\u00a5", "yen", "jpy"), ("yen", 1.0)),
    },
    numbers={
        "zero": 0,
        "two": 2,
        "three": 3,
        "four": 4,
        "five": 5,
        "six": 6,
        "seven": 7,
        "eight": 8,
        "nine": 9,
        "ten": 10,
        "eleven": 11,
        "twelve": 12,
        "thirteen": 13,
        "fourteen": 14,
        "fifteen": 15,
        "sixteen": 16,
        "seventeen": 17,
        "eighteen": 18,
        "nineteen": 19,
        "twenty": 20,
        "thirty": 30,
        "forty": 40,
        "fifty": 50,
        "sixty": 60,
        "seventy": 70,
        "eighty": 80,
        "ninety": 90,
        "dozen": 12,
        "half": 0.5,
    },
    scales={"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9},
    ordinals={
        "first": 1,
        "third": 3,
        "fourth": 4,
        "fifth": 5,
        "sixth": 6,
        "seventh": 7,
        "eighth": 8,
        "ninth": 9,
        "tenth": 10,
    },
    suffixes=r"'s?",
)
