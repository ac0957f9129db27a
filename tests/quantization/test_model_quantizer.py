"""ModelQuantizer: its arguments are checked by name, and every kind of model finds its part."""

import json
import math
import re

import pytest

from ai_model_optimizations import ModelQuantizer, UnsupportedError
from ai_model_optimizations.quantization import (
    CosineReport,
    QuantizationReport,
    TensorReport,
    model_quantizer,
)
from ai_model_optimizations.quantization.request import Request, matches


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "int3"}, ValueError, "dtype: expected"),
        ({"dtype": "f32"}, ValueError, "dtype: expected 'auto', 'smallest' or one of"),
        ({"skip": 5}, TypeError, "skip: expected names or regexes, got int"),
        ({"skip": b"name"}, TypeError, "skip: expected names or regexes, got bytes"),
        ({"skip": [3]}, TypeError, r"skip\[0\]: expected str or a compiled pattern, got int"),
        ({"skip": ["a("]}, ValueError, r"skip\[0\]: 'a\(' is neither a name nor a regex"),
        ({"min_cosine": 2}, ValueError, "min_cosine: expected -1 to 1, got 2"),
        ({"min_cosine": math.nan}, ValueError, "min_cosine: expected -1 to 1, got nan"),
        ({"min_cosine": "0.9"}, TypeError, "min_cosine: expected a number, got str"),
        ({"verify_texts": "one"}, TypeError, "verify_texts: expected several texts, got str"),
        ({"verify_texts": []}, ValueError, "verify_texts: expected at least one text"),
        ({"verify_texts": ["a", b"b"]}, TypeError, r"verify_texts\[1\]: expected str, got bytes"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ModelQuantizer(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, 3, b"model", object(), ["a"]])
def test_what_is_no_model_is_refused_by_its_type(model: object) -> None:
    with pytest.raises(UnsupportedError, match=f"model: got {type(model).__name__}, but only"):
        ModelQuantizer().quantize_model(model)


def test_skip_matches_names_beginnings_and_whole_regexes() -> None:
    name = "encoder.layer.1.output.weight"
    for pattern in (name, "encoder.layer.1", r"encoder\.layer\.\d+\..*", re.compile(".*weight")):
        assert matches(pattern, name)
    for pattern in ("encoder.layer.1.out", "layer", "encoder.layer.10", re.compile("encoder")):
        assert not matches(pattern, name)


def test_a_skip_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="skip: 'typo' matches none of the model's 2 names"):
        Request("f16", skip=("a", "typo")).check_skip(["a", "b"])


def test_every_kind_names_a_module_of_the_package() -> None:
    for kind in model_quantizer.KINDS:
        module = model_quantizer.import_module(kind.module, model_quantizer.__package__)
        assert callable(module.quantize), kind


def example_report() -> QuantizationReport:
    tensors = (
        TensorReport("w", (4, 2), "f32", "f16", 32, 16, "quantized", "", 70.0, 1e-4, 0, 3, 2),
        TensorReport("b", (2,), "f32", "f32", 8, 8, "kept", "named by skip", math.inf, 0.0),
        TensorReport("ids", (5,), "i64", "", 40, 0, "removed", "a buffer that nothing reads"),
    )
    return QuantizationReport(
        "dict", "f16", tensors, 10_000_000, 8_000_000, CosineReport(3, 0.99, 0.995), ("A note.",)
    )


def test_report_sums_and_shows_everything() -> None:
    report = example_report()
    assert (report.bytes_before, report.bytes_after) == (80, 24)
    assert report.saved == pytest.approx(0.7)
    assert [t.name for t in report.of_action("removed")] == ["ids"]
    text = str(report)
    for expected in (
        "70.0 dB",
        "exact",
        "kept: named by skip",
        "removed: 1 tensors",
        "(70.0% less)",
        "10.0 MB resident before, 8.0 MB after",
        "at least 0.990000, mean 0.995000",
        "became subnormal: 3",
        "became zero: 2",
        "A note.",
    ):
        assert expected in text, expected


def test_report_is_strict_json() -> None:
    content = json.loads(example_report().to_json(), parse_constant=pytest.fail)
    assert content["bytes_after"] == 24 and content["tensors"][0]["sqnr_db"] == 70.0
    assert content["tensors"][1]["sqnr_db"] is None and content["cosine"]["texts"] == 3
