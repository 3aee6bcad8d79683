"""Alerts: by hand, and a real training that keeps checkpoints, is stopped and goes on."""

import json

import pytest
import tiny_runs
from etils import epath

from colajax.errors import UserError
from colajax.stages.vae import VAEStage
from colajax.train.alerts import Alert, alerts_of, raised_by
from colajax.train.loop import train


@pytest.mark.parametrize(
    ("alert", "values", "raised"),
    [
        (Alert("skill", "below", 0.5, "warn"), [0.4, 0.5], False),
        (Alert("skill", "below", 0.5, "warn"), [0.6, 0.4], True),
        (Alert("skill", "above", 0.5, "warn"), [0.6, 0.5], False),
        (Alert("skill", "above", 0.5, "warn"), [0.6], True),
        (Alert("skill", "stalled", 2, "warn"), [0.1, 0.0], False),  # two are not yet more than the last two
        (Alert("skill", "stalled", 2, "warn"), [0.1, 0.0, 0.1], True),
        (Alert("skill", "stalled", 2, "warn"), [0.1, 0.0, 0.2], False),
        (Alert("skill", "stalled", 2, "warn"), [0.1, 0.3, 0.2, 0.2], True),
        (Alert("other", "above", 0.0, "warn"), [0.6], False),
    ],
)
def test_what_raises_an_alert(alert, values, raised):
    found = raised_by([alert], [{"step": n, "skill": value} for n, value in enumerate(values)])
    assert list(found) == [alert] * raised


@pytest.mark.parametrize(
    "entry",
    ["skill", ("skill",), ("skill", "under", 1, "warn"), ("skill", "below", "1", "warn"), ("skill", "below", 1, "mail"),
     ("skill", "below", float("nan"), "warn"), ("skill", "stalled", 0, "warn"), ("skill", "stalled", 1.5, "warn"),
     (3, "below", 1, "warn"), ("skill", "below", True, "warn")],
    ids=str,
)  # fmt: skip
def test_what_is_no_alert(entry):
    config = tiny_runs.tiny_config("vae")
    with config.unlocked():
        config.alerts = (entry,)
    with pytest.raises(UserError, match=r"^config\.alerts: .*: expected entries such as"):
        alerts_of(config.alerts)


def test_an_alert_keeps_the_checkpoint_before_it_and_its_own(records, tmp_path, monkeypatch, capsys):
    """Of twelve steps, evaluated at 5, 10 and 12 and saved at 4, 8 and 12; stopped at 7."""
    workdir, alerts = epath.Path(tmp_path / "run"), (("loss", "above", 0.0, "keep"), ("loss", "below", 0.0, "stop"))
    config = tiny_runs.tiny_config("vae", f"records={records}", f"alerts={alerts}")
    with monkeypatch.context() as patch:
        tiny_runs.stop_after(patch, 7)
        assert train(config, VAEStage, workdir) == 128 + 15
    assert train(config, VAEStage, workdir) == 0
    assert {int(path.name) for path in (workdir / "checkpoints").iterdir()} == {4, 5, 10, 12}
    said = [line for line in capsys.readouterr().err.splitlines() if "(keep: config.alerts)" in line]
    assert [line.split(":")[1] for line in said] == [" step 5", " step 10", " step 12"]
    events = [json.loads(line) for line in (workdir / "timeline.jsonl").read_text().splitlines()]
    assert [line["step"] for line in events if line["event"] == "alert"] == [5, 10, 12]


def test_an_alert_stops_the_run_when_it_has_saved(records, tmp_path, alone):
    given = (f"records={records}", f"alerts={(('loss', 'above', 0.0, 'stop'),)}")
    said = r"loss is .*, above 0; the last checkpoint is of step 5; the same command goes on"
    with pytest.raises(UserError, match=said):
        train(tiny_runs.tiny_config("vae", *given), VAEStage, tmp_path / "run")
    assert train(tiny_runs.tiny_config("vae", f"records={records}"), VAEStage, tmp_path / "run") == 0
    assert len(tiny_runs.read_metrics(tmp_path / "run")) == len(tiny_runs.read_metrics(alone))
