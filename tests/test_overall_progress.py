from rcg_lightning import overall_progress
from rcg_lightning.overall_progress import Overall, clock, overall, stage_of


def test_the_line_follows_the_speed_of_the_running_stage(monkeypatch):
    monkeypatch.setattr(overall_progress.time, "monotonic", lambda: 1000.0)
    stage = Overall(2, 5, "generator", started=900, begun=980, seconds=60, later=30)
    assert stage.line() == "[2/5] generator, 1:40 elapsed, 1:10 left"  # as planned
    assert stage.line(done=10, left=90) == "[2/5] generator, 1:40 elapsed, 3:30 left"  # three times as slow


def test_only_a_command_of_several_stages_has_one():
    assert overall() is None
    with stage_of(Overall(1, 2, "encoder", 0, 0, 1, 1)):
        assert overall().name == "encoder"
    assert overall() is None


def test_clock():
    assert [clock(seconds) for seconds in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
