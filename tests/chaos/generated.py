"""Jobs drawn from the published schema, right by it or spoiled."""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**63, -1, 1e308, "nan", "1e999", "20", "\x00", "../..", "a" * 3000, "½"])
)
JUNK: Strategy = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["name", "url"]), inner, max_size=3)
    ),
    max_leaves=5,
)
# No host is asked for these: the first is refused, the others are names or too short to be a picture.
_WORDS = st.sampled_from(
    ["https://127.0.0.1:1/x", "a", "None", "a:0.5", "iVBORw0KGgo=", "", "<lora:b:1>"]
)
_MOST_FIELDS = 6


class Drawing:
    """Draws values of a schema.

    Args:
        components: what its references name.
        spoiled: whether any part of a value may be replaced by anything.
        fixed: values of fields, wherever they stand, instead of what their schema allows.
    """

    def __init__(
        self,
        components: Mapping[str, Any],
        *,
        spoiled: bool,
        fixed: Mapping[str, Strategy] | None = None,
    ) -> None:
        self._components = components
        self._spoiled = spoiled
        self._fixed = fixed or {}
        self._drawn: dict[str, Strategy] = {}

    def of(self, schema: Any) -> Strategy:
        """Return what `schema` allows, and JUNK beside it if it is to be spoiled."""
        right = self._right(schema)
        # Four of five, so that most fields of most jobs are right.
        return st.one_of(right, right, right, right, JUNK) if self._spoiled else right

    def _right(self, schema: Any) -> Strategy:
        if schema is True or not schema.keys() & {"$ref", "const", "enum", "type", "anyOf"}:
            return JUNK
        if "$ref" in schema:
            return self._named(schema["$ref"].rpartition("/")[2])
        if "enum" in schema or "const" in schema:
            return st.sampled_from(schema.get("enum", [schema.get("const")]))
        if "type" not in schema:
            return st.one_of([self.of(part) for part in schema["anyOf"]])
        draw: Strategy = getattr(self, f"_{schema['type']}")(schema)
        return draw

    def _named(self, name: str) -> Strategy:
        if name not in self._drawn:
            self._drawn[name] = st.deferred(lambda: self.of(self._components[name]))
        return self._drawn[name]

    def _null(self, _schema: Any) -> Strategy:
        return st.none()

    def _boolean(self, _schema: Any) -> Strategy:
        return st.booleans()

    def _integer(self, schema: Any) -> Strategy:
        least, most = schema.get("minimum"), schema.get("maximum")
        if "exclusiveMaximum" in schema:
            most = schema["exclusiveMaximum"] - 1
        near = 0 if least is None else least
        usual = st.integers(near, near + 64 if most is None else min(most, near + 64))
        return usual | st.integers(least, most)

    def _number(self, schema: Any) -> Strategy:
        least = schema.get("minimum", schema.get("exclusiveMinimum"))
        return st.floats(
            least,
            schema.get("maximum"),
            exclude_min="exclusiveMinimum" in schema,
            allow_nan=False,
            allow_infinity=False,
        )

    def _string(self, schema: Any) -> Strategy:
        if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        shortest = schema.get("minLength", 0)
        words = _WORDS.filter(lambda word: len(word) >= shortest)
        return words | st.text(min_size=shortest, max_size=shortest + 8)

    def _array(self, schema: Any) -> Strategy:
        least = schema.get("minItems", 0)
        return st.lists(self.of(schema.get("items", True)), min_size=least, max_size=least + 2)

    def _object(self, schema: Any) -> Strategy:
        fields: dict[str, Any] = schema.get("properties", {})
        if fields:
            parts = {
                name: self._fixed[name] if name in self._fixed else self.of(part)
                for name, part in fields.items()
            }
            ways = [way["required"] for way in schema.get("anyOf", [])] or [[]]
            return _some(parts, schema.get("required", []), ways)
        if schema.get("additionalProperties") is False:
            return st.just({})
        names = schema.get("propertyNames")
        return st.dictionaries(
            st.sampled_from(names["enum"]) if names else st.text(max_size=8),
            self.of(schema.get("additionalProperties", True)),
            max_size=2,
        )


@st.composite
def _some(
    draw: st.DrawFn,
    parts: Mapping[str, Strategy],
    needed: Sequence[str],
    ways: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Draw an object with the needed fields, those of one of `ways`, and a few more."""
    more = draw(st.lists(st.sampled_from(sorted(parts)), max_size=_MOST_FIELDS))
    chosen = {*needed, *draw(st.sampled_from(ways)), *more}
    return {name: draw(parts[name]) for name in sorted(chosen)}
