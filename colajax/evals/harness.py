"""Models of colajax in lm-evaluation-harness. It has no entry points: tools/harness.py registers this and starts it."""

from collections import defaultdict

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from colajax.errors import UserError
from colajax.evals.model import model_of_export, model_of_run
from colajax.sampling.ar import ARSampler

LONGEST = 2048  # tokens of a window where the model's own length is not known
# What a task says about sampling -> our settings; other keys of a task change nothing.
KWARGS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repetition_penalty"}


@register_model("colajax")
class ColajaxLM(TemplateLM):
    """A run (workdir, step) or an export (hf) of any family, with settings of its sampler.

    `generate_until` is for all, `loglikelihood` for AR, exactly: the other families have none that is. Prompts go
    through the sampler by length, batch_size at once.
    """

    def __init__(self, workdir=None, hf=None, step=None, batch_size=64, max_batch_size=None, device=None, **settings):
        super().__init__()
        if (workdir is None) == (hf is None):
            raise UserError("--model_args: expected one of workdir=RUN and hf=EXPORT")
        self._model = model_of_export(hf) if workdir is None else model_of_run(workdir, step)
        self._sampler, self._settings = self._model.sampler, settings
        self._batch_size = int(batch_size) if str(batch_size).isdecimal() else 64  # "auto" too
        self._sampler.settings(settings)  # raises on what the family does not have

    @property
    def eot_token_id(self) -> int:
        return self._sampler.pad_id if self._sampler.eos_id is None else self._sampler.eos_id

    @property
    def tokenizer_name(self) -> str:
        return self._model.tokenizer.digest

    def tok_encode(self, string: str, add_special_tokens=None, **kwargs) -> list[int]:
        return self._model.tokenizer.encode(string)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        answers = [""] * len(requests)
        alike = defaultdict(list)  # requests that one batch may hold
        for index, request in enumerate(requests):
            alike[self._sampling(request.args[1])].append(index)
        for settings, indices in alike.items():
            tokens = {i: self.tok_encode(requests[i].args[0]) for i in indices}
            order = sorted(indices, key=lambda i: len(tokens[i]))
            for chosen in _batches(order, self._batch_size):
                found = self._sampler.generate([tokens[i] for i in chosen], settings, sample_indices=chosen)
                for i, answer in zip(chosen, found, strict=True):
                    text = self._model.tokenizer.decode_continuation(answer)
                    answers[i] = _until(text, requests[i].args[1].get("until") or [])
                    self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
        return answers

    def _sampling(self, given: dict):
        """Greedy unless the task says otherwise; what --model_args say comes before the task."""
        of_task = {ours: given[name] for name, ours in KWARGS.items() if given.get(name) is not None}
        if not given.get("do_sample", of_task.get("temperature", 0) > 0):
            of_task["temperature"] = 0.0
        of_task = {name: value for name, value in of_task.items() if name in self._sampler.SETTINGS}
        budget = given.get("max_gen_toks", given.get("max_new_tokens", 256))
        return self._sampler.settings({"max_new_tokens": budget, **of_task, **self._settings})

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        if not isinstance(self._sampler, ARSampler):
            raise UserError(
                f"{self._model.family}: no exact log-likelihood; expected an AR run, or tasks of generate_until alone"
            )
        answers = [(0.0, False)] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i][1]) + len(requests[i][2]))
        for chosen in _batches(order, self._batch_size):
            pairs = [(requests[i][1], requests[i][2]) for i in chosen]
            for i, found in zip(chosen, self._sampler.log_likelihoods(pairs), strict=True):
                answers[i] = found
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], found)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """In windows as long as a row of the training, each token once."""
        length, found = int(min(self._model.trained_length, LONGEST)), []
        for request in requests:
            windows = get_rolling_token_windows(self.tok_encode(request.args[0]), self.eot_token_id, length - 1, 1)
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(log_p for log_p, _ in self._loglikelihood_tokens(pairs)))
        return found


def _batches(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _until(text: str, stops: str | list[str]) -> str:
    """The text before the first of the stops in it."""
    ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop and stop in text]
    return text[: min(ends, default=len(text))]
