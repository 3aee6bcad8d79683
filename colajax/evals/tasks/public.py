"""The public data sets' own columns, as they are called on the Hugging Face hub, in the form of our own records."""

from collections.abc import Callable, Mapping

from colajax.errors import UserError


def _lambada(row: Mapping, origin: str) -> dict:
    """EleutherAI/lambada_openai: the last word of `text` is asked for."""
    before, _, last = str(row["text"]).strip().rpartition(" ")
    return {"question": before, "answer": last}


def _mmlu(row: Mapping, origin: str) -> dict:
    return {key: row[key] for key in ("question", "choices", "answer")}


def _obqa(row: Mapping, origin: str) -> dict:
    """allenai/openbookqa; answerKey is one of the labels of the choices."""
    choices = row["choices"]
    if isinstance(choices, list):  # the .jsonl of the data set's authors, whose question is one level deeper
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    answer = _place(row["answerKey"], list(choices["label"]), "answerKey", origin)
    return {"id": row["id"], "question": row["question_stem"], "choices": list(choices["text"]), "answer": answer}


def _hellaswag(row: Mapping, origin: str) -> dict:
    return {"question": row["ctx"], "choices": row["endings"],
            "answer": _place(str(row["label"]), ["0", "1", "2", "3"], "label", origin)}  # fmt: skip


def _race(row: Mapping, origin: str) -> dict:
    """ehovy/race; an article has several questions under one example_id."""
    question = f"{row['article']} {row['question']}"
    return {"question": question, "choices": row["options"], "answer": row["answer"]}


def _siqa(row: Mapping, origin: str) -> dict:
    choices = [row[f"answer{letter}"] for letter in "ABC"]
    answer = _place(str(row["label"]), ["1", "2", "3"], "label", origin)
    return {"question": f"{row['context']} {row['question']}", "choices": choices, "answer": answer}


def _squad(row: Mapping, origin: str) -> dict:
    """rajpurkar/squad; any of a question's answers is right."""
    answers = row["answers"]["text"] if isinstance(row["answers"], Mapping) else row["answers"]
    return {"id": row["id"], "question": row["question"], "context": row["context"], "answer": answers}


_STORY = tuple(f"InputSentence{i}" for i in range(1, 5))
_ENDINGS = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")


def _story_cloze(row: Mapping, origin: str) -> dict:
    """The .csv that the authors of Story Cloze send."""
    answer = _place(str(row["AnswerRightEnding"]), ["1", "2"], "AnswerRightEnding", origin)
    question = " ".join(str(row[column]).strip() for column in _STORY)
    return {"question": question, "choices": [row[column] for column in _ENDINGS], "answer": answer}


def _place(label: object, labels: list, column: str, origin: str) -> int:
    if label not in labels:
        raise UserError(f"{origin}: {column} is {label!r}, outside its choices: expected one of {', '.join(labels)}")
    return labels.index(label)


# Task -> the columns by which its public data set is known, and their meaning.
PUBLIC: dict[str, tuple[tuple[str, ...], Callable[[Mapping, str], dict]]] = {
    "lambada": (("text",), _lambada),
    "mmlu": (("question", "subject", "choices", "answer"), _mmlu),
    "obqa": (("id", "question_stem", "choices", "answerKey"), _obqa),
    "hellaswag": (("ctx", "endings", "label"), _hellaswag),
    "race": (("article", "question", "options", "answer"), _race),
    "siqa": (("context", "question", "answerA", "answerB", "answerC", "label"), _siqa),
    "squad": (("id", "context", "question", "answers"), _squad),
    "story_cloze": ((*_STORY, *_ENDINGS, "AnswerRightEnding"), _story_cloze),
}
