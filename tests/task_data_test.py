"""Records of the eight tasks in our own form and in the public data sets' columns; prompts; files not right."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from etils import epath

from colajax.errors import UserError
from colajax.evals.tasks import outputs
from colajax.evals.tasks.data import Record, read_data
from colajax.evals.tasks.prompts import OURS, read_prompts
from colajax.evals.tasks.scoring import decide
from colajax.evals.tasks.table import TASKS, tasks_named

OWN = {"id": "a1", "question": "Which?", "choices": ["red", "blue", "green", "black"], "answer": "B"}


def read(folder, name, rows, suffix=".jsonl", limit=None):
    file = folder / f"{name}{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_data([TASKS[name]], folder, limit)[0].records


def test_our_own_form(tmp_path):
    for answer in ("B", "b", "(B)", "blue", "Blue.", 1):
        [record] = read(tmp_path, "mmlu", [OWN | {"answer": answer}])
        assert record == Record("a1", "Which?", "", ("red", "blue", "green", "black"), ("blue",))
    [record] = read(tmp_path, "obqa", [{k: v for k, v in OWN.items() if k != "answer"} | {"ground_truth": "C"}])
    assert record.truths == ("green",)
    [record] = read(tmp_path, "lambada", [{"id": 3, "question": "He ate the", "answer": "pie"}])
    assert record == Record("3", "He ate the", "", (), ("pie",))
    [record] = read(tmp_path, "squad", [{"id": "s", "context": "Here.", "question": "Where?", "answer": ["x", "y"]}])
    assert record == Record("s", "Where?", "Here.", (), ("x", "y"))
    assert [r.id for r in read(tmp_path, "lambada", [{"id": i, "question": "a", "answer": "b"} for i in range(9)],
                               limit=4)] == ["0", "1", "2", "3"]  # fmt: skip


# As the hub's pages of the data sets show their rows.
PUBLIC = {
    "lambada": ({"text": "He gave the horse some hay"}, (("He gave the horse some", ""), (), "hay")),
    "mmlu": (
        {"question": "2 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
        (("2 + 2?", ""), ("3", "4", "5", "6"), "4"),
    ),
    "obqa": (
        {"id": "8-343", "question_stem": "Water", "answerKey": "D",
         "choices": {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}},
        (("Water", ""), ("a", "b", "c", "d"), "d"),
    ),
    "hellaswag": (
        {"ind": 4, "activity_label": "Sitting", "ctx_a": "He sits.", "ctx_b": "he", "ctx": "He sits. he",
         "endings": ["runs.", "eats.", "hops.", "goes."], "label": "3"},
        (("He sits. he", ""), ("runs.", "eats.", "hops.", "goes."), "goes."),
    ),
    "race": (
        {"example_id": "high1.txt", "article": "An article.", "answer": "A", "question": "What?",
         "options": ["w", "x", "y", "z"]},
        (("An article. What?", ""), ("w", "x", "y", "z"), "w"),
    ),
    "siqa": (
        {"context": "Sam fell.", "question": "Why?", "answerA": "p", "answerB": "q", "answerC": "r", "label": "2"},
        (("Sam fell. Why?", ""), ("p", "q", "r"), "q"),
    ),
    "squad": (
        {"id": "56", "title": "T", "context": "A text.", "question": "Who?",
         "answers": {"text": ["Ann", "Ann", "Ann B."], "answer_start": [0, 0, 0]}},
        (("Who?", "A text."), (), ("Ann", "Ann B.")),
    ),
    "story_cloze": (
        {"InputStoryid": "7", **{f"InputSentence{i}": f"S{i}." for i in (1, 2, 3, 4)},
         "RandomFifthSentenceQuiz1": "Bad.", "RandomFifthSentenceQuiz2": "Good.", "AnswerRightEnding": 2},
        (("S1. S2. S3. S4.", ""), ("Bad.", "Good."), "Good."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_public_columns(name, tmp_path):
    row, ((question, context), choices, truth) = PUBLIC[name]
    flat = all(isinstance(value, str | int) for value in row.values())
    for suffix in (".csv",) if name == "story_cloze" else (".jsonl", ".parquet", *([".csv"] * flat)):
        below = tmp_path / suffix
        below.mkdir()
        first, second = read(below, name, [row, row | ({"id": "other"} if "id" in row else {})], suffix)
        assert first[1:] == (question, context, choices, truth if isinstance(truth, tuple) else (truth,))
        assert second[1:] == first[1:]
        assert first.id != second.id


def test_of_a_folder_the_split_that_is_evaluated(tmp_path):
    for task, split in (("mmlu", "test"), ("hellaswag", "validation")):
        (tmp_path / task).mkdir()
        for name in ("test", "train", "validation"):
            row, _ = PUBLIC[task]
            key = "question" if task == "mmlu" else "ctx"
            rows = [row | {key: f"{name} {part}"} for part in (0, 1)]
            for part, row in enumerate(rows):
                pyarrow.parquet.write_table(
                    pyarrow.Table.from_pylist([row]), tmp_path / task / f"{name}-0000{part}-of-00002.parquet"
                )
        [data] = read_data([TASKS[task]], tmp_path)
        assert [record.question for record in data.records] == [f"{split} 0", f"{split} 1"]


def test_what_is_missing_is_said_of_all_tasks_at_once(tmp_path):
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(OWN) + "\n")
    with pytest.raises(UserError, match=r"no data of lambada, race;.*--tasks mmlu$"):
        read_data(tasks_named("race,mmlu,lambada"), tmp_path)


WRONG = [
    ("mmlu", {"id": "a", "question": "q", "answer": "B"}, "'choices'"),
    ("mmlu", OWN | {"answer": "E"}, "'E', a letter outside its choices: expected A to D"),
    ("mmlu", OWN | {"answer": "(F)"}, "outside its choices"),
    ("mmlu", OWN | {"answer": 4}, "outside its choices: expected 0 to 3"),
    ("mmlu", OWN | {"answer": "yellow"}, "none of its choices"),
    ("mmlu", OWN | {"answer": None}, "expected a string"),
    ("mmlu", OWN | {"choices": ["a", "b"]}, "the 4 options of MMLU"),
    ("mmlu", OWN | {"choices": ["a", "b", 3, 4]}, "expected a string"),
    ("mmlu", OWN | {"question": "\ud800"}, "half a surrogate pair"),
    ("siqa", OWN, "the 3 options of SIQA"),
    ("squad", {"id": "a", "question": "q", "answer": "x"}, "'context'"),
    ("squad", {"id": "a", "question": "q", "context": "c", "answer": []}, "no word in it"),
    ("lambada", {"id": "a", "answer": "x"}, "'question'"),
    ("lambada", {"id": "a", "question": "x"}, "'answer'"),
    ("lambada", {"text": "word"} | {"text": ""}, "no word in it"),
    ("hellaswag", PUBLIC["hellaswag"][0] | {"label": ""}, "label is ''"),
    ("obqa", PUBLIC["obqa"][0] | {"answerKey": "E"}, "expected one of A, B, C, D"),
    ("race", PUBLIC["race"][0] | {"answer": "G"}, "outside its choices"),
]


@pytest.mark.parametrize(("name", "row", "said"), WRONG)
def test_a_row_that_is_not_right_is_named(name, row, said, tmp_path):
    with pytest.raises(UserError) as raised:
        read(tmp_path, name, [row])
    assert f"{name}.jsonl:1: " in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize("content", ["", "\n", "[]\n", '{"id": 1', "\xff\n", json.dumps(OWN) + "\n" + json.dumps(OWN)])
def test_a_file_that_is_not_right_is_named(content, tmp_path):
    (tmp_path / "mmlu.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"mmlu\.jsonl"):
        read_data([TASKS["mmlu"]], tmp_path)
    (tmp_path / "mmlu.jsonl").rename(tmp_path / "mmlu.parquet")
    with pytest.raises(UserError, match=r"mmlu\.parquet: cannot be read"):
        read_data([TASKS["mmlu"]], tmp_path)


RECORDS = {
    name: Record("1", "A question {of} braces", "A context" if task.context else "",
                 ("red", "blue", "green", "black")[: task.choices], ("blue",))
    for name, task in TASKS.items()
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_our_prompts_show_the_record_and_end_with_the_anchor(name):
    """And their demonstrations are right by the task's own rule."""
    task, record = TASKS[name], RECORDS[name]
    prompt = read_prompts([task])[name].fill(record)
    if name == "lambada":
        assert prompt == record.question
        return
    anchor = "End:" if name == "story_cloze" else "Answer:"
    assert prompt.endswith(f"\n{anchor}")
    *shots, asked = prompt.split(f"\n{anchor}")[:-1]
    assert len(shots) == (1 if name == "squad" else 2)
    assert record.question in asked
    assert record.context in asked
    options = [line for line in asked.split("\n") if line.startswith("(")]
    assert options == [f"({'ABCD'[i]}) {choice}" for i, choice in enumerate(record.choices)]
    for shot, after in zip(shots, prompt.split(f"\n{anchor}")[1:], strict=False):
        answer, choices = after.split("\n")[0], [line[4:] for line in shot.split("\n") if line.startswith("(")]
        assert len(choices) == task.choices
        if task.choices:
            assert answer.strip() in choices
            assert decide(task, answer, [answer.strip()], choices).right


def test_another_set_of_prompts(tmp_path):
    """In the form of the paper's, with only the tasks that are asked for."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"source": "x", "templates": {"squad": "{context} {{1}}\n{question}:"}}))
    templates = read_prompts([TASKS["squad"]], file)
    assert templates["squad"].fill(RECORDS["squad"]) == "A context {1}\nA question {of} braces:"
    with pytest.raises(UserError, match="no template of mmlu"):
        read_prompts([TASKS["squad"], TASKS["mmlu"]], file)
    ours, theirs = read_prompts(list(TASKS.values())), json.loads(OURS.read_text())["templates"]
    assert {name: template.text for name, template in ours.items()} == theirs


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"templates": []}', '{"templates": {"siqa": 3}}', '{"templates": {"siqa": "no question"}}',
     *(json.dumps({"templates": {"siqa": "{question}" + more}}) for more in
       ("{", "{choices[3]}", "{context}", "{}", "{0}", "{question.__class__}", "{question!r}", "{question:>9}",
        "\ud800"))],
)  # fmt: skip
def test_a_set_of_prompts_of_another_form(content, tmp_path):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(UserError, match=r"prompts\.json: "):
        read_prompts([TASKS["siqa"]], tmp_path / "prompts.json")


def test_no_such_task():
    assert [task.name for task in tasks_named("squad,lambada")] == ["lambada", "squad"]
    for names, said in (("lambda", "did you mean lambada"), ("", "no task ''"), ("mmlu,", "no task ''")):
        with pytest.raises(UserError, match=said):
            tasks_named(names)


LINE = outputs.Output(4, "p", " blue\nQ", "B", ["red", "blue"])


def test_outputs_are_read_as_written(tmp_path):
    (tmp_path / "generations").mkdir()
    file = tmp_path / "generations" / "mmlu.jsonl"
    file.write_text(LINE.line() + LINE._replace(ground_truth=["x", "y"], id="5").line())
    for folder in (tmp_path, tmp_path / "generations"):
        [(task, found)] = outputs.output_files(folder, list(TASKS.values()), every=False).items()
        read = list(outputs.read_outputs(found, task))
        assert read == [LINE, LINE._replace(ground_truth=["x", "y"], id="5")]
    assert outputs.score_files({task: found}) == {"mmlu": [True, False]}


WHOLE = json.loads(LINE.line())


@pytest.mark.parametrize(
    "content",
    ["", LINE.line()[:-20], LINE.line() + '{"id', "3\n",
     *(json.dumps({k: v for k, v in WHOLE.items() if k != name}) for name in WHOLE),
     *(json.dumps(WHOLE | {name: 3}) for name in ("generate", "ground_truth", "choices")),
     json.dumps(WHOLE | {"ground_truth": []}), json.dumps(WHOLE | {"choices": ["a"] * 27})],
)  # fmt: skip
def test_outputs_that_are_not_whole(content, tmp_path):
    file = epath.Path(tmp_path / "mmlu.jsonl")
    file.write_text(content)
    with pytest.raises(UserError, match=r"mmlu\.jsonl"):
        list(outputs.read_outputs(file, TASKS["mmlu"]))


def test_a_folder_without_outputs(tmp_path):
    with pytest.raises(UserError, match=r"no mmlu\.jsonl there"):
        outputs.output_files(tmp_path, [TASKS["mmlu"]])
