"""The arithmetic and the words of the comparison, by hand-worked cases: `python3 -m unittest discover benches/quality`."""

import argparse
import json
import math
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import figures
import report
import standins
from routers import ROUTERS, Unavailable
from stage import Program

SLO = (2.0, 0.05)


def request(due, ttft=0.1, tpot=0.01, ended="complete", **more):
    return {"due": due, "late": 0.0, "ttft": ttft, "tpot": tpot, "prompt": 100, "cached": 50, "ended": ended, **more}


def performance(told):
    return {"told": told, "seconds": 10.0, "router_cpu": 0.5, "pods_cpu": 2.0, "player_cpu": 0.5, "busy": 0.3, "shares": [1, 3, 0, 4]}


class Figures(unittest.TestCase):
    def test_quantiles_are_values_that_occurred(self):
        ten = [10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0]
        self.assertEqual([figures.nearest_rank(ten, share) for share in (0.5, 0.9, 0.91, 0.99)], [5.0, 9.0, 10.0, 10.0])
        self.assertTrue(math.isnan(figures.nearest_rank([], 0.5)))

    def test_a_promise_is_kept_on_the_pods_clock_and_only_by_a_whole_answer(self):
        self.assertTrue(figures.meets(request(0, ttft=3.9, tpot=0.09), 2.0, SLO))
        self.assertFalse(figures.meets(request(0, ttft=3.9), 1.0, SLO))
        self.assertFalse(figures.meets(request(0, tpot=0.06), 1.0, SLO))
        self.assertFalse(figures.meets(request(0, ended="503"), 1.0, SLO))
        self.assertTrue(figures.meets(request(0, tpot=None), 1.0, SLO), "one token has nothing after it")

    def test_who_was_refused_or_given_up_counts(self):
        told = [request(at) for at in range(8)]
        told += [request(8, ttft=None, tpot=None, ended="503: busy"), request(9, ttft=None, tpot=None, ended="given up", waited=30.0)]
        summary = figures.summary(performance(told), 1.0, SLO)
        self.assertEqual(summary["requests"], 9, "the first of ten is not counted")
        self.assertAlmostEqual(summary["attained"], 7 / 9)
        self.assertEqual((summary["errors"], summary["unfinished"], summary["failure"]), (1, 1, "503: busy"))
        self.assertEqual(summary["ttft p99"], 30.0, "who waited in vain waited")
        self.assertAlmostEqual(summary["ttft mean"], (7 * 0.1 + 30.0) / 8)
        self.assertEqual(summary["hits"], 0.5)
        self.assertAlmostEqual(summary["router cpu"], 50.0, msg="half a second for ten requests")
        self.assertAlmostEqual(summary["ours"], 0.3)
        self.assertEqual(summary["uneven"], 2.0, "4 of one pod, 2 on average")

    def test_the_warm_up_is_by_when_requests_were_due_not_by_when_they_ended(self):
        told = [request(at) for at in range(1, 10)] + [request(0, ttft=9.0)]
        self.assertEqual(figures.summary(performance(told), 1.0, SLO)["ttft p99"], 0.1)

    def test_a_row_has_the_median_and_the_spread_or_says_why_it_has_none(self):
        rounds = [figures.summary(performance([request(at, ttft=ttft) for at in range(10)]), 1.0, SLO) for ttft in (0.3, 0.1, 0.2)]
        text = figures.table({"a": rounds, "b": "not installed: no | network"})
        self.assertIn("| a | 1.000 (1.000–1.000) | 0.20 (0.10–0.30) | 0.20 |", text)
        self.assertIn("| b | not installed: no / network |", text)
        self.assertEqual(len({line.count("|") for line in text.splitlines()}), 1, text)


class Words(unittest.TestCase):
    def test_two_whose_rounds_overlap_are_called_equal(self):
        rounds = lambda *attained: [{"attained": it, "ttft p90": 1.0} for it in attained]
        self.assertIn("overlap", report.shows({"a": rounds(0.9, 0.8, 0.7), "b": rounds(0.75, 0.6, 0.5)}))
        self.assertNotIn("overlap", report.shows({"a": rounds(0.9, 0.8, 0.8), "b": rounds(0.75, 0.6, 0.5)}))

    def test_figures_from_a_busy_machine_say_so(self):
        calm = {"busy": 0.4, "ours": 0.5, "late": 0.01}
        self.assertNotIn("too much", report.trust([calm]))
        self.assertIn("too much", report.trust([calm, {**calm, "busy": 0.7}]))
        self.assertIn("too much", report.trust([calm, {**calm, "late": 0.1}]))

    def test_the_command_names_no_places_of_this_machine(self):
        before, sys.argv = sys.argv, ["run", "--rounds", "3", "--traces", "/a/b", "--no-build", "--logs=/c", "--load", "1.1"]
        try:
            self.assertEqual(report.command(), "benches/quality/run --rounds 3 --load 1.1")
        finally:
            sys.argv = before


class Parts(unittest.TestCase):
    def test_stand_ins_are_the_same_each_time_and_about_as_long_as_what_was_recorded(self):
        with tempfile.TemporaryDirectory() as folder:
            one, other = pathlib.Path(folder) / "one", pathlib.Path(folder) / "other"
            standins.conversations(one)
            standins.conversations(other)
            self.assertEqual(one.read_text(), other.read_text())
            lines = [json.loads(line) for line in one.read_text().splitlines()]
            self.assertTrue(9_000 < len(lines) < 15_000, len(lines))
            mean = sum(it["input_length"] for it in lines) / len(lines)
            self.assertTrue(9_000 < mean < 15_000, mean)
            self.assertTrue(all(len(it["hash_ids"]) == -(-it["input_length"] // 512) for it in lines))
            standins.lengths(one)
            rows = [line.split(",") for line in one.read_text().splitlines()[1:]]
            mean = sum(int(row[1]) for row in rows) / len(rows)
            self.assertTrue(1_100 < mean < 1_210, mean)

    def test_a_program_that_ends_at_once_leaves_its_last_words(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Program([sys.executable, "-c", "import sys; sys.exit('no such flag')"], pathlib.Path(folder) / "log")
            program.process.wait(timeout=30)
            self.assertTrue(program.ended())
            self.assertEqual(program.last_words(), "no such flag")
            program.end()

    def test_what_cannot_be_installed_says_why(self):
        from routers import run

        with self.assertRaisesRegex(Unavailable, "no-such-program"):
            run(["/no-such-program"])
        with self.assertRaisesRegex(Unavailable, "failed: sorry"):
            run([sys.executable, "-c", "import sys; sys.exit('sorry')"])

    def test_our_configuration_reads_pages_as_often_on_the_pods_clock(self):
        stage, play = argparse.Namespace(binary="tidegate"), argparse.Namespace(slow=2.0)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            ROUTERS["weighted"].command(stage, play, ["http://127.0.0.1:1"], 9000, folder)
            text = (folder / "tidegate.yaml").read_text()
        self.assertIn("interval: 500ms", text)
        self.assertIn("- { name: prefix-cache-scorer, weight: 3 }", text)


if __name__ == "__main__":
    unittest.main()
