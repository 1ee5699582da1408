"""Merging of cards: what a person wrote survives every merge, and untouched sections are renewed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from ul_tokenizer.publish.card_merge import MEASURED, METRICS, Card, card_reviser, merged, section

NAMES = ("use", "description", METRICS)
PROSE = st.text(st.characters(codec="utf-8", exclude_characters="<>-"), max_size=30)
LINES = st.text("ab 1#|\n", max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PROSE | st.dates()
KEYS = st.sampled_from(["license", "base_model", "datasets", "my-key", "pipeline_tag"]) | PROSE
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(PROSE, SCALARS, max_size=3)
METADATA = st.dictionaries(KEYS, VALUES, max_size=4)


def generated_card(number: int, title: str = "run", has_figures: bool = True) -> Card:
    """A card as a program writes it; `number` changes what its sections say."""
    metadata: dict[str, Any] = {"library_name": "ul_tokenizer", "license": f"mit-{number}", "tags": ["a", str(number)]}
    if has_figures:
        metadata[MEASURED] = [{"name": title, "results": [{"metrics": [{"type": "psnr", "value": number + 0.5}]}]}]
    parts = "\n\n".join(section(name, f"{name} says {number}", metadata) for name in NAMES)
    return Card(metadata, f"# {title}\n\n{parts}\n")


GENERATED = st.builds(generated_card, st.integers(0, 3), has_figures=st.booleans())


@st.composite
def edited_cards(draw: st.DrawFn) -> tuple[Card, list[str], dict[str, Any]]:
    """A generated card that a person edited; with it, the texts and the metadata that the person wrote."""
    card = draw(GENERATED)
    metadata, body, written = {**card.metadata, **draw(METADATA)}, card.body, []
    for n, (place, text) in enumerate(draw(st.lists(st.tuples(st.integers(0, 8), LINES), max_size=4))):
        mine = f"person {n}{text}."
        lines = body.split("\n")
        lines[min(place, len(lines) - 1)] += mine
        body = "\n".join(lines)
        written += mine.split("\n")
    mine_too = {key: value for key, value in metadata.items() if key not in ("tags", MEASURED)}
    return Card(metadata, body), written, mine_too


# ---------------------------------------------------------------- claims about all cards


@given(edited_cards(), st.lists(GENERATED, max_size=4))
def test_what_a_person_wrote_survives_any_sequence_of_merges(
    edited: tuple[Card, list[str], dict[str, Any]], generated: list[Card]
) -> None:
    card, texts, metadata = edited
    for new in generated:
        card = merged(Card.parsed(str(card)), new)
    assert [text for text in texts if text not in card.body] == []
    assert {key: card.metadata[key] for key in metadata} == metadata


@given(edited_cards(), GENERATED)
def test_merging_twice_is_merging_once(edited: tuple[Card, list[str], dict[str, Any]], generated: Card) -> None:
    once = merged(edited[0], generated)
    assert merged(once, generated) == once
    assert str(merged(Card.parsed(str(once)), generated)) == str(once)


@example({"\x85": "a\x85b\u2028c"}, "# Mine\n")
@given(METADATA, LINES | st.sampled_from(["---\na: 1\n---\n# x", "---\ntext\n---\n", "\n---\n\n---\n"]))
def test_a_card_parses_back_to_itself(metadata: dict[str, Any], body: str) -> None:
    card = Card(metadata, body.lstrip("\r\n"))
    assert Card.parsed(str(card)) == card


@given(st.text() | st.text("-\n: a[]{}!&*", max_size=30).map(lambda text: f"---\n{text}\n---\n# Title"))
def test_any_text_parses_and_is_stable_from_then_on(text: str) -> None:
    card = Card.parsed(text)
    assert Card.parsed(str(card)) == card


@given(METADATA, GENERATED)
def test_a_persons_keys_keep_their_order(metadata: dict[str, Any], generated: Card) -> None:
    card = merged(Card(metadata, "# Mine\n"), generated)
    assert list(card.metadata)[: len(metadata)] == list(metadata)


# ---------------------------------------------------------------- single cases


def test_untouched_sections_are_renewed() -> None:
    card = merged(generated_card(1), generated_card(2))
    assert card.body == generated_card(2).body
    assert card.metadata[MEASURED] == generated_card(2).metadata[MEASURED]


def test_figures_stay_if_a_person_edited_the_section() -> None:
    old = generated_card(1)
    old = Card(old.metadata, old.body.replace("metrics says 1", "metrics says 100"))
    card = merged(old, generated_card(2))
    assert "metrics says 100" in card.body
    assert "use says 2" in card.body
    assert card.metadata[MEASURED] == old.metadata[MEASURED]


def test_figures_stay_if_a_person_edited_the_metadata() -> None:
    old = generated_card(1)
    figures = [{"name": "mine", "results": []}]
    card = merged(Card({**old.metadata, MEASURED: figures}, old.body), generated_card(2))
    assert card.metadata[MEASURED] == figures
    assert "metrics says 1" in card.body


def test_figures_that_are_no_longer_measured_go_from_section_and_metadata() -> None:
    card = merged(generated_card(1), generated_card(2, has_figures=False))
    assert MEASURED not in card.metadata
    assert "metrics says 2" in card.body


def test_a_card_without_the_section_of_figures_gets_none_in_its_metadata() -> None:
    """The next push could not tell whether to renew them."""
    assert MEASURED not in merged(Card({}, "# Mine\n"), generated_card(1)).metadata


def test_a_persons_model_index_stays_if_there_is_no_text_below() -> None:
    card = merged(Card({MEASURED: "mine"}, "\n"), generated_card(1))
    assert card.metadata[MEASURED] == "mine"
    assert card.body == generated_card(1).body


def test_sections_of_the_first_cards_are_renewed() -> None:
    """Their digests do not cover the figures in the metadata."""
    old = generated_card(1)
    parts = "\n\n".join(section("x", f"{name} says 1").replace(":x", f":{name}") for name in NAMES)
    card = merged(Card(old.metadata, f"# run\n\n{parts}\n"), generated_card(2))
    assert card.body == generated_card(2).body
    assert card.metadata[MEASURED] == generated_card(2).metadata[MEASURED]


def test_a_removed_section_stays_away() -> None:
    old = generated_card(1)
    body = old.body.replace(section("use", "use says 1"), "")
    assert "use says" not in merged(Card(old.metadata, body), generated_card(2)).body


def test_sections_are_renewed_in_a_file_with_windows_line_ends() -> None:
    card = merged(Card.parsed(str(generated_card(1)).replace("\n", "\r\n")), generated_card(2))
    assert "use says 2" in card.body
    assert "use says 1" not in card.body


def test_a_new_card_without_sections_replaces_the_old_one() -> None:
    assert merged(generated_card(1), Card({}, "# Mine\n")) == Card({}, "# Mine\n")


def test_tags_are_united_in_order() -> None:
    card = merged(Card({"tags": "b"}, "# Mine\n"), generated_card(1))
    assert card.metadata["tags"] == ["b", "a", "1"]


@pytest.mark.parametrize("front", ["license: [", "a: !!bool maybe", "a: 2024-13-40", "? [1]\n: 2", "a: b: c", "\t- x"])
def test_broken_metadata_is_dropped_and_the_text_stays(front: str) -> None:
    assert Card.parsed(f"---\n{front}\n---\n# Mine\n") == Card({}, "# Mine\n")


def test_a_rule_at_the_start_of_a_text_is_not_metadata() -> None:
    text = "---\nJust a sentence.\n---\n# Mine\n"
    assert Card.parsed(text) == Card({}, text)
    assert merged(Card.parsed(text), generated_card(1)).body == text


@pytest.mark.parametrize(
    "metadata", [{"license": None}, {1: "x"}, {True: "on"}, {MEASURED: "no list"}, {"ignore_metadata_errors": 1}]
)
def test_metadata_that_the_clients_own_card_loses_or_refuses_stays(metadata: dict[Any, Any]) -> None:
    text = f"---\n{yaml.safe_dump(metadata)}---\n\n# Mine\n"
    assert Card.parsed(text).metadata == metadata
    assert str(Card.parsed(text)) == text


def test_a_repository_without_a_card_gets_the_generated_one() -> None:
    revise = card_reviser(lambda repo_id: generated_card(1, repo_id))
    assert revise("me/run", None) == str(generated_card(1, "me/run"))
    assert revise("me/run", "# Mine\n").endswith("\n# Mine\n")
