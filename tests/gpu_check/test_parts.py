"""Parts fail, run out of time, hang and die; the others still run, and everything that was found is written."""

import json
import os
import signal
import time
from multiprocessing import get_context

import pytest

from rcg_lightning.gpu_check.parts import Part, Supervisor, Trial, run_part, work_on
from rcg_lightning.gpu_check.results import LINES, TABLE, Finding, Results, Row


def finding(passed):
    return lambda: [Finding("one", "1.0", "2.0", passed)]


def rows_of(trials, seconds=10.0, usable=lambda: True):
    rows = []
    run_part(Part("p", "title", seconds, trials), rows.append, usable)
    return {row.name: row for row in rows}


def test_a_failing_check_names_its_error_and_the_next_one_runs():
    def fail():
        raise ValueError("no\nluck")

    rows = rows_of(lambda: [Trial("bad", fail), Trial("good", finding(True))])
    assert rows["bad"].verdict == "failed"
    assert rows["bad"].note.startswith("ValueError: no luck")
    assert rows["one"].verdict == "passed"


def test_a_preparation_that_fails_is_a_failed_check():
    def trials():
        yield Trial("good", finding(True))
        raise OSError("no disk")

    rows = rows_of(trials)
    assert rows["preparation"].verdict == "failed"


def test_a_check_that_takes_too_long_is_stopped_and_later_ones_are_not_reached():
    def forever():
        try:
            time.sleep(30)
        except Exception:  # as of a library that ignores errors
            time.sleep(30)
        return []

    start = time.monotonic()
    trials = [Trial("slow", forever), Trial("required", finding(True)), Trial("extra", finding(True), required=False)]
    rows = rows_of(lambda: trials, seconds=0.2)
    assert time.monotonic() - start < 5
    assert rows["slow"].verdict == "failed"
    assert rows["required"].verdict == "not reached"
    assert "one" not in rows
    assert "extra" not in rows


def test_an_unusable_device_ends_the_part():
    rows = rows_of(lambda: [Trial("a", finding(True)), Trial("b", finding(True))], usable=lambda: False)
    assert rows["device"].verdict == "failed"
    assert list(rows) == ["one", "device"]


@pytest.mark.parametrize(
    ("verdicts", "passed"),
    [(["passed", "measured"], True), (["passed", "failed"], False), (["passed", "not reached"], False), ([], False)],
)
def test_results_pass_only_if_every_check_did(tmp_path, verdicts, passed):
    results = Results(tmp_path, ["# card"])
    for verdict in verdicts:
        results.add(Row("p", "check", "a | b", "2", verdict, 0.1))
    results.write_table()
    lines = (tmp_path / LINES).read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == verdicts
    assert results.passed is passed
    table = (tmp_path / TABLE).read_text()
    assert table.startswith("# card\n")
    assert table.count("| a / b |") == len(verdicts)


def misbehave(names, sender):
    """Run parts of which one dies and one ignores every signal but the last."""

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def hang():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(60)

    trials = {"good": finding(True), "dies": die, "hangs": hang, "last": finding(True)}
    parts = [Part(name, name, 0.3, lambda name=name: [Trial(name, trials[name])]) for name in names]
    work_on(parts, sender, lambda: True)


def started_in(processes):
    """Return what starts a process that misbehaves, and notes it."""

    def start(names):
        receiver, sender = get_context("fork").Pipe(duplex=False)
        process = get_context("fork").Process(target=misbehave, args=(names, sender))
        process.start()
        processes.append((names, process))
        sender.close()
        return process, receiver

    return start


def test_an_interruption_ends_the_process_of_the_parts(tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    processes = []
    with pytest.raises(KeyboardInterrupt):
        Supervisor({"hangs": 60.0}, started_in(processes), Results(tmp_path, []), interrupt).run()
    assert not processes[0][1].is_alive()


def test_a_process_that_dies_or_hangs_is_replaced_for_the_parts_that_remain(tmp_path):
    processes, said = [], []
    results = Results(tmp_path, [])
    names = ["good", "dies", "hangs", "last"]
    Supervisor(dict.fromkeys(names, 0.3), started_in(processes), results, said.append, grace=0.5).run()
    assert [started for started, _ in processes] == [names, names[2:], names[3:]]
    assert [(row.part, row.verdict) for row in results.rows] == [
        ("good", "passed"),
        ("dies", "failed"),
        ("hangs", "failed"),
        ("last", "passed"),
    ]
    assert len((tmp_path / LINES).read_text().splitlines()) == 4
    assert "good (at most 0 s)" in said
