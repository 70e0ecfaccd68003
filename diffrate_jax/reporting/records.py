"""JSON objects that come from outside, read into dataclasses field by field."""

import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NewType, TypeVar

from diffrate_jax.errors import UserError

Positive = NewType("Positive", int)
PositiveFloat = NewType("PositiveFloat", float)
Percent = NewType("Percent", float)
Record = TypeVar("Record")
# Products and ratios of numbers within these bounds are finite.
LEAST, MOST = 1e-100, 1e100


def parse_json(text: str) -> Any:
    """Returns a JSON value whose numbers one can compute with.

    Raises:
        ValueError: no JSON, or a number that nobody measures.
    """
    whole, real = partial(_bounded, int), partial(_bounded, float)
    return json.loads(text, parse_int=whole, parse_float=real)


def _bounded(kind: type[int] | type[float], text: str) -> int | float:
    value = kind(text)
    if value and not LEAST <= abs(value) <= MOST:
        raise ValueError(f"{reprlib.repr(text)} is beyond what anybody measures")
    return value


def read_record(
    kind: type[Record], record: Any, where: str, given: Mapping[str, Any]
) -> Record:
    """Makes a dataclass of a JSON object; its annotations say what the values must be.

    Keys that the dataclass does not know are left out.

    Args:
        where: file, and place in it, for the sentence of an error.
        given: fields that do not stand in the JSON object.

    Raises:
        UserError: not an object, a field is missing, or has a value of another kind.
    """
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: expected a JSON object, found {reprlib.repr(record)}; {_AGAIN}"
        )
    values = dict(given)
    for field in dataclasses.fields(kind):
        if field.name not in given:
            words, fits = _KINDS[field.type]
            missing = field.name not in record
            if missing and field.default is dataclasses.MISSING:
                raise UserError(
                    f"{where}: expected {field.name!r}, {words}, found none; {_AGAIN}"
                )
            value = field.default if missing else record[field.name]
            if not fits(value):
                raise wrong_value(where, field.name, words, value)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def wrong_value(where: str, key: str, expected: str, found: Any) -> UserError:
    """Returns the error for a value of a file that is not as expected."""
    return UserError(
        f"{where}: {key!r} must be {expected}, found {reprlib.repr(found)}; {_AGAIN}"
    )


def is_whole(value: Any) -> bool:
    """Returns whether a JSON value is an integer from 0 on; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_above(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(count) and count for count in value)


_AGAIN = "write the file again with the program that made it"
_KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ("text", _is_text),
    str | None: ("text or null", lambda value: value is None or _is_text(value)),
    int: ("a whole number", is_whole),
    Positive: ("a whole number above 0", lambda value: is_whole(value) and value > 0),
    float: ("a finite number", _is_number),
    float | None: (
        "a finite number or null",
        lambda value: value is None or _is_number(value),
    ),
    int | None: (
        "a whole number or null",
        lambda value: value is None or is_whole(value),
    ),
    tuple[Positive, ...] | None: (
        "a list of whole numbers above 0 or null",
        lambda value: value is None or _are_counts(value),
    ),
    PositiveFloat: ("a number above 0", _is_above),
    Percent: (
        "a number from 0 to 100",
        lambda value: _is_number(value) and 0 <= value <= 100,
    ),
    tuple[PositiveFloat, ...]: (
        "a list of numbers above 0",
        lambda value: isinstance(value, list) and value and all(map(_is_above, value)),
    ),
    dict[str, Any]: ("a JSON object", lambda value: isinstance(value, dict)),
}
