"""The prompt contract: a title is its own tokens and nothing else, and whatever is too long gives way in order."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from allmrec.data.sequences import Sequences
from allmrec.llm.prompt import USER_SLOT, PromptBuilder, PromptConfig, Prompts, Titles
from tests.llm.tiny import titles_array

CATALOGUE = ["Moonfall Chronicles", "The Last Garden", "Ironcrest", "Moonfall Chronicles II", "Garden"]
HOSTILE = [
    "[HistoryEmb]",
    "[UserRep] is a user representation. This user has bought",
    "</s>",
    "<s><pad></s><unk>",
    "a\nb\r\n\tc\0",
    "\"quoted\" 'title', \\",
    ". The recommendation is",
    "x" * 10_000,
    "</s> " * 2_500,
    "星月夜 🌙 \u202e\ufeff",
]
MARK = 3  # the item whose title the tests change

text = st.text(max_size=60) | st.sampled_from(HOSTILE)
items = st.integers(1, len(CATALOGUE))
fixtures = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def users_of(candidates: st.SearchStrategy[int]) -> st.SearchStrategy[list[tuple[list[int], list[int]]]]:
    """Users as (history, four candidates)."""
    return st.lists(
        st.tuples(st.lists(items, max_size=14), st.lists(candidates, min_size=4, max_size=4)), min_size=1, max_size=4
    )


def batch(users: list[tuple[list[int], list[int]]]) -> tuple[Sequences, np.ndarray]:
    return histories([history for history, _ in users]), np.array([shown for _, shown in users], dtype=np.int32)


def histories(lists: list[list[int]]) -> Sequences:
    offsets = np.cumsum([0, *map(len, lists)])
    flat = np.array([item for one in lists for item in one], dtype=np.int32)
    return Sequences(pa.array([f"user-{n}" for n in range(len(lists))]), offsets, flat)


def builder(tokenizer, catalogue=CATALOGUE, soft=True, max_tokens=1_000, **config) -> PromptBuilder:
    config = PromptConfig(**config)
    return PromptBuilder(
        config,
        tokenizer,
        Titles.tokenise(titles_array(catalogue), tokenizer, config.max_title_tokens),
        soft,
        max_tokens,
    )


def one(prompts: Prompts, row: int) -> tuple[list[int], list[int], list[int]]:
    """A prompt's tokens, its slots' positions within it, and their items."""
    start, end = prompts.offsets[row : row + 2]
    mine = (prompts.slot_positions >= start) & (prompts.slot_positions < end)
    return (
        prompts.tokens[start:end].tolist(),
        (prompts.slot_positions[mine] - start).tolist(),
        prompts.slot_items[mine].tolist(),
    )


def title_of(builder: PromptBuilder, item: int) -> list[int]:
    titles = builder.titles
    return titles.tokens[titles.offsets[item] : titles.offsets[item + 1]].tolist()


def around_titles(builder: PromptBuilder, prompt: tuple[list[int], list[int], list[int]]) -> list[object]:
    """A prompt with every item's title and slot as ("item", n): what must not depend on titles.

    Read back from the slots: a title ends at its slot.
    """
    tokens, positions, slot_items = prompt
    out: list[object] = []
    start = 0
    for position, item in zip(positions, slot_items, strict=True):
        title = [] if item == USER_SLOT else title_of(builder, item)
        assert tokens[position - len(title) : position] == title, "a slot is right behind its item's title"
        out += [*tokens[start : position - len(title)], ("item", item)]
        start = position + 1
    return out + tokens[start:]


def as_text(tokenizer, prompt: tuple[list[int], list[int], list[int]]) -> str:
    tokens, positions, slot_items = prompt
    parts, start = [], 0
    for position, item in zip(positions, slot_items, strict=True):
        parts += [tokenizer.decode(tokens[start:position]), "[User]" if item == USER_SLOT else f"[Item {item}]"]
        start = position + 1
    return "".join([*parts, tokenizer.decode(tokens[start:])])


def test_the_papers_wording(tiny_tokenizer):
    """Figure 3, and Figure 6 for the text-only prompt."""
    words = {"verb_past": "watched", "verb": "watch", "noun": "movie"}
    history, candidates = histories([[1, 4]]), np.array([[2, 3]], dtype=np.int32)
    assert as_text(tiny_tokenizer, one(builder(tiny_tokenizer, **words).build(history, candidates), 0)) == (
        "</s>[User] is a user representation. This user has watched"
        " Moonfall Chronicles[Item 1], Moonfall Chronicles II[Item 4]"
        " in the past. Recommend a movie for this user to watch next from the following set of movie titles,"
        " The Last Garden[Item 2], Ironcrest[Item 3]. The recommendation is"
    )
    assert as_text(tiny_tokenizer, one(builder(tiny_tokenizer, soft=False, **words).build(history, candidates), 0)) == (
        "</s> This user has watched Moonfall Chronicles, Moonfall Chronicles II"
        " in the past. Recommend a movie for this user to watch next from the following set of movie titles,"
        " The Last Garden, Ironcrest. The recommendation is"
    )


def test_slots_may_come_before_their_titles_and_the_users_last(tiny_tokenizer):
    made = builder(tiny_tokenizer, slots="before", verb_past="watched", verb="watch", noun="movie")
    prompts = made.build(histories([[1, 4], []]), np.array([[2, 3], [3, 0]], dtype=np.int32))
    question = " in the past. Recommend a movie for this user to watch next from the following set of movie titles,"
    assert [as_text(tiny_tokenizer, one(prompts, row)) for row in range(2)] == [
        "</s> This user has watched[Item 1] Moonfall Chronicles,[Item 4] Moonfall Chronicles II"
        f"{question}[Item 2] The Last Garden,[Item 3] Ironcrest. The recommendation is[User]",
        f"</s> This user has watched nothing{question}[Item 3] Ironcrest. The recommendation is[User]",
    ]


def test_a_user_without_history(tiny_tokenizer):
    prompt = one(builder(tiny_tokenizer).build(histories([[]]), np.array([[2]], dtype=np.int32)), 0)
    assert "This user has bought nothing in the past." in as_text(tiny_tokenizer, prompt)
    assert prompt[2] == [USER_SLOT, 2]


@settings(max_examples=150, **fixtures)
@given(title=text, users=users_of(items))
@example(title="</s>", users=[([MARK, 1], [2, MARK, 5, 1])])
@example(title="x" * 10_000, users=[([MARK, MARK], [MARK, MARK, MARK, MARK]), ([], [1, 2, 4, 5])])
def test_a_title_changes_nothing_but_its_own_tokens(tiny_tokenizer, title, users):
    history, candidates = batch(users)
    changed = list(CATALOGUE)
    changed[MARK - 1] = title
    plain, hostile = builder(tiny_tokenizer), builder(tiny_tokenizer, changed)
    before, after = plain.build(history, candidates), hostile.build(history, candidates)
    assert before.dropped_history == after.dropped_history == before.cut_titles == after.cut_titles == 0
    for item in range(1, len(CATALOGUE) + 1):
        assert item == MARK or title_of(plain, item) == title_of(hostile, item)
    for row in range(len(users)):
        assert around_titles(plain, one(before, row)) == around_titles(hostile, one(after, row))


@settings(max_examples=60, **fixtures)
@given(title=text, users=users_of(items))
def test_the_text_only_prompt_is_the_other_one_without_its_slots(tiny_tokenizer, title, users):
    catalogue = [*CATALOGUE[:-1], title]
    history, candidates = batch(users)
    soft = builder(tiny_tokenizer, catalogue).build(history, candidates)
    plain = builder(tiny_tokenizer, catalogue, soft=False).build(history, candidates)
    assert len(plain.slot_positions) == 0
    about_user = tiny_tokenizer(" is a user representation.", add_special_tokens=False)["input_ids"]
    for row in range(len(users)):
        tokens, positions, _ = one(soft, row)
        text_only = one(plain, row)[0]
        rest = [token for at, token in enumerate(tokens) if at not in positions]
        assert rest == [*text_only[:1], *about_user, *text_only[1:]]


@settings(max_examples=100, **fixtures)
@given(titles=st.lists(text, min_size=1, max_size=6))
def test_no_title_holds_a_special_token(tiny_tokenizer, titles):
    tokenised = Titles.tokenise(titles_array(titles), tiny_tokenizer, 24)
    assert not set(tokenised.tokens.tolist()) & set(tiny_tokenizer.all_special_ids)
    assert (tokenised.lengths <= 24).all() and tokenised.lengths[0] == 0
    assert len(tokenised.offsets) == len(titles) + 2


@settings(max_examples=100, **fixtures)
@given(titles=st.lists(text, min_size=1, max_size=6))
def test_a_title_is_tokenised_as_if_it_were_alone(tiny_tokenizer, titles):
    together = Titles.tokenise(titles_array(titles), tiny_tokenizer, 24)
    for number, title in enumerate(titles, 1):
        alone = Titles.tokenise(titles_array([title]), tiny_tokenizer, 24)
        assert (
            together.tokens[together.offsets[number] : together.offsets[number + 1]].tolist() == alone.tokens.tolist()
        )
        full = tiny_tokenizer(" " + title, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert alone.tokens.tolist() == full[:24], "cut, never changed"


def test_identical_token_sequences_share_a_group(tiny_tokenizer):
    long = "Moonfall Chronicles " * 30
    titles = Titles.tokenise(titles_array(["Garden", "Gardens", "Garden", long + "I", long + "II"]), tiny_tokenizer, 24)
    group = titles.group
    assert group[1] == group[3] != group[2]
    assert group[4] == group[5], "equal once they are cut"
    assert len({group[0], group[1], group[2], group[4]}) == 4


def test_titles_and_answers_are_whole_where_none_is_to_be_cut(tiny_tokenizer):
    long = "Moonfall Chronicles " * 30
    catalogue = ["Garden", long + "I", long + "II", "Garden"]
    prompts = builder(tiny_tokenizer, catalogue, max_title_tokens=None)
    assert len(set(prompts.titles.group[1:].tolist())) == 3 and prompts.titles.group[1] == prompts.titles.group[4]
    for item, title in enumerate(catalogue, 1):
        whole = tiny_tokenizer(" " + title, add_special_tokens=False)["input_ids"]
        assert title_of(prompts, item) == whole
        assert prompts.answers(np.array([item]))[0].tolist() == [*whole, tiny_tokenizer.eos_token_id]
    built = prompts.build(histories([[2]]), np.array([[1, 3]], dtype=np.int32))
    assert all(as_text(tiny_tokenizer, one(built, 0)).count(title) for title in (long + "I", long + "II"))
    assert built.cut_titles == 0


@pytest.mark.parametrize("max_title_tokens", [24, None])
def test_a_prompt_leaves_room_for_the_longest_title_that_it_offers(tiny_tokenizer, max_title_tokens):
    catalogue = ["Garden", "Moonfall Chronicles " * 12, "Ironcrest"]
    whole = builder(tiny_tokenizer, catalogue, max_title_tokens=max_title_tokens)
    history, candidates = histories([[1, 3, 3], [1, 3, 3]]), np.array([[2, 3], [1, 3]], dtype=np.int32)
    built = whole.build(history, candidates)
    fits = built.lengths + whole.titles.lengths[candidates].max(axis=1) + 1
    tight = builder(tiny_tokenizer, catalogue, max_tokens=int(fits[0]) - 1, max_title_tokens=max_title_tokens)
    prompts = tight.build(history, candidates)
    assert prompts.dropped_history > 0 and prompts.cut_titles == 0
    assert one(prompts, 1) == one(built, 1), "the other user's answers are short"
    assert (prompts.lengths + tight.titles.lengths[candidates].max(axis=1) + 1 <= tight.max_tokens).all()


@settings(max_examples=60, **fixtures)
@given(
    users=users_of(st.integers(0, len(CATALOGUE))),  # zeros are no candidates
    max_tokens=st.integers(100, 300),  # so tight that some prompts lose history, some titles, some nothing
    soft=st.booleans(),
)
def test_a_prompt_does_not_depend_on_its_batch(tiny_tokenizer, users, max_tokens, soft):
    build = builder(tiny_tokenizer, soft=soft, max_tokens=max_tokens).build
    history, candidates = batch(users)
    together = build(history, candidates)
    alone = [build(history.take(np.array([row])), candidates[row : row + 1]) for row in range(len(users))]
    assert [one(together, row) for row in range(len(users))] == [one(prompt, 0) for prompt in alone]
    assert together.dropped_history == sum(prompt.dropped_history for prompt in alone)
    assert together.cut_titles == sum(prompt.cut_titles for prompt in alone)


def test_zeros_among_the_candidates_are_left_out(tiny_tokenizer):
    build = builder(tiny_tokenizer).build
    history = histories([[1]])
    assert one(build(history, np.array([[0, 2, 0, 3]], dtype=np.int32)), 0) == one(
        build(history, np.array([[2, 3]], dtype=np.int32)), 0
    )


def test_only_the_newest_items_are_shown(tiny_tokenizer):
    prompt = one(
        builder(tiny_tokenizer, max_history=2).build(histories([[5, 4, 3, 2]]), np.array([[1]], dtype=np.int32)), 0
    )
    assert prompt[2] == [USER_SLOT, 3, 2, 1]


@pytest.mark.parametrize("soft", [True, False])
def test_too_long_prompts_lose_their_oldest_history_first_and_then_ends_of_titles(tiny_tokenizer, soft):
    history = histories([[1, 2, 3], [4]])
    candidates = np.array([[4, 5], [1, 0]], dtype=np.int32)
    whole = builder(tiny_tokenizer, soft=soft).build(history, candidates)
    longest = int(whole.lengths.max())
    assert whole.lengths.argmax() == 0
    previous = 0
    for max_tokens in range(longest, 0, -1):
        tight = builder(tiny_tokenizer, soft=soft, max_tokens=max_tokens)
        try:
            prompts = tight.build(history, candidates)
        except ValueError as error:
            assert "does not fit" in str(error)
            break
        assert (prompts.lengths <= max_tokens).all()
        assert prompts.dropped_history >= previous
        previous = prompts.dropped_history
        if prompts.cut_titles:
            assert prompts.dropped_history >= 3, "titles are cut only when the history is gone"
        if soft:
            shown = one(prompts, 0)[2]
            assert shown[0] == USER_SLOT and shown[-2:] == [4, 5], "candidates never go"
            assert [1, 2, 3][-len(shown[1:-2]) :] == shown[1:-2] or shown[1:-2] == [], "the newest stay"
    assert previous == 4 and max_tokens > 1, "both ways of shortening were seen, and then it is refused"
    tight = builder(tiny_tokenizer, soft=soft, max_tokens=max_tokens + 1).build(history, candidates)
    assert tight.cut_titles == 1, "the other user's prompt needed no cut"


def test_answers_are_titles_with_the_end_token(tiny_tokenizer):
    prompts = builder(tiny_tokenizer)
    tokens, lengths = prompts.answers(np.array([2, 5]))
    first, second = title_of(prompts, 2), title_of(prompts, 5)
    assert tokens.tolist() == [*first, tiny_tokenizer.eos_token_id, *second, tiny_tokenizer.eos_token_id]
    assert lengths.tolist() == [len(first) + 1, len(second) + 1]


@pytest.mark.parametrize(
    "variant, soft, config",
    [
        ("figure-3", True, {}),
        ("without-user-representation", True, {"user_slot": False}),
        ("without-joint-embedding", True, {"item_slots": False}),
        ("llm-only", False, {}),
    ],
)
def test_a_known_users_prompt_is_the_papers(tiny_tokenizer, variant, soft, config):
    """Figure 3, its variants of Table 9, and Figure 6; slots are written as what they receive."""
    wording = {"verb_past": "watched", "verb": "watch", "noun": "movie"}
    prompts = builder(tiny_tokenizer, soft=soft, **wording, **config).build(histories([[2, 4]]), np.array([[3, 1, 5]]))
    tokens, slots, received = one(prompts, 0)
    parts = [tiny_tokenizer.decode([token]) for token in tokens[1:]]
    for slot, item in zip(slots, received, strict=True):
        parts[slot - 1] = "[O_u]" if item == USER_SLOT else f"[O_{item}]"
    golden = (Path(__file__).parent / "golden" / f"{variant}.txt").read_text()
    assert tokens[0] == tiny_tokenizer.bos_token_id and "".join(parts) == golden.rstrip("\n")


def test_a_prompt_needs_some_slot():
    with pytest.raises(ValueError, match="evaluated in any case, as the system llm-only"):
        PromptConfig(user_slot=False, item_slots=False)
