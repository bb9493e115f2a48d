"""The arithmetic and the words of the comparison, by hand-worked cases: `python3 -m unittest discover benches/speed`."""

import os
import pathlib
import sys
import tempfile
import time
import types
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure
import table
from proxies import PROXIES, Ours


def told(**more):
    half = {"p50": 100.0, "p99": 300.0}
    return {"done": 1_000, "failed": 0, "events": 0, "seconds": 2.0, "wall": 2.5, "cpu": 0.02,
            "whole": half, "first": half, "way": half, "late": {"p50": 1.0, "p99": 9.0}} | more  # fmt: skip


def step(name, rate=500, events=0):
    return types.SimpleNamespace(name=name, rate=rate, events=events)


class Figures(unittest.TestCase):
    def test_cpu_is_by_request_and_by_event(self):
        found = table.figures(step("a"), told())
        self.assertAlmostEqual(found["a cpu"], 20.0, msg="20 ms for 1,000 requests")
        self.assertNotIn("a rate", found, "it was given")
        found = table.figures(step("s", events=128), told(events=5_000))
        self.assertAlmostEqual(found["s event cpu"], 4.0, msg="20 ms for 5,000 events")

    def test_flat_out_tells_the_rate_and_how_much_of_the_core_was_used(self):
        found = table.figures(step("m", rate=0), told(cpu=2.0))
        self.assertEqual((found["m rate"], found["m used"]), (500.0, 0.8))

    def test_who_answered_nothing_has_no_figures(self):
        nothing = {"p50": None, "p99": None}
        found = table.figures(step("a"), told(done=0, failed=9, whole=nothing))
        self.assertEqual((found["a cpu"], found["a p50"], found["a failed"]), (None, None, 9))

    def test_a_median_is_over_the_rounds_that_have_the_figure(self):
        self.assertEqual(table.medians([{"a": 1, "b": 5}, {"a": 9}, {"a": 2, "b": None}]), {"a": 2, "b": 5})

    def test_added_is_over_the_direct_way(self):
        self.assertEqual(table.added({"x": 150.0}, {"x": 100.0}, "x"), 50.0)
        self.assertIsNone(table.added({"x": 150.0}, {}, "x"))

    def test_memory_of_a_stream_is_what_came_on_top_shared_by_those_that_are_open(self):
        memory = {"idle": 10 << 20, "most": 30 << 20, "most open": 1_024}
        self.assertEqual(table.per_stream(memory, "most"), 20.0)
        self.assertIsNone(table.per_stream(memory | {"most open": 0}, "most"))


class Words(unittest.TestCase):
    def test_a_row_says_the_figures_or_why_there_are_none(self):
        results = {"one": {"1K500 p50": 150.0}, "two": "it does not start"}
        text = table.table(table.DELAYS[:2], results, {"1K500 p50": 100.0})
        self.assertEqual(text.splitlines()[2:], ["| one | +50 | - |", "| two | it does not start |  |"])

    def test_a_target_is_met_missed_or_not_measured(self):
        results = {"tidegate": {"1Kmax cpu": 18.0, "stream event cpu": 9.0}, "nginx": {"1Kmax cpu": 12.0, "stream event cpu": 4.5}, "envoy": "no"}
        memory = {"tidegate": {"idle": 20 << 20, "most": 40 << 20, "most open": 512}}
        lines = table.targets(results, {}, memory, {1_000: 0.2}).splitlines()
        self.assertIn("| small whole request, CPU, flat out, of nginx's | <= 1.5 | 1.50 | met |", lines)
        self.assertIn("| an event, CPU, of nginx's | <= 1.5 | 2.00 | **missed** |", lines)
        self.assertIn("| the same of Envoy's | <= 0.4 | - |  |", lines)
        self.assertIn("| an open stream, KiB | <= 20 | 40.0 | **missed** |", lines)
        self.assertIn("| 1,000 pods read each second, cores | <= 0.1 | 0.200 | **missed** |", lines)


class Configurations(unittest.TestCase):
    def test_every_template_is_filled_in(self):
        pods = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
        stage = types.SimpleNamespace(binary="tidegate")
        for name in ("nginx", "haproxy", "envoy"):
            with tempfile.TemporaryDirectory() as folder:
                PROXIES[name].program = name
                command = PROXIES[name].command(stage, pods, 19_400, pathlib.Path(folder))
                config = next(word for word in command if word.startswith(folder))
                text = pathlib.Path(config).read_text()
            self.assertIn("19400", text)
            self.assertNotIn("{servers}", text)
            self.assertEqual(text.count("{"), text.count("}"))
        with tempfile.TemporaryDirectory() as folder:
            Ours().command(stage, pods, 19_400, pathlib.Path(folder))
            self.assertIn("127.0.0.1:2", (pathlib.Path(folder) / "tidegate.yaml").read_text())


class Programs(unittest.TestCase):
    def test_cpu_and_memory_are_those_of_the_whole_group(self):
        with tempfile.TemporaryDirectory() as folder:
            core = str(min(os.sched_getaffinity(0)))
            program = measure.Program(["sh", "-c", "while :; do :; done & wait"], core, pathlib.Path(folder) / "log")
            try:
                end = time.monotonic() + 30
                while program.cpu() < 0.05 and time.monotonic() < end:
                    time.sleep(0.01)
                self.assertGreaterEqual(program.cpu(), 0.05)
                self.assertGreater(program.memory(), 100_000)
            finally:
                program.end()


if __name__ == "__main__":
    unittest.main()
