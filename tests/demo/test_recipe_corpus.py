"""The corpus: the same on every run, rendered as the server renders, and never mixing the two sides."""

from __future__ import annotations

import json
import random
import re

import pytest

from demo.recipe.corpus import hard_texts, words
from demo.recipe.corpus.chat.courtesy_table import COURTESY
from demo.recipe.corpus.document import Document
from demo.recipe.corpus.slots import all_slots, make_value
from demo.recipe.corpus.split import HELD_OUT, TRAIN, is_held_out
from demo.recipe.corpus.stream import make_document
from demo.recipe.corpus.templates import choose, parse, say, texts
from demo.recipe.corpus.tools import episodes, questions, react, results, tools
from demo.recipe.corpus.tools.domains import HELD_OUT_DOMAINS, all_domains
from demo.recipe.corpus.tools.purpose_words import NOUNS, PROPERTIES, VERBS
from demo.recipe.corpus.tools.results import Result
from prompts.messages import FunctionCall, Message, ToolSpec, strip_content
from prompts.react import render as server_react
from tests.support.paths import TEXTS
from tests.support.segments import display

GOLDEN = TEXTS / "react.json"


def test_same_number_gives_same_document():
    numbers = [*range(40), *range(90_000, 90_060)]
    assert [make_document(7, n) for n in numbers] == [make_document(7, n) for n in reversed(numbers)][::-1]
    assert make_document(7, 3) != make_document(8, 3)


def test_every_domain_is_complete():
    for domain in all_domains().values():
        slots = domain.slot_map()
        assert all(key in all_slots() for key, _ in slots.values()), domain.key
        for mark, lines in domain.lines.items():
            assert lines, (domain.key, mark)
            for line in lines:
                rng = random.Random(1)
                named = {
                    p[0].partition("=")[0] for _ in range(20) for p in choose(line, rng, 0.9) if isinstance(p, tuple)
                }
                assert named <= set(slots), (domain.key, line)
        assert results.make_result(domain.result, random.Random(1), "zh", TRAIN, fail=0.0).observation


def test_templates_choose_keep_and_fill():
    rng = random.Random(0)
    seen = {say("(a|b) x[ y| z] {n}", rng, n=1) for _ in range(200)}
    assert seen == {f"{a} x{o} 1" for a in "ab" for o in ("", " y", " z")}
    assert texts("(a|b) x[ y]") == ["a", "b", " x", " y"]
    with pytest.raises(ValueError, match="missing"):
        parse("(a|b")


def test_training_never_draws_held_out_domains_or_values():
    keys = {d.domain.key for n in range(300) for d in _episode(n, TRAIN).tools}
    assert not keys & HELD_OUT_DOMAINS
    held_out = {d.domain.key for n in range(100) for d in _episode(n, HELD_OUT).tools}
    assert held_out & HELD_OUT_DOMAINS
    assert not held_out & (set(all_domains()) - HELD_OUT_DOMAINS)


def test_held_out_wordings_are_not_trained():
    domain = next(d for d in all_domains().values() if d.key == "weather")
    lines = domain.lines["q"]
    rng = random.Random(0)
    assert {tools.wording(lines, rng, TRAIN) for _ in range(100)} == set(lines[:-1])
    assert {tools.wording(lines, rng, HELD_OUT) for _ in range(100)} == {lines[-1]}


def test_odd_texts_are_of_the_training_side_and_of_every_common_character():
    assert len({*hard_texts.common_characters()}) == 3755
    assert {"的", "齐", "座", "啊"} <= {*hard_texts.common_characters()}
    rng = random.Random(0)
    english = {hard_texts.english_word(rng) for _ in range(20_000)}
    assert {"weather", "umbrella"} <= english
    spoken = " ".join(
        text.lower()
        for key in HELD_OUT_DOMAINS
        for line in all_domains()[key].lines["d"] + all_domains()[key].lines["q"]
        for text in texts(line)
    )
    only_held_out = {"typhoon", "karaoke", "babysitter", "wallpaper"}
    assert all(word in spoken for word in only_held_out)
    assert not english & only_held_out
    kept = {
        word for table in (VERBS, NOUNS, PROPERTIES) for entry in table if is_held_out(str(entry)) for word in entry
    }
    assert {"address", "地址"} <= kept
    assert not kept & (english | {hard_texts.chinese_word(rng) for _ in range(50_000)})


def test_what_people_say_to_the_model_may_be_a_value_too():
    english, chinese = hard_texts.courtesies()
    assert {"Thank you", "Hello", "Good morning"} & {*english} and "谢谢你" in chinese
    rng = random.Random(0)
    drawn = {hard_texts.phrase(rng, lang) for _ in range(4000) for lang in ("en", "zh")}
    assert drawn >= {"Thank you", "谢谢你"}
    last = {row[0][1:].partition(")")[0].split("|")[-1] for row in COURTESY if row[0].startswith("(")}
    assert not last & {*english}, "the evaluation's own wordings"


def test_any_text_may_be_a_value_in_training_alone():
    known = {city[0] for city in words.CITIES}
    rng = random.Random(0)
    drawn = {
        split: [make_value(all_slots()["city"], rng, "en", split).data for _ in range(300)]
        for split in (TRAIN, HELD_OUT)
    }
    corpus_words = {hard_texts.english_word(rng).capitalize() for _ in range(20_000)} - {
        word for c in known for word in c.split()
    }
    odd_ones = {split: [v for v in values if {*str(v).split()} <= corpus_words] for split, values in drawn.items()}
    assert len(odd_ones[TRAIN]) > 40
    assert not odd_ones[HELD_OUT]


def test_choices_of_the_table_are_not_the_only_ones():
    table = {option[0] for option in all_slots()["priority"].options()}
    offered = [_options_of("ticket", seed) for seed in range(60)]
    others = [options for options in offered if options and not options & table]
    assert 5 < len(others) < 40
    assert len({frozenset(options) for options in others}) == len(others)


def _options_of(key: str, seed: int) -> set[str]:
    tool = tools.make_tool(all_domains()[key], random.Random(seed), "en", TRAIN)
    return {option for p in tool.parameters if p.slot.key == "priority" for option, _, _ in p.slot.options()}


def test_drills_ask_for_every_tool_before_they_ask_again():
    for seed in range(20):
        rng = random.Random(seed)
        document = episodes.drill(react.Episode(rng, TRAIN, 4))
        called = [
            turn.text.split("Action: ")[1].split("\n")[0]
            for turn in document.turns
            if "\nAction: " in turn.text[:200] and turn.role == "assistant"
        ]
        assert len({*called[:4]}) == min(4, len(called))


def test_sums_of_the_evaluation_are_not_trained():
    from demo.recipe.corpus.chat.facts import operands

    rng = random.Random(0)
    for split in (TRAIN, HELD_OUT):
        for _ in range(300):
            a, b, _ = operands(rng, "+", split)
            assert is_held_out(f"{a}+{b}") == (split == HELD_OUT)


def _episode(number: int, split: str) -> react.Episode:
    return react.Episode(random.Random(number), split, 2)


def _tool_from(function: dict) -> tools.Tool:
    """A golden function description as a tool of ours."""
    name = function.get("name_for_model") or function["name"]
    domain = all_domains()["search"]
    human = function.get("name_for_human") or name
    description = function.get("description_for_model") or function.get("description") or ""
    tool = tools.Tool(domain, name, human, description, [])
    tool.schema = lambda: function["parameters"]  # type: ignore[method-assign]
    return tool


def test_header_and_calls_equal_the_published_prompts():
    cases = json.loads(GOLDEN.read_text())["prompts"]
    offered = [_tool_from(f) for f in cases[1]["functions"]]
    document = Document("x").system("You are terse.").user(*react.header(offered), "Weather in Boston?").assistant("")
    assert document.prompt_before_last_reply() == cases[1]["prompt"]

    offered = [_tool_from(f) for f in cases[4]["functions"]]
    first = questions.Request(offered[0], "", {"search_query": "周杰伦"}, {})
    second = questions.Request(offered[0], "", {"search_query": "周杰伦 老婆"}, {})
    spans = [
        *react.call_spans(first, "en", Result("Jay Chou.", ""), True, said="search it"),
        *react.call_spans(second, "en", Result("Hannah Quinlivan", ""), False, said="again"),
        react.final_span("x", False),
    ]
    document = Document("x").system().user(*react.header(offered), "搜索一下谁是周杰伦").assistant(*spans)
    given = cases[4]["prompt"]
    whole = document.prompt_before_last_reply() + document.turns[-1].text
    assert whole.startswith(given)
    assert whole[len(given) :] == f" {react.FINAL_THOUGHT}\nFinal Answer: x"


def _render(messages: list[Message], offered: list[tools.Tool]) -> str:
    specs = [ToolSpec(t.name, t.human, t.description, json.dumps(t.schema(), ensure_ascii=False)) for t in offered]
    return display(server_react.render(messages, specs).segments)


def test_episodes_equal_what_the_server_renders():
    """The prompt of a first call, and the prompt after its result, from messages as a client sends them."""
    for number in range(120):
        episode = react.Episode(random.Random(number), TRAIN, 1 + number % 4)
        document = episodes.single(episode, after=1.0)
        system, user, reply = (turn.text for turn in document.turns)
        question = user.split("Begin!\n\nQuestion: ")[1]
        messages = [Message("system", system), Message("user", question)]
        assert _render(messages, episode.tools) == document.prompt_before_last_reply()

        before, _, after = reply.partition("\nObservation: ")
        thought, name, arguments = re.match(r"Thought: (.*)\nAction: (.*)\nAction Input: (.*)", before, re.S).groups()
        observation, _, _ = after.partition(f"\nThought: {react.FINAL_THOUGHT}")
        call = FunctionCall(name, arguments, "1")
        messages += [Message("assistant", thought, calls=(call,)), Message("tool", observation, tool_call_id="1")]
        rendered = _render(messages, episode.tools)
        assert rendered == f"{document.prompt_before_last_reply()}{before}\nObservation: {observation}\nThought:"


def test_follow_ups_equal_what_the_server_renders():
    """With one finished turn behind it, a question comes without the instruction."""
    compared = 0
    for number in range(400):
        episode = react.Episode(random.Random(number), TRAIN, 2)
        document = episodes.conversation(episode)
        turns = document.turns
        if len(turns) != 5 or "Observation" in turns[2].text or "Begin!" not in turns[1].text:
            continue
        answer = turns[2].text.split("Final Answer: ")[1]
        question = turns[1].text.split("Begin!\n\nQuestion: ")[1]
        messages = [Message("system", turns[0].text), Message("user", question), Message("assistant", answer)]
        messages.append(Message("user", turns[3].text))
        assert _render(messages, episode.tools) == document.prompt_before_last_reply()
        compared += 1
    assert compared > 3


def test_texts_are_as_the_server_strips_them():
    for number in range(800):
        for turn in make_document(5, number + 20_000).turns:
            assert turn.text == strip_content(turn.text) or turn.text.endswith("Observation:"), turn.text


def test_plain_answers_amid_tools_are_framed_as_the_server_frames_them():
    document = episodes.no_call(react.Episode(random.Random(3), TRAIN, 1))
    assert document.turns[-1].text.startswith("Thought: I now know the final answer.\nFinal Answer: ")


def test_observations_are_never_learned():
    for number in range(60):
        document = episodes.single(react.Episode(random.Random(number), TRAIN, 2), after=1.0)
        learned = "".join(t for t, w in document.turns[-1].spans if w)
        ignored = "".join(t for t, w in document.turns[-1].spans if not w)
        assert "Final Answer: " in learned
        assert ignored.startswith((" ", "Thought: \n"))


def test_arguments_come_from_the_question():
    """Strings are copied to the letter, so the evaluation can ask for it."""
    copied = total = 0
    for number in range(300):
        rng = random.Random(number)
        domain = tools.pick_domain(rng, TRAIN)
        tool = tools.make_tool(domain, rng, "en", TRAIN)
        request = questions.ask(tool, rng, "en", TRAIN)
        required = {p.name for p in tool.parameters if p.required and not p.parent}
        assert required <= set(request.arguments)
        for value in request.arguments.values():
            if isinstance(value, str):
                total += 1
                copied += value in request.question
    assert copied / total > 0.85  # the others are enums and codes said in words


def test_values_are_also_what_people_write_and_only_in_training():
    rng = random.Random(0)
    drawn = {
        split: [
            make_value(all_slots()[key], rng, "en", split).surface for key in ("title", "topic") for _ in range(500)
        ]
        for split in (TRAIN, HELD_OUT)
    }
    plain = re.compile(r"(call|pick up|the history of|water the|how to draw) ")
    assert sum(bool(plain.match(text)) for text in drawn[TRAIN]) > 10
    assert not any(plain.match(text) for text in drawn[HELD_OUT])


def test_words_behind_the_last_value_do_not_belong_to_it():
    tails = (" right now", " for me", " if you can")
    for split, key, least, most in ((TRAIN, "distance", 5, 60), (HELD_OUT, "moving_house", 0, 0)):
        rng = random.Random(0)
        asked = [
            questions.ask(tools.make_tool(all_domains()[key], rng, "en", split), rng, "en", split) for _ in range(500)
        ]
        ended = [r for r in asked if r.question.rstrip("?").endswith(tails)]
        assert least <= len(ended) <= most
        assert not any(str(value).endswith(tails) for r in ended for value in r.arguments.values())
