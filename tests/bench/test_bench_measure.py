import time

import pytest

from jointembed.bench.measure import Seconds, compared, exponent, machine, take_turns


def test_exponent_of_a_power() -> None:
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert exponent([10, 20], [5, 5]) == pytest.approx(0)


def test_turns_alternate_and_short_calls_are_repeated() -> None:
    seen: list[str] = []
    took = {"a": Seconds(1e-5, 1e-5), "b": Seconds(1e-3, 1e-3)}  # what a first call took
    times = take_turns({"a": lambda: seen.append("a"), "b": lambda: time.sleep(0.001)}, 3, warm=took)
    assert len(times["a"]) == len(times["b"]) == 3
    assert len(seen) == 3 * 2000  # 20 ms a round
    assert 0 < times["a"][0].cpu < 0.001


def test_what_was_called_before_warms_up() -> None:
    seen: list[str] = []
    long = {name: Seconds(1.0, 1.0) for name in "ab"}
    take_turns({name: lambda name=name: seen.append(name) for name in "ab"}, 2, warm=long)  # type: ignore[misc]
    assert "".join(seen) == "abab"


def test_no_round_begins_after_the_budget() -> None:
    times = take_turns({"a": lambda: time.sleep(0.01)}, 50, budget=0.02, warm={"a": Seconds(1.0, 1.0)})
    assert 1 <= len(times["a"]) < 50


def test_ratios_are_medians_round_by_round() -> None:
    ours = [Seconds(1, 1), Seconds(2, 1), Seconds(10, 1)]
    other = [Seconds(3, 2), Seconds(4, 2), Seconds(10, 4)]
    found = compared({"jointembed": ours, "other": other})
    assert found["jointembed"]["ratio"] == 1
    assert found["other"]["ratio"] == 2 and found["other"]["cpu_ratio"] == 2 and found["other"]["seconds"] == 4


def test_the_machine_is_described() -> None:
    found = machine()
    assert found["processor"] and found["cores"] >= 1 and found["versions"]["torch"] and found["threads"] >= 1
    assert {"date", "command", "load", "bf16_in_hardware"} <= set(found)
