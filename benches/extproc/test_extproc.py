"""The arithmetic behind the tables, and that Envoy's configuration is still found in what `deploy/envoy` recommends."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import parts
import told


class Figures(unittest.TestCase):
    def test_medians_are_taken_name_by_name_of_the_rounds_that_have_it(self):
        self.assertEqual(told.medians([{"a": 1, "b": None}, {"a": 3, "b": 5}, {"a": 2}]), {"a": 2, "b": 5})

    def test_a_quantile_is_a_value_that_was_seen(self):
        values = list(range(1, 101))
        self.assertEqual([told.quantile(values, share) for share in (0.5, 0.99, 1)], [50, 99, 100])
        self.assertIsNone(told.quantile([], 0.5))

    def test_what_an_event_costs_is_the_difference_of_long_and_short_streams(self):
        # 300 us a stream and 10 us an event.
        self.assertEqual(told.slope(300 + 20 * 10, 300 + 200 * 10, 180), 10)
        self.assertIsNone(told.slope(None, 5, 180))

    def test_a_target_is_met_missed_or_unknown(self):
        results = {"nothing": {"calm p50": 1_000}, "tidegate": {"calm p50": 1_100, "flat cpu": 151}}
        lines = told.targets(results, None).splitlines()
        self.assertTrue(lines[2].endswith("| <= 0.15 | 0.100 | met |"), lines[2])
        self.assertTrue(lines[3].endswith("| <= 150 | 151 | **missed** |"), lines[3])
        self.assertTrue(lines[6].endswith("| <= 0.05 | - |  |"), lines[6])

    def test_who_could_not_be_measured_says_why(self):
        text = told.table(told.CPU, {"nothing": "it ended at once", "tidegate": {"flat cpu": 99.6}}, None, rate=200)
        self.assertIn("| nothing | it ended at once |", text)
        self.assertIn("| tidegate | - | 100 |", text)


class Parts(unittest.TestCase):
    def test_the_recommended_configuration_is_put_on_this_machines_ports(self):
        asks = parts.envoy_config("127.0.0.1:1", True, True)
        self.assertIn("ext_proc", asks)
        self.assertIn("UpstreamTlsContext", asks)
        self.assertNotIn("9002 ", asks)
        clear = parts.envoy_config("127.0.0.1:1", True, False)
        self.assertNotIn("UpstreamTlsContext", clear)
        alone = parts.envoy_config("127.0.0.1:1", False, True)
        self.assertNotIn("name: envoy.filters.http.ext_proc", alone)
        self.assertIn('value: "127.0.0.1:1"', alone)

    def test_decisions_are_read_from_the_log_behind_a_place_in_it(self):
        line = '{{"endpoint":"chat_completions","body_bytes":{},"added_ms":{},"ttft_ms":1.0}}\n'
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log"
            before = line.format(220_000, 9.0)
            log.write_text(before + line.format(220_000, 0.5) + line.format(2_048, 7.0) + "nothing of the kind\n")
            self.assertEqual(parts.decisions(log, len(before), 200_000), [0.5])


if __name__ == "__main__":
    unittest.main()
