import time

from rcg_lightning.planning.machine import Machine, free_memory, this_machine


def test_waiting_for_others_takes_no_time_on_a_cpu():
    machine = Machine("cpu", "1 CPU core", 1, 10**9)
    start = machine.now()
    time.sleep(0.2)
    assert machine.since(start) < 0.1
    assert Machine("mps", "a GPU", 1, 10**9).since(start) >= 0.2


def test_this_machine_has_memory():
    machine = this_machine("cpu")
    assert machine.on_cpu
    assert 10**8 < free_memory() < 10**15
    assert "GB free" in str(machine)
