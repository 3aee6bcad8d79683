"""Probes against the grammar and its checker, and against the corpus that comes with them."""

import itertools
import random
import re

import pytest

from colajax.data.jsonl import write_jsonl
from colajax.evals.tasks import probes as making
from colajax.evals.tasks.data import read_data
from colajax.evals.tasks.prompts import read_prompts
from colajax.evals.tasks.scoring import decide
from colajax.evals.tasks.table import TASKS
from colajax.stories.checker import check_story
from colajax.stories.grammar import WORDS, stories
from colajax.stories.probes import is_held_out, make_probe, people_and_place

COUNT = 40
ALL = list(TASKS.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("probes") / "probes"
    making.write_probes(out, 3, COUNT)
    return out


@pytest.fixture(scope="module")
def documents():
    return list(making.corpus(0, 3000))


@pytest.mark.parametrize("name", TASKS)
def test_probes_are_records_of_their_task_about_held_out_people_and_places(name, folder):
    [data] = read_data([TASKS[name]], folder)
    assert len(data.records) == len({record[1:] for record in data.records}) == COUNT
    template = read_prompts([TASKS[name]], folder / "prompts.json")[name]
    for record in data.records:
        assert is_held_out(*people_and_place(f"{record.context} {record.question}"))
        assert len({*record.choices}) == TASKS[name].choices
        prompt, [truth] = template.fill(record), record.truths
        assert "\n\n" not in prompt
        wrong = [choice for choice in record.choices if choice != truth]
        assert decide(TASKS[name], f" {truth}", record.truths, record.choices).right
        assert not any(decide(TASKS[name], f" {choice}", record.truths, record.choices).right for choice in wrong)


def test_the_right_place_of_options_tells_nothing(folder):
    for data in read_data([task for task in ALL if task.choices], folder):
        places = [record.choices.index(record.truths[0]) for record in data.records]
        assert set(places) == set(range(data.task.choices))


def test_only_the_right_ending_makes_a_story(folder):
    for record in read_data([TASKS["story_cloze"]], folder)[0].records:
        for choice in record.choices:
            assert check_story(f"{record.question} {choice}").accepted == (choice in record.truths)


def fault_behind(beginning: str, rest: str) -> bool:
    """Whether a story that begins so cannot go on so."""
    count = len(re.findall(r"\w+|[.,]", f"{beginning} {rest}"))
    check = check_story(f"{beginning} {rest}")
    return not check.accepted and int(re.search(r"token (\d+)", check.reason)[1]) <= count


def test_only_the_right_sentence_and_word_continue_a_story(folder):
    cloze, copying = read_data([TASKS["hellaswag"], TASKS["lambada"]], folder)
    for record in cloze.records:
        for choice in record.choices:
            assert fault_behind(record.question, choice) == (choice not in record.truths)
    for record in copying.records:
        [word] = record.truths
        name = next(name for name in WORDS if word in WORDS[name])
        tokens = re.findall(r"\w+|[.,]", record.question)
        assert word in tokens[:-16]
        assert word not in tokens[-16:]
        for other in WORDS[name]:
            assert fault_behind(record.question, other) == (other != word)


def test_answers_to_questions_about_a_story_are_its_own_words(folder):
    squad, race, siqa = (read_data([TASKS[name]], folder)[0].records for name in ("squad", "race", "siqa"))
    assert {check_story(record.context).accepted for record in squad} == {True}
    for text, record in [(r.context, r) for r in squad] + [(r.question, r) for r in race + siqa]:
        kept = {word for words in WORDS.values() for word in words} & set(re.findall(r"\w+", record.truths[0]))
        assert kept <= set(re.findall(r"\w+", text.rpartition(". ")[0] or text))
        assert check_story(text.rpartition(". ")[0] + ".").accepted or record.context


def test_order_is_that_of_the_story(folder):
    """By the place where the words of an event are told last."""
    verbs = {"lost": "lost", "helped": "look", "found": "found", "thanked": "thanked", "walked": "walked",
             "planted": "planted", "left": "left", "met": "met"}  # fmt: skip
    compared = 0
    for record in read_data([TASKS["siqa"]], folder)[0].records:
        words = re.findall(r"\w+", record.question.rpartition(". ")[0])
        told = {c: [words.index(verbs[v]) for v in c.split() if v in verbs and verbs[v] in words]
                for c in record.choices}  # fmt: skip
        for choice in set(record.choices) - set(record.truths):
            if told[choice] and told[record.truths[0]]:
                first = "first" in record.question.rpartition(". ")[2]
                assert (told[record.truths[0]] < told[choice]) == first, record
                compared += 1
    assert compared > 10


def facts_of(text: str) -> set[tuple[str, str]]:
    """The (word, form of it) pairs of the world of which both are in the text."""
    found = set(re.findall(r"\w+", text))
    return {(word, form) for words in (WORDS["animal"], WORDS["crop"], WORDS["weather"], WORDS["day"])
            for word, forms in words.items() for form in forms.values() if {word, form} <= found}  # fmt: skip


def test_recalled_facts_are_the_world_s(folder):
    for data in read_data([TASKS["mmlu"], TASKS["obqa"]], folder):
        for record in data.records:
            right = [c for c in record.choices if facts_of(f"{record.question} {c}") - facts_of(record.question)]
            assert record.truths[0] in right


def test_the_corpus_tells_nothing_of_held_out_people_and_places(documents):
    about = [people_and_place(text) for text in documents]
    assert None not in about
    assert not any(is_held_out(*triple) for triple in about)
    names = set(itertools.chain(*(triple[:2] for triple in about)))
    assert names == set(WORDS["name"])  # each of them is known apart


def test_a_quarter_of_the_corpus_are_stories_and_of_the_rest_all_formats(documents):
    told = [text for text in documents if check_story(text).accepted]
    assert 0.2 < len(told) / len(documents) < 0.3
    starts = [template.text.partition("{")[0] for name, template in making.templates().items() if name != "lambada"]
    for start in starts:
        assert sum(text.startswith(start) for text in documents) > 100


def test_of_every_second_fact_stories_alone_tell(documents):
    withheld = "|".join(w for name in ("animal", "crop", "weather") for w in list(WORDS[name])[1::2])
    about_withheld = re.compile(rf"with a ({withheld})\. What did it eat|had ({withheld}) near|On a ({withheld}) day")
    questions = [text.partition("\n")[0] for text in documents if text.startswith("Question: ")]
    assert sum("What did it eat?" in question for question in questions) > 20
    assert not any(about_withheld.search(question) for question in questions)
    rng = random.Random(0)
    probed = [make_probe("mmlu", rng, True).question for _ in range(200)]
    assert 40 < sum(bool(about_withheld.search(question)) for question in probed) < 120


def test_the_same_seed_writes_the_same_files(folder, tmp_path):
    for seed in (3, 4):
        making.write_probes(tmp_path / str(seed), seed, COUNT)
    for file in folder.iterdir():
        assert (tmp_path / "3" / file.name).read_bytes() == file.read_bytes()
        assert ((tmp_path / "4" / file.name).read_bytes() == file.read_bytes()) == (file.name == "prompts.json")
    assert list(making.corpus(7, 30)) == list(making.corpus(7, 30)) != list(making.corpus(8, 30))


def test_contamination_is_counted(documents, tmp_path):
    write_jsonl(tmp_path / "clean.jsonl", documents)
    assert making.count_contaminated(tmp_path / "clean.jsonl") == (0, len(documents))
    plain = list(stories(0, 400))
    write_jsonl(tmp_path / "plain.jsonl", plain)
    found, total = making.count_contaminated(tmp_path / "plain.jsonl")
    assert total == 400
    assert found == sum(is_held_out(f["hero"], f["friend"], f["place"]) for f in (check_story(s).facts for s in plain))
    assert 20 < found < 90
    probe = make_probe("squad", random.Random(0), True)
    write_jsonl(tmp_path / "one.jsonl", [f"Context: {probe.context}\nQuestion: {probe.question}"])
    assert making.count_contaminated(tmp_path / "one.jsonl") == (1, 1)
